"""Swaps beside a control loop of 1 kHz: how late its ticks begin, against a run without swaps.

As on a robot: the registry, `neuraverse watch --apply` and the control loop are processes of their own. Each
second a new version of a skill of 1 MB is published. Beside `linked`, in which the loop runs what the link
points to, stand `beside`, in which all the same goes on but the loop's own link stays; `still`, in which
nothing is published; and `in_process`, in which an agent in a thread of the control process pulls, verifies
and stages. Only what is worse in `linked` than in `beside` is the swap's doing in the control process.

A control process is ``python -m benchmarks.fleet_swap KIND URL LINK NAME SECONDS``. It asks for real-time
scheduling, as a robot's would, and says whether it has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import say
from benchmarks.machine import other_load
from benchmarks.registry_peers import ORG, make_skills
from benchmarks.registry_servers import served
from neuraverse.client import Client
from neuraverse.interface import Interface, Offer
from neuraverse.keys import KeyStore
from neuraverse.runtime import Linked, RobotAgent, linked, run
from neuraverse.runtime.holder import Holder, Running
from neuraverse.runtime.loop import LATE_S
from neuraverse.runtime.stage import rest
from neuraverse.storage import put_link

RATE_HZ = 1000.0
SECONDS, ROUNDS = 20, 3
KINDS = ("linked", "beside", "in_process", "still")
NAME = f"{ORG}/swap"
LATE_BAR_S = 1e-3
_AFTER_S = 0.005  # of a swap: so long it may still be felt
_PRIORITY = 50


def measure_swap(quick: bool = False) -> list[dict[str, Any]]:
    """A row for each kind and round; they take turns, and each round begins with another one."""
    rounds, seconds = (1, 2) if quick else (ROUNDS, SECONDS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="neuraverse-swap-") as name:
        folder = Path(name)
        keys = KeyStore(folder / "author")
        keys.new()
        KeyStore(folder / "robot").trust(keys.public_key().pem, ORG)
        skills = [f"swap-{i}" for i in range(1 + rounds * 3 * seconds)]
        make_skills(folder / "skills", skills)
        waiting = iter([folder / "skills" / each for each in skills])
        (folder / "ours").mkdir()
        with served("ours", folder / "ours") as (url, _), Client(url, home=keys.home) as author:
            author.publish(next(waiting))
            for k in range(rounds):
                for kind in KINDS[k % len(KINDS) :] + KINDS[: k % len(KINDS)]:
                    row = _run(kind, url, folder, author, waiting, seconds)
                    rows.append({"contender": f"swap_{kind}", "round": k, **row})
                    say(f"{kind}: latest tick {row['value']:.2f} ms, {row['swaps']} swaps")
    return rows


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the rows say together.

    ``…_over_1ms_per_100_swaps`` are ticks that were more than 1 ms late while the control process was at work
    on a swap.
    """
    found = {}
    for kind in KINDS:
        mine = [row for row in rows if row["contender"] == f"swap_{kind}"]
        found[f"swap_{kind}_latest_ms"] = float(np.median([row["value"] for row in mine]))
        found[f"swap_{kind}_p999_us"] = float(np.median([row["p999_us"] for row in mine]))
        found[f"swap_{kind}_over_1ms"] = float(sum(row["over_1ms"] for row in mine))
        swaps = sum(row["swaps"] for row in mine)
        if swaps:
            late = sum(row["over_1ms_at_work"] for row in mine)
            found[f"swap_{kind}_over_1ms_per_100_swaps"] = round(100.0 * late / swaps, 2)
            found[f"swap_{kind}_latest_at_work_ms"] = max(row["latest_at_work_ms"] for row in mine)
            found[f"swap_{kind}_at_work_ms"] = float(np.median([row["at_work_ms"] for row in mine]))
    return found


def _run(
    kind: str, url: str, folder: Path, author: Client, waiting: Iterator[Path], seconds: int
) -> dict[str, Any]:
    """One run of a control process, with whatever belongs to it."""
    link, kept = folder / "links" / NAME, folder / "kept" / NAME
    home = {"NEURAVERSE_HOME": str(folder / "robot"), "NEURAVERSE_REGISTRY": url, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        if kind != "in_process":
            code = "from neuraverse.cli import main; main()"
            words = ["watch", NAME, "--apply", "--into", str(folder / "links"), "--no-report"]
            stack.enter_context(_process([sys.executable, "-c", code, *words], home, kind))
        if kind == "beside":
            put_link(kept, os.readlink(link))
        words = [kind, url, str(kept if kind == "beside" else link), NAME, str(seconds)]
        control = [sys.executable, "-m", "benchmarks.fleet_swap", *words]
        process = stack.enter_context(_process(control, home, kind))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        with other_load() as busy:
            end = time.monotonic() + seconds
            while time.monotonic() < end - 1.0:
                time.sleep(1.0)
                if kind != "still":
                    author.publish(next(waiting))
            assert process.stdout is not None
            said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"the control process of {kind} ended by itself")
    return {**json.loads(said), "other_load": round(busy(), 2)}


@contextlib.contextmanager
def _process(command: list[str], home: Mapping[str, str], kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process, from its first line on."""
    process = subprocess.Popen(
        command, env=os.environ | home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"a process of {kind} did not start")
        yield process
    finally:
        process.kill()
        process.wait()


class _Cell:
    """A robot at rest that notes when each tick begins [s]."""

    def __init__(self, interface: Interface, ticks: int) -> None:
        self._observation = rest(interface)
        self._begun = np.zeros(ticks)
        self._count = 0

    def observe(self) -> Mapping[str, Any]:
        """Zeros, or the nearest values within the limits."""
        self._begun[self._count] = time.perf_counter()
        self._count += 1
        return self._observation

    def apply(self, action: Mapping[str, Any]) -> None:
        """Nothing moves."""

    def delays(self) -> tuple[np.ndarray, np.ndarray]:
        """When ticks began, and how much later than a period after the one before [s]."""
        begun = self._begun[: self._count]
        return begun[1:], np.diff(begun) - 1.0 / RATE_HZ


class _Swaps:
    """Notes when a holder began to work on each swap, and when it swapped [s]."""

    def __init__(self, holder: Holder) -> None:
        self.times: list[tuple[float, float]] = []
        self._begun = 0.0
        swap = holder._swap

        def noted(running: Running) -> None:
            self.times.append((self._begun, time.perf_counter()))
            swap(running)

        holder._swap = noted  # type: ignore[method-assign]
        if isinstance(holder, RobotAgent):
            holder.update = self._from_here(holder.update)  # type: ignore[method-assign]
        else:
            linked.load = self._from_here(linked.load)

    def _from_here(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def begun(*given: Any) -> Any:
            self._begun = time.perf_counter()
            return work(*given)

        return begun


def _holder(kind: str, url: str, link: Path, name: str) -> Holder:
    if kind != "in_process":
        return Linked(link)
    client = Client(url)
    interface = client.pull(name).manifest.interface
    offer = Offer(
        robot="panda",
        max_rate_hz=RATE_HZ,
        reach_m=10.0,
        linear_speed_m_s=10.0,
        angular_speed_rad_s=10.0,
        wrench_sensor=True,
        grip_stroke_m=1.0,
        observation=interface.observation,
        action=interface.action,
    )
    return RobotAgent(client, None, offer, follow=name)


def main(kind: str, url: str, link: Path, name: str, seconds: int) -> None:
    """Run the loop once it may, and print how late its ticks were."""
    real_time = False
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
            real_time = True
    holder = _holder(kind, url, link, name)
    swaps = _Swaps(holder)
    ticks = seconds * int(RATE_HZ)
    with holder:
        if not holder.wait(60.0) or holder.skill is None:
            raise SystemExit("there is no skill")
        cell = _Cell(holder.skill.interface, ticks)
        run(holder, _Cell(holder.skill.interface, 1000), RATE_HZ, 1000)
        print("ready", flush=True)
        sys.stdin.readline()
        swaps.times.clear()
        report = run(holder, cell, RATE_HZ, ticks)
        begun, delays = cell.delays()
        at_work = np.zeros(len(begun), bool)
        for start, end in swaps.times:
            at_work |= (begun > start) & (begun < end + _AFTER_S)
        late = delays > LATE_BAR_S
        edges = [*(f"<{1e6 * edge:g}" for edge in LATE_S), "more"]
        found = {
            "value": round(1e3 * report.late_max_s, 3),
            "unit": "ms (latest tick)",
            "p50_us": round(1e6 * report.late_p50_s, 1),
            "p99_us": round(1e6 * report.late_p99_s, 1),
            "p999_us": round(1e6 * float(np.percentile(delays, 99.9)), 1),
            "late_us": dict(zip(edges, report.late_counts, strict=True)),
            "ticks": report.ticks,
            "missed": report.missed,
            "swaps": len(swaps.times),
            "at_work_ms": round(1e3 * float(np.median([b - a for a, b in swaps.times] or [0.0])), 2),
            "over_1ms": int(late.sum()),
            "over_1ms_at_work": int((late & at_work).sum()),
            "latest_at_work_ms": round(1e3 * float(delays[at_work].max(initial=0.0)), 3),
            "real_time": real_time,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
