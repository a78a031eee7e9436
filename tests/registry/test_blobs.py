"""Blobs: content-addressed, durable before visible, ranges and conditional requests."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os

import pytest

from neuraverse.errors import IntegrityError, StorageError
from neuraverse.registry import bodies
from neuraverse.registry.blobs import BlobStore

DATA = bytes(range(256)) * 8
HEX = hashlib.sha256(DATA).hexdigest()
URL = f"/v1/blobs/{HEX}"


def files(folder):
    return sorted(
        p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith(("registry.db", "lock"))
    )


@pytest.fixture
def stored(api):
    assert api.put(URL, content=DATA).status_code == 201
    return api


def test_upload_then_download(stored, data_dir):
    answer = stored.get(URL)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{HEX}"'
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    assert files(data_dir) == [HEX]


def test_a_second_upload_changes_nothing(stored):
    answer = stored.put(URL, content=b"something else")
    assert (answer.status_code, answer.json()) == (200, {"sha256": HEX, "created": False})
    assert stored.get(URL).content == DATA


def test_the_empty_blob(api):
    empty = hashlib.sha256(b"").hexdigest()
    assert api.put(f"/v1/blobs/{empty}", content=b"").status_code == 201
    answer = api.get(f"/v1/blobs/{empty}")
    assert (answer.status_code, answer.content) == (200, b"")


def test_wrong_bytes_are_refused_and_not_kept(api, data_dir, problem):
    detail = problem(api.put(URL, content=DATA + b"!"), 422)["detail"]
    assert HEX in detail
    assert hashlib.sha256(DATA + b"!").hexdigest() in detail
    assert files(data_dir) == []
    problem(api.get(URL), 404)


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, HEX.upper(), "..", "%2e%2e%2fregistry.db", "a%00b"])
def test_a_malformed_digest_is_refused(api, digest):
    for method in ("GET", "PUT", "HEAD"):
        assert api.request(method, f"/v1/blobs/{digest}").status_code in (400, 404, 405)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=2000-", 2000, 2048),
        ("bytes=-48", 2000, 2048),
        ("bytes=-99999", 0, 2048),
        ("bytes=2047-99999", 2047, 2048),
    ],
)
def test_ranges(stored, header, start, stop):
    for answer in (stored.get(URL, headers={"Range": header}), stored.head(URL, headers={"Range": header})):
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/2048"
        assert answer.headers["content-length"] == str(stop - start)
    assert stored.get(URL, headers={"Range": header}).content == DATA[start:stop]


@pytest.mark.parametrize("header", ["bytes=2048-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_past_the_end(stored, problem, header):
    answer = stored.get(URL, headers={"Range": header})
    problem(answer, 416)
    assert answer.headers["content-range"] == "bytes */2048"


@pytest.mark.parametrize(
    "header", ["bytes=", "bytes=-", "bytes=9-1", "lines=0-1", "bytes=0-1,5-6", "bytes=a-b", "0-1"]
)
def test_ranges_that_mean_the_whole(stored, header):
    answer = stored.get(URL, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, DATA)


def test_a_range_of_another_version_means_the_whole(stored):
    asked = {"Range": "bytes=5-9", "If-Range": f'"{HEX}"'}
    assert stored.get(URL, headers=asked).status_code == 206
    assert stored.get(URL, headers=asked | {"If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize("tag", [f'"{HEX}"', f'"x", W/"{HEX}"', "*"])
def test_not_modified(stored, tag):
    answer = stored.get(URL, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert stored.get(URL, headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_says_how_long_it_is(stored):
    answer = stored.head(URL)
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "2048", b"")
    assert stored.head(f"/v1/blobs/{'0' * 64}").status_code == 404


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_is_refused_however_it_comes(api, data_dir, problem, monkeypatch, chunked):
    monkeypatch.setattr(bodies, "MAX_JSON_BYTES", 1000)
    body = b"x" * 2000
    answer = api.post("/v1/skills", content=iter([body[:900], body[900:]]) if chunked else body)
    assert "larger than the limit" in problem(answer, 413)["detail"]


def test_a_blob_beyond_the_limit_leaves_nothing(data_dir, problem, monkeypatch):
    from starlette.testclient import TestClient

    from neuraverse.registry import app as app_module

    monkeypatch.setattr(app_module, "MAX_BLOB_BYTES", 1000)
    with TestClient(app_module.create_app(data_dir)) as api:
        problem(api.put(URL, content=iter([DATA])), 413)
        problem(api.put(URL, content=DATA), 413)
    assert files(data_dir) == []


def test_a_full_disk_is_told_and_leaves_nothing(api, data_dir, problem, monkeypatch):
    write = os.write

    def full(descriptor, data):
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    answer = api.put(URL, content=DATA)
    monkeypatch.undo()
    body = problem(answer, 507)
    assert "disk is full" in body["detail"]
    assert str(data_dir) not in answer.text
    assert files(data_dir) == []
    assert api.put(URL, content=DATA).status_code == 201


async def _chunks(*parts):
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


def test_an_upload_that_breaks_leaves_nothing(data_dir):
    store = BlobStore(data_dir)
    store.open()
    with pytest.raises(RuntimeError, match="gone"):
        asyncio.run(store.put(HEX, _chunks(DATA[:100], RuntimeError("gone"))))
    assert files(data_dir) == []


def test_a_cancelled_upload_leaves_nothing(data_dir):
    store = BlobStore(data_dir)
    store.open()

    async def forever():
        yield DATA
        await asyncio.sleep(3600)

    async def main():
        task = asyncio.create_task(store.put(HEX, forever()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert files(data_dir) == []


def test_what_an_interrupted_server_left_is_dropped(data_dir):
    store = BlobStore(data_dir)
    store.open()
    (data_dir / "incoming" / "tmpabc").write_bytes(b"half")
    store.open()
    assert files(data_dir) == []


def test_the_file_is_on_the_disk_before_its_name(data_dir, monkeypatch):
    store = BlobStore(data_dir)
    store.open()
    order = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def spy_replace(self, target):
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr("pathlib.Path.replace", spy_replace)
    assert asyncio.run(store.put(HEX, _chunks(DATA)))
    # The folder of the first two digits is new, so its own name is made durable too.
    assert order == ["file", "folder", "rename", "folder"]


def test_many_at_once_store_one(data_dir):
    store = BlobStore(data_dir)
    store.open()

    async def main():
        return await asyncio.gather(*(store.put(HEX, _chunks(DATA[:1000], DATA[1000:])) for _ in range(20)))

    assert any(asyncio.run(main()))
    assert files(data_dir) == [HEX]
    assert store.path(HEX).read_bytes() == DATA


def test_errors_of_the_store_are_ours(data_dir):
    store = BlobStore(data_dir)
    store.open()
    with pytest.raises(IntegrityError, match="not 000"):
        asyncio.run(store.put("0" * 64, _chunks(DATA)))
    (data_dir / "incoming").rmdir()
    with pytest.raises(StorageError, match="cannot write"):
        asyncio.run(store.put(HEX, _chunks(DATA)))
