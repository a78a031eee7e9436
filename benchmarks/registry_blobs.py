"""One 200 MB blob over one and over 16 connections: ours bare, ours behind nginx, and nginx by itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.harness import Options, Report, say
from benchmarks.machine import other_load
from benchmarks.registry_servers import nginx, nginx_before, nginx_version, served

BLOB_BYTES = 200_000_000
CONNECTIONS = (1, 16)
FETCHES = {1: 15, 16: 3}  # in a run, of each target; one alone takes a twentieth of a second
_PREFIX = "/_blobs/"
_SAMPLE_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the blob is.

    Attributes:
        url: Address of the server.
        path: Of the blob.
        pid: The process whose memory is watched; 0 is none.
        before_mb: Its memory before the first download.
    """

    url: str
    path: str
    pid: int = 0
    before_mb: float = 0.0


def measure(report: Report, options: Options, folder: Path) -> None:
    """Add rows, ratios and figures."""
    data = os.urandom(1 << 20) * ((2_000_000 if options.quick else BLOB_BYTES) >> 20)
    path = f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"
    for name in ("bare", "behind"):  # a server that has taken the blob in has grown already: ask another one
        (folder / name).mkdir()
        with served("ours", folder / name) as (url, _):
            httpx.put(url + path, content=data, timeout=60).raise_for_status()
    del data
    for file in folder.glob("b*/data/blobs/sha256/*/*"):
        _reread(file)
    with contextlib.ExitStack() as stack:
        targets = _targets(report, folder, path, stack)
        grown = 0.0
        for k in range(options.rounds):
            for connections in CONNECTIONS:
                grown = max(grown, _rows(report, targets, k, connections))
    report.figures["bare_memory_growth_mb"] = round(grown, 2)
    report.bars["bare_memory_growth_mb"] = {"at_most": 32.0}
    bars = {"bare": 0.3, "behind": 0.9}
    for name in bars.keys() & targets.keys() if "nginx" in targets else ():
        for connections in CONNECTIONS:
            ours, peer = (report.median(f"{each}_{connections}") for each in (name, "nginx"))
            report.ratio(f"{name}_over_nginx_{connections}", ours, peer, at_least=bars[name])


def _reread(path: Path) -> None:
    """Have a file in memory as reading brings it: in what pieces it lies there depends on who wrote it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 20):
            pass


def _targets(report: Report, folder: Path, path: str, stack: contextlib.ExitStack) -> dict[str, Target]:
    """The contenders; without those that this machine or this server lacks."""
    url, pid = stack.enter_context(served("ours", folder / "bare"))
    httpx.head(url + path).raise_for_status()
    targets = {"bare": Target(url=url, path=path, pid=pid, before_mb=memory_mb(pid))}
    if nginx() is None:
        report.notes.append("nginx is not installed, so nothing is compared with it: apt-get install nginx")
        return targets
    settings = {"NEURAVERSE_REGISTRY_X_ACCEL_PREFIX": _PREFIX}
    url, _ = stack.enter_context(served("ours", folder / "behind", **settings))
    (folder / "nginx").mkdir()
    blobs = folder / "behind" / "data" / "blobs"
    front = stack.enter_context(nginx_before(url, folder / "nginx", blobs))
    (file,) = blobs.glob("sha256/*/*")  # the very file that the registry will point nginx to
    targets["nginx"] = Target(url=front, path=f"/files/{file.relative_to(blobs)}")
    report.notes.append(f"nginx {nginx_version()}")
    with httpx.stream("GET", url + path) as answer:
        hands_over = answer.headers.get("x-accel-redirect", "").startswith(_PREFIX)
    if hands_over:
        targets["behind"] = Target(url=front, path=path)
    else:
        report.notes.append(
            "the registry answers without X-Accel-Redirect, so it is not measured behind nginx"
        )
    return targets


def _rows(report: Report, targets: dict[str, Target], k: int, connections: int) -> float:
    """One run, in which the targets take turns; the memory that the watched server grew by [MB]."""
    fetched: dict[str, list[tuple[int, float]]] = {name: [] for name in targets}
    memory = 0.0
    with other_load() as busy:
        for i in range(FETCHES[connections]):
            for name, target in list(targets.items())[:: -1 if i % 2 else 1]:
                with _watched(target) as grown:
                    fetched[name].append(fetch(target.url, target.path, connections))
                memory = max(memory, grown[0])
    for name, target in targets.items():
        total, seconds = sorted(fetched[name], key=lambda each: each[1])[len(fetched[name]) // 2]
        row = {
            "contender": f"{name}_{connections}",
            "round": k,
            "value": round(total / seconds / 1e6, 1),
            "unit": "MB/s",
            "seconds": round(seconds, 4),
            "other_load": round(busy(), 2),
        }
        if target.pid:
            row["memory_growth_mb"] = round(memory, 2)
        report.rows.append(row)
        say(f"{name}, {connections} connections: {row['value']:,.0f} MB/s")
    return memory


def fetch(url: str, path: str, connections: int) -> tuple[int, float]:
    """Fetch it once over each connection, from another process; the bytes that came, and the seconds."""
    host, _, port = url.removeprefix("http://").partition(":")
    command = [sys.executable, "-m", "benchmarks.registry_fetch", host, port, path, str(connections)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout
    total, seconds = json.loads(said)
    return int(total), float(seconds)


@contextlib.contextmanager
def _watched(target: Target) -> Iterator[list[float]]:
    """How far the memory of a process rises above what it was before the first download [MB]."""
    grown, stop = [0.0], threading.Event()
    if not target.pid:
        yield grown
        return

    def watch() -> None:
        while True:
            grown[0] = max(grown[0], memory_mb(target.pid) - target.before_mb)
            if stop.wait(_SAMPLE_S):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        stop.set()
        thread.join()


def memory_mb(pid: int) -> float:
    """Memory of a process that is its own: none that the system could drop and read from a file again."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6
