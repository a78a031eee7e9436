"""One 200 MB blob over one and over 16 connections: ours bare, ours behind nginx, and nginx by itself."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.harness import Options, Report, say
from benchmarks.machine import other_load
from benchmarks.registry_peers import served

BLOB_BYTES = 200_000_000
CONNECTIONS = (1, 16)


def measure(report: Report, options: Options, folder: Path) -> None:
    """Add rows, ratios and figures."""
    data = os.urandom(1 << 20) * ((2_000_000 if options.quick else BLOB_BYTES) >> 20)
    digest = hashlib.sha256(data).hexdigest()
    with contextlib.ExitStack() as stack:
        targets = {}
        for name, settings in (("bare", {}), ("behind", {"NEURAVERSE_REGISTRY_X_ACCEL_PREFIX": "/_blobs/"})):
            (folder / name).mkdir()
            url, pid = stack.enter_context(served("ours", folder / name, **settings))
            httpx.put(f"{url}/v1/blobs/{digest}", content=data, timeout=60).raise_for_status()
            targets[name] = (url, f"/v1/blobs/{digest}", pid)
        (folder / "files").mkdir()
        (folder / "files" / "blob").write_bytes(data)
        del data
        if shutil.which("nginx") or Path("/usr/sbin/nginx").exists():
            front = stack.enter_context(_nginx(folder, targets["behind"][0]))
            targets["behind"] = (front, targets["behind"][1], targets["behind"][2])
            targets["nginx"] = (front, "/files/blob", 0)
        else:
            targets.pop("behind")
            report.notes.append("nginx is not installed: apt-get install nginx-light")
        grown = 0.0
        for k in range(options.rounds):
            order = list(targets)
            for name in order[k % len(order) :] + order[: k % len(order)]:
                for connections in CONNECTIONS:
                    grown = max(grown, _row(report, name, targets[name], k, connections))
    report.figures["bare_memory_growth_mb"] = round(grown, 2)
    report.bars["bare_memory_growth_mb"] = {"at_most": 32.0}
    if "nginx" in targets:
        for connections in CONNECTIONS:
            peer = report.median(f"nginx_{connections}")
            for name, bar in (("bare", 0.3), ("behind", 0.9)):
                ours = report.median(f"{name}_{connections}")
                report.ratio(f"{name}_over_nginx_{connections}", ours, peer, at_least=bar)


def _row(report: Report, name: str, target: tuple[str, str, int], k: int, connections: int) -> float:
    """One run; the memory that the bare server grew by [MB]."""
    url, path, pid = target
    with other_load() as busy, _watched(pid if name == "bare" else 0) as grown:
        begun = time.perf_counter()
        total = fetch(url, path, connections)
        seconds = time.perf_counter() - begun
    report.rows.append(
        {
            "contender": f"{name}_{connections}",
            "round": k,
            "value": round(total / seconds / 1e6, 1),
            "unit": "MB/s",
            "seconds": round(seconds, 4),
            "other_load": round(busy(), 2),
            "memory_growth_mb": round(grown[0], 2),
        }
    )
    say(f"{name}, {connections} connections: {total / seconds / 1e6:,.0f} MB/s")
    return grown[0]


def fetch(url: str, path: str, connections: int) -> int:
    """Fetch it once over each connection, with one process for all of them; the bytes that came."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return int(pool.apply(_fetch, (url, path, connections)))


def _fetch(url: str, path: str, connections: int) -> int:
    host, _, port = url.removeprefix("http://").partition(":")
    got = [0] * connections

    def one(i: int) -> None:
        buffer = bytearray(1 << 20)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            first = connection.recv_into(buffer)
            if b" 200 " not in bytes(buffer[:20]):
                raise RuntimeError(bytes(buffer[:200]))
            got[i] = first
            while size := connection.recv_into(buffer):
                got[i] += size

    threads = [threading.Thread(target=one, args=(i,)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(got)


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[list[float]]:
    """How far the memory of a process rises above where it begins [MB]; of 0, nothing."""
    grown, stop = [0.0], threading.Event()
    if not pid:
        yield grown
        return
    before = _memory(pid)

    def watch() -> None:
        while not stop.wait(0.01):
            grown[0] = max(grown[0], _memory(pid) - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        stop.set()
        thread.join()


def _memory(pid: int) -> float:
    """Memory of a process that is not a file's [MB]."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


@contextlib.contextmanager
def _nginx(folder: Path, upstream: str) -> Iterator[str]:
    home = folder / "nginx"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    scratch = " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
    (home / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; {scratch}\n"
        f"server {{ listen 127.0.0.1:{port};\n"
        f"location /files/ {{ alias {folder}/files/; }}\n"
        f"location /_blobs/ {{ internal; alias {folder}/behind/data/blobs/; }}\n"
        f"location / {{ proxy_pass {upstream}; }} }} }}\n"
    )
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen(
        [binary, "-p", str(home), "-c", str(home / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
