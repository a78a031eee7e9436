from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from neuraverse.errors import IncompatibleError, WeightsError
from neuraverse.runtime import stage
from neuraverse.runtime.stage import rest


class Fake:
    """A skill whose policy does what a test wants."""

    ref = "acme/fake@1.0.0"

    def __init__(self, interface, act):
        self.interface = interface
        self._act = act

    def policy(self):
        return self._act


def good(interface):
    return {s.name: np.zeros(s.shape, np.float32) for s in interface.action}


def test_a_good_skill(tiny_skill, interface):
    policy = stage(tiny_skill)
    assert policy(rest(interface))["twist"].shape == (6,)


def test_the_resting_observation_lies_within_the_limits(interface):
    limited = dataclasses.replace(interface.observation[0], low=(-1.0, 2.0, -5.0), high=(1.0, 3.0, -4.0))
    found = rest(dataclasses.replace(interface, observation=(limited, *interface.observation[1:])))
    assert found["e_pos"].tolist() == [0.0, 2.0, -4.0]
    assert found["e_pos"].dtype == np.float32
    assert {n: v.shape for n, v in found.items()} == {s.name: s.shape for s in interface.observation}


@pytest.mark.parametrize(
    "action",
    [
        {},
        {"twist": np.zeros(5)},
        {"twist": np.full(6, np.nan)},
        {"other": np.zeros(6)},
        {"twist": np.zeros((1, 6))},
    ],
)
def test_actions_that_must_not_move_anything(interface, action):
    with pytest.raises(WeightsError, match=r"acme/fake@1\.0\.0, run dry"):
        stage(Fake(interface, lambda _: action))


def test_a_policy_slower_than_its_rate(interface):
    import time

    def slow(_):
        time.sleep(0.003)
        return good(interface)

    assert stage(Fake(interface, slow))  # 50 Hz
    with pytest.raises(IncompatibleError, match="it must act every 1 ms"):
        stage(Fake(dataclasses.replace(interface, rate_hz=1000.0), slow))
