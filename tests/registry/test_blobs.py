"""Blobs: content-addressed, durable before visible, ranges and conditional requests."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time

import pytest

from neuraverse.errors import StorageError
from neuraverse.registry import Settings, bodies, create_app
from neuraverse.registry.stores.local import LocalStore

DATA = bytes(range(256)) * 8
HEX = hashlib.sha256(DATA).hexdigest()
URL = f"/v1/blobs/{HEX}"


def files(folder):
    return sorted(
        p.name.partition(".")[0]
        for part in ("blobs", "incoming", "quarantine")
        for p in (folder / part).rglob("*")
        if p.is_file()
    )


@pytest.fixture
def stored(api):
    assert api.put(URL, content=DATA).status_code == 201
    return api


@pytest.mark.storages
def test_upload_then_download(stored):
    answer = stored.get(URL)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{HEX}"'
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.storages
def test_a_second_upload_changes_nothing(stored):
    answer = stored.put(URL, content=b"something else")
    assert (answer.status_code, answer.json()) == (200, {"sha256": HEX, "created": False})
    assert stored.get(URL).content == DATA


@pytest.mark.storages
def test_the_empty_blob(api):
    empty = hashlib.sha256(b"").hexdigest()
    assert api.put(f"/v1/blobs/{empty}", content=b"").status_code == 201
    answer = api.get(f"/v1/blobs/{empty}")
    assert (answer.status_code, answer.content) == (200, b"")


def test_fault_05_wrong_bytes_are_refused_and_not_kept(api, data_dir, problem):
    detail = problem(api.put(URL, content=DATA + b"!"), 422)["detail"]
    assert HEX in detail
    assert hashlib.sha256(DATA + b"!").hexdigest() in detail
    assert files(data_dir) == []
    problem(api.get(URL), 404)


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, HEX.upper(), "..", "%2e%2e%2fregistry.db", "a%00b"])
def test_fault_15_a_malformed_digest_is_refused(api, digest):
    for method in ("GET", "PUT", "HEAD"):
        assert api.request(method, f"/v1/blobs/{digest}").status_code in (400, 404, 405)


@pytest.mark.storages
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
def test_fault_10_ranges(stored, header, start, stop):
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


@pytest.mark.storages
@pytest.mark.parametrize("tag", [f'"{HEX}"', f'"x", W/"{HEX}"', "*"])
def test_not_modified(stored, tag):
    answer = stored.get(URL, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert stored.get(URL, headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_says_how_long_it_is(stored):
    answer = stored.head(URL)
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "2048", b"")
    assert stored.head(f"/v1/blobs/{'0' * 64}").status_code == 404


@pytest.mark.storages
@pytest.mark.parametrize("chunked", [False, True])
def test_fault_13_too_large_is_refused_however_it_comes(api, problem, monkeypatch, chunked):
    monkeypatch.setitem(bodies._LIMITS, "/v1/skills", 1000)
    body = b"x" * 2000
    answer = api.post("/v1/skills", content=iter([body[:900], body[900:]]) if chunked else body)
    assert "larger than the limit" in problem(answer, 413)["detail"]


def test_fault_13_a_blob_beyond_the_limit_leaves_nothing(data_dir, problem):
    from starlette.testclient import TestClient

    with TestClient(create_app(Settings.load(data=data_dir, max_blob_bytes=1000))) as api:
        problem(api.put(URL, content=iter([DATA])), 413)
        problem(api.put(URL, content=DATA), 413)
        problem(api.post("/v1/uploads", json={"sha256": HEX, "size": 2048}), 413)
    assert files(data_dir) == []


def test_fault_04_a_full_disk_is_told_and_leaves_nothing(local_api, data_dir, problem, monkeypatch):
    write = os.write

    def full(descriptor, data):
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    other = b"small"
    assert local_api.put(f"/v1/blobs/{hashlib.sha256(other).hexdigest()}", content=other).status_code == 201
    monkeypatch.setattr(os, "write", full)
    answer = local_api.put(URL, content=DATA)
    assert local_api.get(f"/v1/blobs/{hashlib.sha256(other).hexdigest()}").content == other  # reads go on
    monkeypatch.undo()
    body = problem(answer, 507)
    assert "disk is full" in body["detail"]
    assert str(data_dir) not in answer.text
    assert files(data_dir) == [hashlib.sha256(other).hexdigest()]
    assert local_api.put(URL, content=DATA).status_code == 201


# --- the local store


@pytest.fixture
def store(data_dir):
    made = LocalStore(data_dir)
    asyncio.run(made.open())
    yield made
    asyncio.run(made.close())


async def _chunks(*parts):
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


def test_an_upload_that_breaks_leaves_nothing(store, data_dir):
    with pytest.raises(RuntimeError, match="gone"):
        asyncio.run(store.receive(HEX, _chunks(DATA[:100], RuntimeError("gone"))))
    assert files(data_dir) == []


def test_a_cancelled_upload_leaves_nothing(store, data_dir):
    async def forever():
        yield DATA
        await asyncio.sleep(3600)

    async def main():
        task = asyncio.create_task(store.receive(HEX, forever()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert files(data_dir) == []


def test_fault_03_bytes_and_name_are_on_the_disk_before_the_row(store, data_dir, monkeypatch):
    synced = []
    fsync = os.fsync

    def spy(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    async def main():
        arrived = await store.receive(HEX, _chunks(DATA))
        monkeypatch.setattr(os, "fsync", spy)
        await store.seal([arrived])
        return arrived

    arrived = asyncio.run(main())
    path = (data_dir / "blobs" / arrived.key).resolve()
    assert sorted(synced) == sorted([str(path), str(path.parent)])
    assert path.stat().st_mode & 0o777 == 0o444


def test_fault_03_a_publish_flushes_before_it_commits(
    local_api, data_dir, tiny_skill, publisher, monkeypatch
):
    """The order of writes: everything is flushed when the row is written."""
    from neuraverse.registry import publishing
    from tests.registry.test_publish import TAR, parcel

    order = []
    fsync, enter = os.fsync, publishing._enter

    def spy(descriptor):
        order.append(os.readlink(f"/proc/self/fd/{descriptor}").rsplit("/", 1)[-1].partition(".")[0])
        fsync(descriptor)

    def spy_enter(*args):
        order.append("row")
        return enter(*args)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(publishing, "_enter", spy_enter)
    answer = local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    assert answer.status_code == 201
    flushed = set(order[: order.index("row")])
    digests = {entry.sha256 for entry in tiny_skill.manifest.files.values()}
    folders = {path.parent.name for path in (data_dir / "blobs").rglob("*.*")}
    assert digests | folders <= flushed


def test_many_at_once_store_one(local_api, data_dir):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        codes = [a.status_code for a in pool.map(lambda _: local_api.put(URL, content=DATA), range(20))]
    assert set(codes) <= {200, 201}
    assert files(data_dir) == [HEX]
    assert local_api.get(URL).content == DATA


def test_errors_of_the_store_are_ours(store, data_dir):
    (data_dir / "blobs" / "sha256" / HEX[:2]).rmdir()
    with pytest.raises(StorageError, match="cannot write"):
        asyncio.run(store.receive(HEX, _chunks(DATA)))


def test_a_cancelled_read_waits_for_its_thread(store, data_dir, monkeypatch):
    """However often it is cancelled: the thread uses the descriptor, which may be another's next."""
    ended, pread = [], os.pread

    def slow(descriptor, count, offset):
        time.sleep(0.2)
        data = pread(descriptor, count, offset)
        ended.append(len(data))
        return data

    async def main():
        arrived = await store.receive(HEX, _chunks(DATA))
        monkeypatch.setattr(os, "pread", slow)

        async def read():
            async for _ in store.read(arrived.key, 0, len(DATA)):
                pass

        task = asyncio.create_task(read())
        for _ in range(4):
            await asyncio.sleep(0.03)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [len(DATA)]

    asyncio.run(main())
