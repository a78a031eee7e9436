"""The registry: publish and pull against MLflow, large blobs against nginx, verification against SHA-256."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import registry_blobs
from benchmarks.harness import Options, Report, say
from benchmarks.machine import other_load
from benchmarks.registry_peers import KINDS, load, make_skills, register
from benchmarks.registry_servers import served
from neuraverse.keys import KeyStore
from neuraverse.trust import sign, verify

CLIENTS = {1: (1, 1), 16: (4, 4)}  # processes and threads in each
SKILLS = {1: 40, 16: 112}  # in a run, besides one that warms each client up
# Hidden units, further numbers, calls in a run.
VERIFIED = {"1mb": (300, 0, 20), "250mb": (4000, 14_000_000, 3)}


def measure(options: Options) -> Report:
    """All three parts, in one run."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="neuraverse-bench-") as name, _home(Path(name)) as keys:
        folder = Path(name)
        _versions(report, options, folder)
        registry_blobs.measure(report, options, folder)
        _verify(report, options, folder, keys)
    return report


@contextlib.contextmanager
def _home(folder: Path):
    """A publisher's home, which the worker processes use too."""
    before = os.environ.get("NEURAVERSE_HOME")
    keys = KeyStore(folder / "home")
    keys.new()
    os.environ["NEURAVERSE_HOME"] = str(keys.home)
    try:
        yield keys
    finally:
        os.environ.pop("NEURAVERSE_HOME")
        if before is not None:
            os.environ["NEURAVERSE_HOME"] = before


def _versions(report: Report, options: Options, folder: Path) -> None:
    """Publish and pull of skills of 1 MB: every version is published once, and pulled into caches without it.

    Nothing is removed before the end: for half a minute, ext4 passes over the place of each file that was
    removed whenever it makes a new one, which made all of it up to twice as slow.
    """
    kinds = [k for k in KINDS if k == "ours" or importlib.util.find_spec("mlflow")]
    if "mlflow" not in kinds:
        report.notes.append("MLflow is not installed: pip install -e '.[bench]'")
    with contextlib.ExitStack() as stack:
        urls = {}
        for kind in kinds:
            (folder / kind).mkdir()
            say(f"starting the server of {kind}")
            urls[kind], _ = stack.enter_context(served(kind, folder / kind))
        for k in range(options.rounds):
            for clients in CLIENTS:
                count = clients * 2 if options.quick else clients + SKILLS[clients]
                names = [f"r{k}c{clients}-{i}" for i in range(count)]
                make_skills(folder / "skills", names)
                for kind in kinds[:: -1 if k % 2 else 1]:
                    folders = [folder / f"skills-{kind}" / name for name in names]
                    for each in folders:  # a folder for each, since ours adds signatures
                        shutil.copytree(folder / "skills" / each.name, each, copy_function=os.link)
                    _round(report, kind, urls[kind], folders, k, clients)
    for kind in kinds:
        for task in ("publish", "pull"):
            for clients in CLIENTS:
                _figures(report, f"{kind}_{task}_{clients}")
    if "mlflow" in kinds:
        _compare(report)


def _round(report: Report, kind: str, url: str, folders: Sequence[Path], k: int, clients: int) -> None:
    register(kind, url, folders[0].name.rpartition("-")[0])
    processes, threads = CLIENTS[clients]
    for task in ("publish", "pull"):
        with other_load() as busy:
            taken, seconds = load(kind, task, url, folders, processes=processes, threads=threads)
        p50, p99 = (round(1e3 * float(v), 2) for v in np.percentile(taken, (50, 99)))
        report.rows.append(
            {
                "contender": f"{kind}_{task}_{clients}",
                "round": k,
                "value": round(len(taken) / seconds, 3),
                "unit": "skills/s",
                "p50_ms": p50,
                "p99_ms": p99,
                "seconds": round(seconds, 4),
                "other_load": round(busy(), 2),
            }
        )
        say(f"{kind}, {task}, {clients} clients: p50 {p50:.1f} ms, {len(taken) / seconds:.1f} skills/s")


def _figures(report: Report, name: str) -> None:
    rows = [row for row in report.rows if row["contender"] == name]
    for column in ("p50_ms", "p99_ms"):
        report.figures[f"{name}_{column}"] = round(statistics.median(row[column] for row in rows), 2)


def _compare(report: Report) -> None:
    """Less time is better: theirs over ours; more skills per second are better: ours over theirs."""
    for task, bar in (("publish", 3.0), ("pull", 5.0)):
        theirs, ours = (report.figures[f"{kind}_{task}_1_p50_ms"] for kind in ("mlflow", "ours"))
        report.ratio(f"{task}_over_mlflow", theirs, ours, at_least=bar)
    for task in ("publish", "pull"):
        ours, theirs = (report.median(f"{kind}_{task}_16") for kind in ("ours", "mlflow"))
        report.ratio(f"{task}_throughput_16_over_mlflow", ours, theirs, at_least=5.0)


def _verify(report: Report, options: Options, folder: Path, keys: KeyStore) -> None:
    """Signature and every byte of a skill on the disk, against SHA-256 of the same bytes."""
    for size, (hidden, more, calls) in VERIFIED.items():
        if options.quick:
            hidden, more, calls = 300, 0, 1
        make_skills(folder / size, [f"verify{size}-0"], hidden, more)
        path = folder / size / f"verify{size}-0"
        sign(path, keys.private_key_path())
        files = sorted(path.iterdir())
        tasks = {"verify": functools.partial(verify, path, keys), "sha256": functools.partial(_hash, files)}
        for task in tasks.values():
            task()  # loads what is loaded late, and brings the files into memory
        for k in range(options.rounds):
            for name in list(tasks)[:: -1 if k % 2 else 1]:
                report.rows.append(_timed(f"{name}_{size}", tasks[name], files, calls, k))
        taken = {n: _seconds(report.rows, f"{n}_{size}") for n in tasks}
        share = round(taken["verify"] / taken["sha256"], 3)
        report.figures[f"verify_{size}_ms"] = round(1e3 * taken["verify"], 2)
        report.figures[f"verify_{size}_share_of_sha256"] = share
        say(f"verify {size}: {1e3 * taken['verify']:.1f} ms, {share:.2f} × SHA-256")
        shutil.rmtree(folder / size)
    report.bars["verify_250mb_share_of_sha256"] = {"at_most": 1.5}


def _timed(
    contender: str, task: Callable[[], object], files: Sequence[Path], calls: int, k: int
) -> dict[str, Any]:
    """A row for the median of some calls."""
    taken = []
    with other_load() as busy:
        for _ in range(calls):
            begun = time.perf_counter()
            task()
            taken.append(time.perf_counter() - begun)
    seconds, total = statistics.median(taken), sum(file.stat().st_size for file in files)
    return {
        "contender": contender,
        "round": k,
        "value": round(total / seconds / 1e6, 3),
        "unit": "MB/s",
        "bytes": total,
        "seconds": round(seconds, 6),
        "other_load": round(busy(), 2),
    }


def _seconds(rows: Sequence[dict[str, Any]], contender: str) -> float:
    return statistics.median(row["seconds"] for row in rows if row["contender"] == contender)


def _hash(files: Sequence[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            hashlib.file_digest(opened, "sha256")
