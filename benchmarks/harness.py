"""What all benchmarks share: alternated runs, medians, ratios, and the report that becomes the JSON file.

A `Contender` is opened once, warmed up, and then measured once per round; the contenders take turns within a
round, and every round begins with another one, so that a machine which slows down slows all of them down.
Closed contenders hold neither threads nor memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from neuraverse.storage import write_atomic

ROUNDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to run.

    Attributes:
        quick: Shortest runs, one round: whether it works, not how fast it is.
        rounds: Runs of each contender.
        extra: Options of a single benchmark.
    """

    quick: bool = False
    rounds: int = ROUNDS
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def seconds(self, normal: float) -> float:
        """Length of one run [s]."""
        return 0.05 if self.quick else normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that is measured.

    Attributes:
        name: Its row's name.
        open: A context that yields ``run(seconds) -> (work done, seconds it took)``.
        settings: What its row should say of it.
    """

    name: str
    open: Callable[[], contextlib.AbstractContextManager[Callable[[float], tuple[float, float]]]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class Report:
    """What a benchmark found.

    Attributes:
        rows: One per run.
        ratios: Ours over each peer, by name.
        bars: What the ratio or figure of that name must reach; ``{"at_least": x}`` or ``{"at_most": x}``.
        figures: Other results by name, units in the name.
        notes: What a reader has to know to judge them.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    bars: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def median(self, name: str) -> float:
        """Median value of the rows of a contender."""
        return float(statistics.median(row["value"] for row in self.rows if row["contender"] == name))

    def best(self, names: Sequence[str]) -> str:
        """The contender with the greatest median among `names`."""
        return max(names, key=self.median)

    def ratio(self, name: str, ours: float, peer: float, at_least: float | None = None) -> None:
        """Record ours over a peer, and its bar if there is one."""
        self.ratios[name] = round(ours / peer, 4)
        if at_least is not None:
            self.bars[name] = {"at_least": at_least}

    def lines(self) -> list[str]:
        """The results for people."""
        found = []
        names = dict.fromkeys(row["contender"] for row in self.rows)
        width = max((len(name) for name in [*names, *self.ratios, *self.figures]), default=0)
        for name in names:
            values = [row["value"] for row in self.rows if row["contender"] == name]
            unit = next(row["unit"] for row in self.rows if row["contender"] == name)
            spread = f"{min(values):,.0f} to {max(values):,.0f}, n = {len(values)}"
            found.append(f"  {name:{width}}  {statistics.median(values):12,.0f} {unit}  ({spread})")
        for name, value in [*self.ratios.items(), *self.figures.items()]:
            bar = self.bars.get(name, {})
            verdict = ""
            for side, limit in bar.items():
                met = value >= limit if side == "at_least" else value <= limit
                verdict = f"  {'meets' if met else 'MISSES'} {side.replace('_', ' ')} {limit:g}"
            found.append(f"  {name:{width}}  {value:12,.3f}{verdict}")
        return found

    def save(self, path: Path, benchmark: str, options: Options) -> None:
        """Write the JSON file, whole or not at all."""
        content = {
            "benchmark": benchmark,
            "quick": options.quick,
            "machine": machine.describe(),
            "versions": machine.versions(),
            **dataclasses.asdict(self),
        }
        write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def alternate(
    contenders: Sequence[Contender], options: Options, *, seconds: float, unit: str, warm_up_s: float = 0.5
) -> list[dict[str, Any]]:
    """Measure all contenders `options.rounds` times, taking turns.

    Returns:
        One row per run: ``contender``, ``round``, ``value`` [unit], ``unit``, ``seconds``,
        ``other_load`` (CPUs that other processes kept busy meanwhile) and the contender's settings.
    """
    rows: list[dict[str, Any]] = []
    length = options.seconds(seconds)
    with contextlib.ExitStack() as stack:
        runs = []
        for contender in contenders:
            say(f"preparing {contender.name}")
            run = stack.enter_context(contender.open())
            run(min(warm_up_s, length))
            runs.append((contender, run))
        total = options.rounds * len(runs)
        for k in range(options.rounds):
            shift = k % len(runs)
            for contender, run in runs[shift:] + runs[:shift]:
                time.sleep(0.0 if options.quick else 0.2)  # idle threads of the one before fall asleep
                with machine.other_load() as load:
                    work, took = run(length)
                row = {
                    "contender": contender.name,
                    "round": k,
                    "value": round(work / took, 3),
                    "unit": unit,
                    "seconds": round(took, 4),
                    "other_load": round(load(), 2),
                    **contender.settings,
                }
                rows.append(row)
                left = (total - len(rows)) * (length + 0.2)
                say(
                    f"{len(rows):3}/{total}  {contender.name}: {row['value']:,.0f} {unit}, {left:.0f} s to go"
                )
    return rows


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(step: Callable[[], object], per_call: float, seconds: float) -> tuple[float, float]:
    """Call `step` until `seconds` have passed; ``(calls × per_call, seconds it took)``."""
    calls = 0
    start = now = time.perf_counter()
    while now - start < seconds:
        step()
        calls += 1
        now = time.perf_counter()
    return calls * per_call, now - start


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)
