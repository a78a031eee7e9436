"""The servers that are measured, each in a process of its own on loopback: ours, MLflow's and nginx."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

_START_S = 90.0
_STOP_S = 30.0
QUIET = {
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # processes for its jobs, of which there are none here
}


@contextlib.contextmanager
def served(kind: str, folder: Path, **settings: str) -> Iterator[tuple[str, int]]:
    """A registry; its address and process id.

    Args:
        kind: ``ours`` or ``mlflow``.
        folder: Where its data is and what it says.
        settings: Environment variables.
    """
    with (_ours if kind == "ours" else _mlflow)(folder, settings) as found:
        yield found


@contextlib.contextmanager
def _ours(folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    ready = folder / "ready.json"
    code = "import sys; from neuraverse.cli import main; sys.exit(main())"
    words = ["serve", "--data", str(folder / "data"), "--port", "0", "--ready-file", str(ready)]
    settings = {"NEURAVERSE_REGISTRY_OPEN": "true"} | dict(settings)
    with _running([sys.executable, "-c", code, *words], folder / "log", settings, ready.exists) as pid:
        yield json.loads(ready.read_text())["url"], pid


@contextlib.contextmanager
def _mlflow(folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
    ]

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        return False

    with _running(command, folder / "log", settings, answers) as pid:
        yield url, pid


def nginx() -> str | None:
    """Path of nginx, if it is installed; /usr/sbin is not on everybody's PATH."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def nginx_version() -> str:
    """Its version."""
    said = subprocess.run([nginx() or "nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return re.sub(r".*/", "", said).strip()


@contextlib.contextmanager
def nginx_before(upstream: str, folder: Path, blobs: Path) -> Iterator[str]:
    """nginx, as many workers as CPUs, in front of a registry; its address.

    Args:
        upstream: The registry's address.
        folder: For its configuration and what it says.
        blobs: The registry's blobs, for the internal location ``/_blobs/``; nginx serves them by itself, too,
            under ``/files/``.
    """
    port = _free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    scratch = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""  # else its workers may not read ours
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} worker_processes auto; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; {scratch}\n"
        f"server {{ listen 127.0.0.1:{port};\n"
        f"location /files/ {{ alias {blobs}/; }}\n"
        f"location /_blobs/ {{ internal; alias {blobs}/; }}\n"
        f"location / {{ proxy_pass {upstream}; }} }} }}\n"
    )

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    command = [nginx() or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with _running(command, folder / "log", {}, answers):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(
    command: Sequence[str], log: Path, settings: Mapping[str, str], ready: Callable[[], bool]
) -> Iterator[int]:
    """A process from the moment it is ready to the end of the block; its id."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=os.environ | QUIET | settings, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
