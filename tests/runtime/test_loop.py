"""The control loop, on a clock of the test's own, so that every figure is worked by hand."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from neuraverse.errors import ObservationError, UsageError
from neuraverse.runtime import run
from neuraverse.runtime.loop import LATE_S


class Cell:
    """A clock, sensors and actuators; each tick takes as long as the test says."""

    def __init__(self, interface, takes=()):
        self.now = 100.0
        self.ticks = []  # when each began [s]
        self.actions = []
        self._takes = list(takes)
        self._interface = interface

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0.0
        self.now += seconds

    def observe(self):
        self.ticks.append(self.now)
        return {s.name: np.zeros(s.shape, np.float32) for s in self._interface.observation}

    def apply(self, action):
        self.actions.append(action)
        self.now += self._takes.pop(0) if self._takes else 0.0


def go(skill, cell, **options):
    return run(skill, cell, clock=cell.clock, sleep=cell.sleep, **options)


def test_ticks_are_due_on_a_grid(tiny_skill, interface):
    cell = Cell(interface, takes=[0.0, 0.019, 0.001])
    report = go(tiny_skill, cell, steps=4)
    assert np.allclose(np.subtract(cell.ticks, 100.0), [0.0, 0.02, 0.04, 0.06])
    assert (report.ticks, report.missed) == (4, 0)
    assert report.late_max_s < 1e-9
    assert report.busy_p99_s == pytest.approx(0.019)
    assert [a["twist"].shape for a in cell.actions] == [(6,)] * 4


def test_a_slow_tick_delays_the_next_alone(tiny_skill, interface):
    cell = Cell(interface, takes=[0.025])
    report = go(tiny_skill, cell, steps=3)
    assert np.allclose(np.subtract(cell.ticks, 100.0), [0.0, 0.025, 0.04])
    assert report.missed == 0
    assert report.late_max_s == pytest.approx(0.005)


def test_ticks_that_were_missed_are_skipped(tiny_skill, interface):
    """A tick of 70 ms at 50 Hz: those due at 20 and 40 ms are lost, that of 60 ms runs at 70."""
    cell = Cell(interface, takes=[0.07])
    report = go(tiny_skill, cell, steps=3)
    assert np.allclose(np.subtract(cell.ticks, 100.0), [0.0, 0.07, 0.08])
    assert (report.ticks, report.missed) == (3, 2)
    assert report.late_max_s == pytest.approx(0.05)


def test_another_rate(tiny_skill, interface):
    cell = Cell(interface)
    go(tiny_skill.policy(), cell, rate_hz=10.0, steps=3)
    assert np.allclose(np.subtract(cell.ticks, 100.0), [0.0, 0.1, 0.2])


def test_stop_ends_it(tiny_skill, interface):
    stop = threading.Event()

    class Stopping(Cell):
        def apply(self, action):
            super().apply(action)
            if len(self.actions) == 5:
                stop.set()

    assert go(tiny_skill, Stopping(interface), stop=stop).ticks == 5


def test_no_steps(tiny_skill, interface):
    report = go(tiny_skill, Cell(interface), steps=0)
    assert (report.ticks, report.late_max_s, report.busy_p99_s) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    "options", [{"rate_hz": 0.0}, {"rate_hz": -1.0}, {"rate_hz": 1e9}, {"rate_hz": float("nan")}]
)
def test_rates_that_cannot_be(tiny_skill, interface, options):
    with pytest.raises(UsageError, match="not between 0 and 10000"):
        go(tiny_skill, Cell(interface), steps=1, **options)
    with pytest.raises(UsageError, match="-1 steps"):
        go(tiny_skill, Cell(interface), steps=-1)


def test_a_wrong_observation_applies_nothing(tiny_skill, interface):
    class Broken(Cell):
        def observe(self):
            return super().observe() | {"e_pos": np.full(3, np.nan)}

    cell = Broken(interface)
    with pytest.raises(ObservationError, match="e_pos"):
        go(tiny_skill, cell, steps=1)
    assert cell.actions == []


def test_how_late_ticks_began_is_counted(tiny_skill, interface):
    """At 50 Hz, ticks of 25, 20.7 and 27 ms: the next ones begin 5, 5.7 and 12.7 ms late."""
    report = go(tiny_skill, Cell(interface, takes=[0.025, 0.0207, 0.027]), steps=5)
    counts = dict(zip(LATE_S, report.late_counts, strict=False))
    assert sum(report.late_counts) == report.ticks == 5
    assert report.late_counts[-1] == 1  # 10 ms and more
    assert counts[10e-3] == 2
    assert counts[50e-6] == 2


def test_the_interpreter_does_not_disturb_a_loop(tiny_skill, interface):
    """Others give way within a tenth of a period, and what was there is not looked through for garbage."""
    before, seen = sys.getswitchinterval(), []

    class Looking(Cell):
        def apply(self, action):
            super().apply(action)
            seen.append((sys.getswitchinterval(), gc.get_freeze_count() > 10_000))
            raise KeyboardInterrupt

    for rate in (1000.0, 10.0):
        with pytest.raises(KeyboardInterrupt):
            go(tiny_skill, Looking(interface), rate_hz=rate)
    assert seen == [(pytest.approx(1e-4), True), (before, True)]
    assert sys.getswitchinterval() == before
    assert gc.get_freeze_count() == 0


def test_the_real_clock(tiny_skill, interface):
    report = run(tiny_skill, Cell(interface), rate_hz=200.0, steps=20)
    assert report.ticks == 20
