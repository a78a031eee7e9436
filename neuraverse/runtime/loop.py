"""A control loop at a fixed rate: observe, act, apply, sleep until the next tick is due.

Ticks are due at ``start + k / rate``, so that a late one does not shift the rest. A tick that comes more than
a period late skips those it missed, rather than running them in a burst.

While a loop runs, other threads give way to it within a tenth of its period, and the garbage collector leaves
alone what was there before: to look through that takes tens of milliseconds, in which nothing else runs.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from neuraverse.errors import UsageError

if TYPE_CHECKING:
    from neuraverse.policy import Policy
    from neuraverse.runtime.holder import Holder
    from neuraverse.skill import Skill

LATE_S = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3)
"""Edges of the histogram of how late ticks began [s]."""
_REMEMBERED_TICKS = 100_000


class Source(Protocol):
    """Sensors and actuators of one cell, real or simulated."""

    def observe(self) -> Mapping[str, Any]:
        """The present observation: one array per signal, by name, in SI units."""

    def apply(self, action: Mapping[str, Any]) -> None:
        """Command an action: one array per signal, by name, in SI units."""


@dataclass(frozen=True, kw_only=True)
class LoopReport:
    """How a loop kept its rate. Percentiles are over the last 100,000 ticks.

    Attributes:
        ticks: Ticks that ran.
        missed: Ticks that were skipped because an earlier one took too long.
        late_p50_s: Median of how late ticks began [s].
        late_p99_s: 99th percentile of that [s].
        late_max_s: The latest [s].
        late_counts: Ticks less late than each of `LATE_S` and not less than the one before; last, the others.
        busy_p99_s: 99th percentile of the time from observation to action [s].
    """

    ticks: int
    missed: int
    late_p50_s: float
    late_p99_s: float
    late_max_s: float
    late_counts: tuple[int, ...]
    busy_p99_s: float


def run(
    skill: Skill | Policy | Holder,
    source: Source,
    rate_hz: float | None = None,
    steps: int | None = None,
    *,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> LoopReport:
    """Run a skill, a policy, or whatever an agent holds at each tick.

    Args:
        skill: What acts.
        source: Where observations come from and actions go to.
        rate_hz: Ticks per second; the skill's own rate if not given.
        steps: Ticks to run; without end if None.
        stop: Ends the loop before the next tick.
        clock: Monotonic time [s].
        sleep: Waits for so many seconds.

    Returns:
        How well the rate was kept.

    Raises:
        UsageError: The rate or the number of steps makes no sense, or the agent has no skill yet.
        ObservationError: The source's observation does not fit; no action was applied for it.
    """
    act, own_rate_hz = _actor(skill)
    rate = own_rate_hz if rate_hz is None else rate_hz
    if not 0.0 < rate <= 10_000.0:
        raise UsageError(f"a rate of {rate} Hz is not between 0 and 10000")
    if steps is not None and steps < 0:
        raise UsageError(f"{steps} steps cannot be run")
    period = 1.0 / rate
    late: deque[float] = deque(maxlen=_REMEMBERED_TICKS)
    busy: deque[float] = deque(maxlen=_REMEMBERED_TICKS)
    ticks = missed = slot = 0
    with _undisturbed(period):
        start = clock()
        while (steps is None or ticks < steps) and not (stop is not None and stop.is_set()):
            due = start + slot * period
            wait = due - clock()
            if wait > 0.0:
                sleep(wait)
            behind = max(0.0, clock() - due)
            skipped = int(behind / period)
            missed += skipped
            late.append(behind)
            begun = clock()
            source.apply(act(source.observe()))
            busy.append(clock() - begun)
            ticks += 1
            slot += 1 + skipped
    return LoopReport(
        ticks=ticks,
        missed=missed,
        late_p50_s=_quantile(late, 0.5),
        late_p99_s=_quantile(late, 0.99),
        late_max_s=max(late, default=0.0),
        late_counts=_histogram(late),
        busy_p99_s=_quantile(busy, 0.99),
    )


@contextlib.contextmanager
def _undisturbed(period: float) -> Iterator[None]:
    """Keep the interpreter from delaying ticks: see docs/decisions/swap-at-one-kilohertz.md."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, period / 10.0))
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)


def _actor(
    skill: Skill | Policy | Holder,
) -> tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], float]:
    from neuraverse.policy import Policy
    from neuraverse.runtime.holder import Holder
    from neuraverse.runtime.stage import stage

    if isinstance(skill, Holder):
        held = skill.skill
        if held is None:
            raise UsageError("the agent has no skill yet", remedy="wait for one with agent.wait()")
        return skill.step, held.interface.rate_hz
    policy = skill if isinstance(skill, Policy) else stage(skill)
    return policy, policy.interface.rate_hz


def _histogram(late: deque[float]) -> tuple[int, ...]:
    counts = Counter(bisect_right(LATE_S, value) for value in late)
    return tuple(counts[k] for k in range(len(LATE_S) + 1))


def _quantile(values: deque[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
