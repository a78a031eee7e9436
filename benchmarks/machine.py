"""What the figures were measured on: processor, memory, versions, and how quiet it was."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from neuraverse.machine import describe as describe

PACKAGES = (
    "neuraverse",
    "envpool",
    "fastapi",
    "gymnasium",
    "httpx",
    "mjbatch",
    "mlflow",
    "mujoco",
    "numpy",
    "onnxruntime",
    "rsl-rl-lib",
    "sqlalchemy",
    "stable-baselines3",
    "torch",
    "uvicorn",
)


def versions() -> dict[str, str]:
    """Python's and those of the packages that are compared."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def other_load() -> Iterator[Callable[[], float]]:
    """CPUs kept busy by processes other than this one and its children; 0.0 where it cannot be known."""
    start, own, busy = time.perf_counter(), _own_cpu_s(), _busy_cpu_s()
    end: list[float] = []

    def load() -> float:
        return end[0]

    yield load
    elapsed = time.perf_counter() - start
    end.append(max(0.0, (_busy_cpu_s() - busy - (_own_cpu_s() - own)) / max(elapsed, 1e-9)))


def _own_cpu_s() -> float:
    """CPU seconds of this process and its descendants, ended or not."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    me = str(os.getpid())
    parents: dict[str, tuple[str, float]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat") if Path("/proc/self/stat").exists() else ():
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = entry.read_text().rpartition(")")[2].split()
            cpu_s = sum(map(int, fields[11:15])) / ticks  # children that it has waited for included
            parents[entry.parent.name] = fields[1], cpu_s
    for pid, (parent, cpu_s) in parents.items():
        ancestor = parent
        while ancestor in parents and ancestor != me:
            ancestor = parents[ancestor][0]
        if ancestor == me and pid != me:
            total += cpu_s
    return total


def _busy_cpu_s() -> float:
    """CPU seconds that the whole machine has spent, guests and idling excluded."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    except (OSError, ValueError):
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
