"""The one kind of archive that we write: others can read it, and we read nothing else."""

from __future__ import annotations

import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuraverse.archive import BLOCK, Reader, header, pack, padding, total, unpack
from neuraverse.errors import IntegrityError

NAMES = ("manifest.json", "signature.json", "model.safetensors", "README.md")
contents = st.lists(st.binary(max_size=2000), min_size=len(NAMES), max_size=len(NAMES))


def packed(parts):
    return b"".join(pack(parts))


def pieces(data, sizes):
    """The same bytes in pieces; `sizes` are gone through again and again."""
    at, i = 0, 0
    while at < len(data):
        size = sizes[i % len(sizes)]
        yield data[at : at + size]
        at, i = at + size, i + 1


@given(contents, st.lists(st.integers(1, 1500), min_size=1, max_size=5))
def test_what_is_packed_is_read(datas, sizes):
    parts = list(zip(NAMES, datas, strict=True))
    data = packed(parts)
    assert len(data) == total(map(len, datas))
    reader = Reader(pieces(data, sizes), NAMES, limit=2000)
    assert [(name, size, reader.data()) for name, size in reader.members()] == [
        (name, len(content), content) for name, content in parts
    ]
    assert unpack([data], NAMES) == dict(parts)


@given(contents)
def test_files_may_be_skipped(datas):
    reader = Reader([packed(zip(NAMES, datas, strict=True))], NAMES, limit=2000)
    sizes = []
    for index, (_, size) in enumerate(reader.members()):
        sizes.append(size)
        if index % 2:
            next(reader.stream(), None)
    assert sizes == list(map(len, datas))


def test_pieces_that_are_empty_are_passed_over():
    data = packed([("a", b"x" * 700)])
    assert [n for n, _ in Reader([b"", data[:600], b"", data[600:], b""], ["a"], limit=700).members()] == [
        "a"
    ]


@settings(max_examples=30)
@given(contents)
def test_tarfile_reads_it(datas):
    data = packed(zip(NAMES, datas, strict=True))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == list(NAMES)
        assert [tar.extractfile(m).read() for m in members] == datas
        assert all((m.mode, m.mtime, m.uid, m.gid, m.type) == (0o644, 0, 0, 0, b"0") for m in members)


def test_tar_unpacks_it(tmp_path):
    data = packed([("a.json", b"{}"), ("b.bin", bytes(range(256)) * 5), ("empty", b"")])
    subprocess.run(["tar", "x"], input=data, cwd=tmp_path, check=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "a.json": b"{}",
        "b.bin": bytes(range(256)) * 5,
        "empty": b"",
    }
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o644}


@settings(max_examples=300)
@given(st.data())
def test_one_changed_byte_is_found_or_is_in_a_file(data):
    parts = [("a", b"x" * 600), ("b", b"")]
    good = packed(parts)
    at, change = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    spoilt = bytearray(good)
    spoilt[at] ^= change
    if BLOCK <= at < BLOCK + 600:
        assert unpack([bytes(spoilt)], ["a", "b"])["a"] != parts[0][1]
    else:
        with pytest.raises(IntegrityError, match="the archive is malformed"):
            unpack([bytes(spoilt)], ["a", "b"])


@settings(max_examples=200)
@given(st.binary(max_size=3000) | st.integers(0, 2047).map(bytes))
def test_bytes_that_are_no_archive(data):
    with pytest.raises(IntegrityError, match="the archive is malformed"):
        unpack([data], ["a"])


@given(st.integers(0, 2047))
def test_an_archive_that_ends_early(length):
    whole = packed([("a", b"x" * 300)])
    with pytest.raises(IntegrityError, match="ends early"):
        unpack([whole[:length]], ["a"])


def member(name, data, **changes):
    block = bytearray(header(name, len(data)))
    for start, raw in changes.values():
        block[start : start + len(raw)] = raw
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + padding(len(data))


END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (member("b", b"") + member("a", b"") + END, "a is missing"),
        (member("a", b"") + member("a", b"") + END, "'a' is not a file that belongs here"),
        (member("b", b"") + END, "a is missing"),
        (member("a", b"") + END, "b is missing"),
        (member("c", b"") + END, "is malformed"),
        (member("a", b"x" * 101) + END, "a has 101 bytes; at most 100 are allowed"),
        (member("a", b"", mode=(100, b"0000755\0")) + END, "header of 'a'"),
        (member("a", b"", owner=(108, b"0001750\0")) + END, "header of 'a'"),
        (member("a", b"", time=(136, b"00000000001\0")) + END, "header of 'a'"),
        (member("a", b"", link=(156, b"2")) + END, "header of 'a'"),
        (member("a", b"", folder=(156, b"5")) + END, "header of 'a'"),
        (member("a", b"", gnu=(257, b"ustar  \0")) + END, "header of 'a'"),
        (member("a", b"", prefix=(345, b"../..")) + END, "header of 'a'"),
        (member("a", b"", size=(124, b"\x80" + b"\xff" * 11)) + END, "header is malformed"),
        (member("a", b"", size=(124, b"-0000000001\0")) + END, "header"),
        (member("a", b"", size=(124, b" 0000000000\0")) + END, "header"),
        (member("a", b"", size=(124, b"0000000_000\0")) + END, "header"),
        (member("a", b"", hidden=(50, b"x")) + END, "is malformed"),
        (member("a", b"x")[:-1] + b"x" + END, "bytes between files are not zero"),
        (member("a", b"") + member("b", b"") + bytes(BLOCK) + b"x" * BLOCK, "two blocks of zeros"),
        (member("a", b"") + member("b", b"") + END + b"\0", "bytes behind its end"),
        (member("a", b"") + member("b", b"") + END + member("b", b""), "bytes behind its end"),
    ],
)
def test_deviations(archive, why):
    with pytest.raises(IntegrityError, match=why):
        for _ in Reader([archive], ["a", "b"], limit=100).members():
            pass


def test_optional_files_may_be_missing_but_not_come_before():
    assert unpack([packed([("a", b"1"), ("c", b"3")])], ["a"], optional=["b", "c"]) == {"a": b"1", "c": b"3"}
    with pytest.raises(IntegrityError):
        unpack([packed([("a", b""), ("c", b""), ("b", b"")])], ["a"], optional=["b", "c"])


@pytest.mark.parametrize(
    ("name", "size"), [("", 0), ("a/b", 0), ("../a", 0), ("ä", 0), ("a" * 101, 0), ("a", 8**11)]
)
def test_what_cannot_be_a_member(name, size):
    with pytest.raises(ValueError, match="cannot be a member"):
        header(name, size)


def test_an_endless_archive_is_not_read_on():
    taken = 0

    def endless():
        nonlocal taken
        yield member("a", b"") + member("b", b"") + END
        while True:
            taken += 1
            yield b"\0" * 65536

    with pytest.raises(IntegrityError, match="behind its end"):
        for _ in Reader(endless(), ["a", "b"], limit=100).members():
            pass
    assert taken == 1
