"""The servers that tests start: they answer, on loopback alone, and leave nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import tempfile
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers

obstore = pytest.importorskip("obstore")
from obstore.store import S3Store  # noqa: E402


@pytest.fixture(scope="module")
def postgres():
    with servers.postgres() as found:
        yield found


@pytest.fixture(scope="module")
def s3():
    with servers.s3() as found:
        yield found


@pytest.fixture
def bucket(s3):
    """A client of the store, in a prefix of its own."""
    given = s3.new()
    name, _, prefix = given["blobs"].removeprefix("s3://").partition("/")
    return S3Store(
        name,
        prefix=prefix,
        endpoint=given["s3_endpoint"],
        region=given["s3_region"],
        access_key_id=given["s3_access_key_id"],
        secret_access_key=given["s3_secret_access_key"],
        client_options={"allow_http": True},
    )


def test_free_ports_are_free_and_different():
    ports = servers.free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_each_database_is_empty_and_another(postgres):
    async def ask(url: str, *statements: str) -> list:
        engine = create_async_engine(re.sub("^postgresql:", "postgresql+asyncpg:", url))
        async with engine.begin() as db:
            answers = [await db.execute(sqlalchemy.text(each)) for each in statements]
            found = answers[-1].all()
        await engine.dispose()
        return found

    first, second = postgres.new(), postgres.new()
    assert first != second
    made = ("CREATE TABLE t (n bigint)", "INSERT INTO t VALUES (7)", "SELECT n FROM t")
    assert asyncio.run(ask(first, *made)) == [(7,)]
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert asyncio.run(ask(second, tables)) == []


def test_the_store_does_what_the_registry_asks(bucket):
    data = np.random.default_rng(0).bytes(100_000)
    obstore.put(bucket, "blobs/sha256/ab/one", data)
    obstore.put(bucket, "incoming/x/000-5", b"piece")
    assert bytes(obstore.get(bucket, "blobs/sha256/ab/one").bytes()) == data
    assert bytes(obstore.get_range(bucket, "blobs/sha256/ab/one", start=5, end=99_999)) == data[5:99_999]
    assert obstore.head(bucket, "blobs/sha256/ab/one")["size"] == len(data)
    listed = [each["path"] for page in obstore.list(bucket, prefix="blobs/sha256") for each in page]
    assert listed == ["blobs/sha256/ab/one"]
    obstore.rename(bucket, "blobs/sha256/ab/one", "quarantine/one")
    with pytest.raises(FileNotFoundError):
        obstore.head(bucket, "blobs/sha256/ab/one")
    obstore.delete(bucket, ["quarantine/one", "incoming/x/000-5"])
    assert [each for page in obstore.list(bucket) for each in page] == []


def test_a_presigned_address_serves_ranges_to_whoever_holds_it(bucket):
    obstore.put(bucket, "blob", b"0123456789")
    url = obstore.sign(bucket, "GET", "blob", expires_in=timedelta(seconds=60))
    assert httpx.get(url).content == b"0123456789"
    part = httpx.get(url, headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content) == (206, b"345")
    assert httpx.get(url.partition("?")[0]).status_code == 403
    assert httpx.get(re.sub("Signature=..", "Signature=00", url)).status_code == 403


@pytest.mark.parametrize("megabytes", [17, pytest.param(200, marks=pytest.mark.slow)])
def test_a_stream_arrives_in_parts(bucket, megabytes):
    piece = np.random.default_rng(1).bytes(1_000_000)

    async def stream():
        for _ in range(megabytes):
            yield piece

    async def there_and_back() -> tuple[int, str]:
        await obstore.put_async(bucket, "large", stream(), use_multipart=True, chunk_size=8 << 20)
        size, found = 0, hashlib.sha256()
        async for chunk in (await obstore.get_async(bucket, "large")).stream():
            size += len(chunk)
            found.update(chunk)
        return size, found.hexdigest()

    expected = hashlib.sha256(piece * megabytes).hexdigest()
    assert asyncio.run(there_and_back()) == (megabytes * 1_000_000, expected)


def test_an_nginx_answers(tmp_path):
    (port,) = servers.free_ports(1)
    config = f'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "here"; }} }}'
    with servers.nginx(config, tmp_path, port) as url:
        answer = httpx.get(url)
        assert (answer.text, answer.headers["server"][:5]) == ("here", "nginx")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.slow
def test_they_listen_on_loopback_alone_and_leave_nothing(monkeypatch):
    def children() -> dict[int, psutil.Process]:
        return {each.pid: each for each in psutil.Process().children(recursive=True)}

    before = children()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is too long for a socket
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with servers.s3() as store, servers.postgres() as database:
            assert httpx.get(store.url).status_code < 500
            assert "0 rows" not in database.psql("SELECT 1 WHERE current_setting('listen_addresses') = ''")
            started = [each for pid, each in children().items() if pid not in before]
            listening = [
                each.laddr
                for process in started
                for each in process.net_connections(kind="inet")
                if each.status == psutil.CONN_LISTEN
            ]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert not [each for each in started if each.is_running()]
        assert list(Path(folder).glob("neuraverse-*")) == []
    sockets = [path for each in listening for path in Path("/tmp").glob(f"seaweedfs-*-{each.port}.sock")]
    assert sockets == []
