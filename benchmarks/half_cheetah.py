"""Gymnasium's HalfCheetah-v5 as a `Task`: the same model file, observation, reward, reset and time limit.

It serves to compare simulators on the environment that everyone has, and shows that a task which is neither
an arm nor a part of this package needs nothing but `Task`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping

import mujoco
import torch
from torch import Tensor

from neuraverse.interface import Signal
from neuraverse.sim.task import Outcome, Task

CONTROL_COST = 0.1
RESET_NOISE = 0.1
GOOD_DISTANCE_M = 150.0  # 3 m/s over the whole episode, a return of about 3,000


class HalfCheetah(Task):
    """Run forward; the reward is the speed [m/s] less a tenth of the squared controls."""

    rate_hz = 20.0
    substeps = 5
    max_steps = 1000
    success = "at least 150 m in an episode of 50 s"
    forward = False  # only qpos and qvel are read
    observation = (
        Signal(
            name="posture", shape=(8,), unit="m,rad,rad,rad,rad,rad,rad,rad", description="qpos without x"
        ),
        Signal(name="velocity", shape=(9,), unit="m/s,m/s" + 7 * ",rad/s", description="qvel"),
    )
    action = (Signal(name="torque", shape=(6,), unit="1", low=(-1.0,) * 6, high=(1.0,) * 6),)

    def scene(self) -> mujoco.MjModel:
        """Compile the file that Gymnasium brings."""
        file = importlib.resources.files("gymnasium") / "envs/mujoco/assets/half_cheetah.xml"
        with importlib.resources.as_file(file) as path:
            return mujoco.MjModel.from_xml_path(str(path))

    def setup(self) -> None:
        """Remember x from step to step, and the last action for its cost."""
        self._initial = torch.from_numpy(self.physics.model.qpos0.copy())
        self._x = self.buffer("x", dtype=torch.float64)
        self._cost = self.buffer("cost")

    def reset(self, ids: Tensor) -> None:
        """Uniform noise on the posture, normal noise on the velocity."""
        physics = self.physics
        physics.reset(ids)
        physics.qpos[ids] = self._initial + self.random.between(-RESET_NOISE, RESET_NOISE, 9, ids)
        physics.qvel[ids] = RESET_NOISE * self.random.normal(9, ids)
        physics.forward(ids)
        self._x[ids] = physics.qpos[ids, 0]

    def apply(self, action: Tensor) -> None:
        """Torques as they come."""
        self.physics.ctrl.copy_(action)
        torch.sum(action.square(), 1, out=self._cost)

    def outcome(self) -> Outcome:
        """Speed over the step, and what the controls cost."""
        x = self.physics.qpos[:, 0]
        speed = (x - self._x) * self.rate_hz
        self._x.copy_(x)
        return Outcome(
            reward={"forward": speed.to(torch.float32), "ctrl": -CONTROL_COST * self._cost},
            terminated=torch.zeros(self.num_envs, dtype=torch.bool),
            info={"success": x >= GOOD_DISTANCE_M, "distance_m": x.to(torch.float32)},
        )

    def observe(self, out: Mapping[str, Tensor]) -> None:
        """Posture without x, then velocity."""
        out["posture"].copy_(self.physics.qpos[:, 1:])
        out["velocity"].copy_(self.physics.qvel)
