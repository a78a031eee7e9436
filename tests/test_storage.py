"""Files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat

import pytest

from neuraverse.errors import IntegrityError, StorageError, UsageError
from neuraverse.storage import disk_errors, hash_regular, new_folder, read_regular, write_atomic


def fail_with(code):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_written_with_its_mode(tmp_path):
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EIO, "check the disk")],
)
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, step, code, says):
    path = tmp_path / "index"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, fail_with(code))
    with pytest.raises(StorageError, match="cannot write") as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert str(path) in caught.value.message
    assert says in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_ctrl_c_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "index"
    path.write_bytes(b"old")

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "deep" / "new") as folder:
        assert not (tmp_path / "deep" / "new").exists()
        (folder / "a").write_bytes(b"1")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["new"]
    assert (tmp_path / "deep" / "new" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("error", [ValueError("in the block"), KeyboardInterrupt()])
def test_a_folder_whose_block_fails_never_appears(tmp_path, error):
    def fill():
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_bytes(b"1")
            raise error

    with pytest.raises(type(error)):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_folder_on_a_full_disk_never_appears(tmp_path, monkeypatch, step):
    monkeypatch.setattr(os, step, fail_with(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"), new_folder(tmp_path / "new") as folder:
        (folder / "a").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_folder_never_replaces_anything(tmp_path, kind):
    path = tmp_path / "new"
    if kind == "file":
        path.write_bytes(b"mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists already"), new_folder(path):
        pytest.fail("the block must not run")


def test_a_regular_file_is_read_up_to_the_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(IntegrityError, match="5 bytes; at most 4"):
        read_regular(path, 4)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening one to read would wait for a writer
    for name, says in (
        ("link", "symbolic link"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("none", "missing"),
    ):
        with pytest.raises(IntegrityError, match=says):
            read_regular(tmp_path / name, 100)


def test_only_errors_of_the_system_are_translated(tmp_path):
    with pytest.raises(KeyError), disk_errors("read", tmp_path):
        raise KeyError
    with (
        pytest.raises(StorageError, match=r"cannot read .*: Permission denied"),
        disk_errors("read", tmp_path),
    ):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 3])
def test_a_file_is_shown_whole_and_in_order_while_it_is_hashed(tmp_path, size):
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    seen = bytearray()
    found = hash_regular(tmp_path / "file", size, seen.extend)
    assert found == (size, hashlib.sha256(data).hexdigest())
    assert seen == data


def test_a_file_that_grows_while_it_is_hashed_is_read_no_further(tmp_path):
    path, pieces = tmp_path / "file", []
    path.write_bytes(bytes(3 << 20))

    def look(piece):
        pieces.append(len(piece))
        with path.open("ab") as file:
            file.write(bytes(2 << 20))

    with pytest.raises(IntegrityError, match="changed its size"):
        hash_regular(path, 10 << 20, look)
    assert sum(pieces) <= 4 << 20
