"""A tiny task for the learner: move a point to the origin. Torch, seeds per environment, saved state."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from neuraverse.interface import Interface, Signal
from neuraverse.learn.recipe import Recipe

MAX_STEPS = 16
REACH = Interface(
    observation=(
        Signal(name="offset", shape=(2,), unit="m", frame="W"),
        Signal(name="bias", shape=(), unit="1"),
    ),
    action=(Signal(name="velocity", shape=(2,), unit="m/s", frame="W", low=(-0.3, -0.5), high=(0.3, 0.5)),),
    rate_hz=10.0,
)


class Reach(VectorEnv):
    """Observation: the point's offset from the goal, and a constant. Success: within 0.1 of it.

    `gain` stands for the body: how far a full action moves the point.
    """

    def __init__(self, num_envs: int, gain: float = 0.4) -> None:
        self.num_envs = num_envs
        self.gain = gain
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = Box(-np.inf, np.inf, (3,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.interface = REACH
        self.action_scale = np.array([0.3, 0.5], np.float32)
        self.point = torch.zeros(num_envs, 2)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.draws = [torch.Generator() for _ in range(num_envs)]

    def _begin(self, ids) -> None:
        for i in ids:
            self.point[i] = torch.rand(2, generator=self.draws[i]) * 2.0 - 1.0
            self.steps[i] = 0

    def _obs(self):
        return torch.cat((self.point, torch.ones(self.num_envs, 1)), 1)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            for i, draw in enumerate(self.draws):
                draw.manual_seed(seed + i)
        self._begin(range(self.num_envs))
        return self._obs(), {}

    def step(self, actions):
        assert bool((actions.abs() <= 1.0).all())
        self.point += self.gain * actions
        self.steps += 1
        distance = self.point.norm(dim=1)
        terminated = distance < 0.1
        truncated = (self.steps >= MAX_STEPS) & ~terminated
        reward = -distance + 2.0 * terminated
        infos = {}
        ended = terminated | truncated
        if ended.any():
            infos = {
                "final_obs": self._obs(),
                "_final_obs": ended,
                "final_info": {
                    "success": terminated,
                    "_success": ended,
                    "distance": distance,
                    "_distance": ended,
                },
            }
            self._begin(ended.nonzero().squeeze(1).tolist())
        return self._obs(), reward, terminated, truncated, infos

    def get_state(self):
        draws = torch.stack([draw.get_state() for draw in self.draws])
        return {"point": self.point.clone(), "steps": self.steps.clone(), "draws": draws}

    def set_state(self, state):
        self.point.copy_(state["point"])
        self.steps.copy_(state["steps"])
        for draw, saved in zip(self.draws, state["draws"], strict=True):
            draw.set_state(saved.clone())
        return self._obs()


def reach_recipe(*overrides: str) -> Recipe:
    plain = {
        "skill": {"name": "acme/reach", "success": "the point is within 0.1 m", "tags": ["toy"]},
        "env": {"id": "Reach-v0"},
        "ppo": {
            "num_envs": 32,
            "steps": 8,
            "minibatches": 2,
            "hidden": [16, 16],
            "gamma": 0.9,
            "total_steps": 20_000,
        },
        "validation": {"every": 10, "episodes": 32},
    }
    return Recipe.parse(plain, overrides)


@pytest.fixture(scope="session")
def reach() -> SimpleNamespace:
    """``env(num_envs, gain)``, ``recipe(*overrides)`` and ``interface`` of the toy task."""
    return SimpleNamespace(env=Reach, recipe=reach_recipe, interface=REACH)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
