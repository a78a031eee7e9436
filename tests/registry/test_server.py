"""One server process: what it claims, how it starts, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from neuraverse.errors import StorageError, UsageError
from neuraverse.registry import Settings, background, serve, server


def publish(url, skill, submission):
    with httpx.Client(base_url=url) as http:
        for name, entry in skill.manifest.files.items():
            http.put(f"/v1/blobs/{entry.sha256}", content=skill.read(name)).raise_for_status()
        return http.post("/v1/skills", json=submission(skill)).raise_for_status()


def test_a_published_skill_survives_sigkill(start, tmp_path, tiny_skill, submission):
    folder = tmp_path / "data"
    process, url = start(data=folder)
    publish(url, tiny_skill, submission)
    process.kill()
    process.communicate()
    _, url = start(data=folder)
    assert httpx.get(f"{url}/v1/skills/acme/weld-seam/latest").json()["digest"] == tiny_skill.digest
    for name, entry in tiny_skill.manifest.files.items():
        assert httpx.get(f"{url}/v1/blobs/{entry.sha256}").content == tiny_skill.read(name)
    (event,) = httpx.get(f"{url}/v1/events?after=0").json()["events"]
    assert event["digest"] == tiny_skill.digest


def test_a_client_that_leaves_in_an_archive_disturbs_nobody(start, tmp_path, tiny_skill, submission):
    process, url = start(data=tmp_path / "data")
    path = "/v1/skills/acme/weld-seam/latest/archive"
    publish(url, tiny_skill, submission)
    for _ in range(20):
        with httpx.stream("GET", url + path) as answer:
            next(answer.iter_raw(100))
    assert httpx.get(url + path).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert err == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(start, tmp_path, number):
    process, url = start(data=tmp_path / "data")
    with (
        httpx.stream("GET", f"{url}/v1/events/stream", timeout=30) as stream,
        httpx.Client(timeout=30) as waiting,
    ):
        lines = stream.iter_lines()
        next(lines)
        assert waiting.get(f"{url}/health/live").status_code == 200
        begun = time.monotonic()
        process.send_signal(number)
        assert not [line for line in lines if line and not line.startswith("id")]  # it ends, and is not cut
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 8.0
    assert process.returncode == 0
    assert err == b""
    assert re.fullmatch(rf"neuraverse registry ready at {re.escape(url)}\n", out.decode())
    assert not (tmp_path / "ready-0.json").exists()


def test_a_second_server_on_the_folder_is_refused(start, tmp_path):
    process, _ = start(data=tmp_path / "data")
    with pytest.raises(StorageError, match=rf"another server \(process {process.pid}\)"):
        serve(Settings.load(data=tmp_path / "data", port=0))


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"http://127\.0\.0\.1:{port}: the port is in use - .*0 takes a free one"
        ):
            serve(Settings.load(data=tmp_path / "data", port=port))
    with background(tmp_path / "data", port=port) as url:  # the folder was let go
        assert url.endswith(f":{port}")


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70_000, "--port: .*less than or equal to 65535"),
        ("127.0.0.1", -1, "--port: .*greater than or equal to 0"),
        ("192.0.2.1", 0, "not one of this machine"),
        ("no such host", 0, "cannot listen on 'no such host'"),
        ("a..b", 0, "cannot listen on 'a..b'"),
    ],
)
def test_an_address_that_cannot_be(tmp_path, host, port, message):
    with pytest.raises(UsageError, match=message):
        serve(Settings.load(data=tmp_path / "data", host=host, port=port))


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("x")
    with pytest.raises(StorageError, match="cannot use the data folder"):
        serve(Settings.load(data=tmp_path / "data", port=0))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path):
    (tmp_path / "data").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="permission"):
        serve(Settings.load(data=tmp_path / "data", port=0))


def test_connections_do_not_wait_to_fill_a_packet():
    """asyncio sets TCP_NODELAY where it sees this protocol; else an answer in two writes takes 40 ms more."""
    with server._listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("content", [b"this is not a database, whatever its name says" * 50])
def test_a_broken_database(tmp_path, content):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "registry.db").write_bytes(content)
    for run in (lambda: serve(Settings.load(data=folder, port=0)), lambda: background(folder).__enter__()):
        with pytest.raises(StorageError, match=r"as the registry's database: .*not a database"):
            run()
    (folder / "registry.db").unlink()
    with background(folder) as url:
        assert httpx.get(f"{url}/health/live").status_code == 200


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from neuraverse.errors import MissingExtraError\n"
        "try:\n    import neuraverse.registry\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'neuraverse[registry]'" in out
