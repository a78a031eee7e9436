"""What a task is: a scene, named signals, reward terms, termination and success in physical units.

A `Task` is written batch first: every tensor has a leading axis of environments, there is no loop over them,
and the same code runs on CPU and CUDA. It reads ``qpos``, ``qvel``, ``ctrl``, ``time`` and *named sensors* of
its `Physics`; what it must remember between steps lives in tensors made by `Task.buffer`, so that an
environment can be saved and resumed to the same numbers.

The order of one step, which `neuraverse.sim.vector_env.TaskVectorEnv` drives:

    apply(action) → physics.step(substeps) → outcome() → observe() → reset(ids that ended) → observe()
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping

import mujoco
import torch
from torch import Tensor

from neuraverse.interface import Interface, Requirements, Signal
from neuraverse.sim.physics import Physics
from neuraverse.sim.randomness import Randomness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step led to.

    Attributes:
        reward: Named reward terms, each ``(N,)`` float32; the environment adds them up.
        terminated: Episodes that ended by themselves (success and failure alike), ``(N,)`` bool.
        info: Named results, each ``(N,)``, reported when an episode ends; must hold ``success`` (bool).
    """

    reward: Mapping[str, Tensor]
    terminated: Tensor
    info: Mapping[str, Tensor]


class Task(ABC):
    """Base of all tasks; copy an example under ``envs/neuraverse_envs`` to write one.

    Attributes:
        observation: Signals that a policy reads, in order.
        action: Signals that a policy commands, in order; each must be bounded symmetrically about zero.
        rate_hz: Control rate.
        substeps: Physics steps in one control step; the model's timestep is set to match.
        max_steps: Control steps after which an episode is truncated.
        requires: What a body must have, beyond the signals.
        success: What counts as success, in one sentence with units.
        forward: Whether sensors are brought up to the last substep; a task that reads only ``qpos`` and
            ``qvel`` sets it to False and saves the time.
        physics: The simulations; there from `setup` on.
        random: One random stream per environment; there from `setup` on.
    """

    observation: tuple[Signal, ...]
    action: tuple[Signal, ...]
    rate_hz: float
    substeps: int
    max_steps: int
    requires: Requirements = Requirements()
    success: str
    forward: bool = True

    physics: Physics
    random: Randomness

    @abstractmethod
    def scene(self) -> mujoco.MjModel:
        """Build and compile the model."""

    @abstractmethod
    def setup(self) -> None:
        """Bind sensors and make buffers; `physics`, `random` and `num_envs` exist by now."""

    @abstractmethod
    def reset(self, ids: Tensor) -> None:
        """Begin new episodes in environments `ids` (sorted int64), drawing only from ``self.random``."""

    @abstractmethod
    def apply(self, action: Tensor) -> None:
        """Turn an action ``(N, action_size)``, float32 in SI units, into ``physics.ctrl``."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Judge the state after the physics step; called exactly once a step."""

    @abstractmethod
    def observe(self, out: Mapping[str, Tensor]) -> None:
        """Write each signal into ``out[name]``, ``(N, *shape)`` float32; must not change any state."""

    def expert(self) -> Tensor:
        """A scripted solution: the action for the present state, ``(N, action_size)`` in SI units.

        It is the ceiling that a learner is compared with, and the proof that success can be reached.

        Raises:
            NotImplementedError: The task has no scripted expert.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scripted expert")

    def attach(self, num_envs: int, threads: int = 0) -> None:
        """Compile the scene, start `num_envs` simulations and set the task up on them."""
        model = self.scene()
        model.opt.timestep = 1.0 / (self.rate_hz * self.substeps)
        self.num_envs = num_envs
        self.physics = Physics(model, num_envs, threads=threads, forward=self.forward)
        self.random = Randomness(num_envs)
        self._buffers: dict[str, Tensor] = {}
        self.setup()

    def buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A zeroed tensor ``(N, *shape)`` that belongs to the saved state; write into it in place."""
        if name in self._buffers:
            raise ValueError(f"task buffer {name!r} exists already")
        self._buffers[name] = torch.zeros(self.num_envs, *shape, dtype=dtype)
        return self._buffers[name]

    @property
    def interface(self) -> Interface:
        """The contract of skills learned on this task."""
        return Interface(
            observation=self.observation, action=self.action, rate_hz=self.rate_hz, requires=self.requires
        )

    def get_state(self) -> dict[str, Tensor]:
        """A copy of everything that the next step depends on."""
        state = {f"physics.{k}": v for k, v in self.physics.get_state().items()}
        state.update({f"buffer.{k}": v.clone() for k, v in self._buffers.items()})
        state["random.key"] = self.random.key.clone()
        state["random.counter"] = self.random.counter.clone()
        return state

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `get_state` returned."""
        prefix = "physics."
        self.physics.set_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for name, buffer in self._buffers.items():
            buffer.copy_(state[f"buffer.{name}"])
        self.random.key.copy_(state["random.key"])
        self.random.counter.copy_(state["random.counter"])
