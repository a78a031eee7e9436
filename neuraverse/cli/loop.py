"""Behind ``run``: a simulated cell, or none, as the source of a control loop."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neuraverse.cli.cell import recipe_for
from neuraverse.cli.output import note
from neuraverse.errors import IncompatibleError
from neuraverse.runtime import LoopReport
from neuraverse.runtime import run as control
from neuraverse.runtime.stage import rest

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from neuraverse.interface import Interface
    from neuraverse.skill import Skill


class Rest:
    """A robot at rest that does nothing."""

    def __init__(self, interface: Interface) -> None:
        self._observation = rest(interface)

    def observe(self) -> Mapping[str, Any]:
        """Zeros, or the nearest values within the limits."""
        return self._observation

    def apply(self, action: Mapping[str, Any]) -> None:
        """Nothing moves."""


class Cell:
    """One simulated cell behind named signals; ends the loop after so many episodes.

    Args:
        env: A vector environment of one.
        interface: Its signals.
        episodes: How many to run.
        seed: Of the first.

    Attributes:
        stop: Set after the last episode.
        done: What each ended episode reported, by name.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], interface: Interface, episodes: int, seed: int) -> None:
        self.stop = threading.Event()
        self.done: list[dict[str, float]] = []
        self._env, self._interface, self._episodes = env, interface, episodes
        self._scale = getattr(env, "action_scale", None)  # such an environment takes normalised actions
        self._shape = env.action_space.shape
        self._flat = np.asarray(env.reset(seed=seed)[0], np.float32).reshape(-1)
        self._return, self._length = 0.0, 0

    def observe(self) -> Mapping[str, Any]:
        """The present observation, by name."""
        found, start = {}, 0
        for signal in self._interface.observation:
            found[signal.name] = self._flat[start : start + signal.size].reshape(signal.shape)
            start += signal.size
        return found

    def apply(self, action: Mapping[str, Any]) -> None:
        """Command an action in SI units and let the simulation go on by one control step."""
        flat = np.concatenate([np.reshape(action[s.name], -1) for s in self._interface.action])
        if self._scale is not None:
            flat = flat / self._scale
        obs, reward, terminated, truncated, infos = self._env.step(flat.reshape(self._shape))
        self._flat = np.asarray(obs, np.float32).reshape(-1)
        self._return += float(reward[0])
        self._length += 1
        if terminated[0] or truncated[0]:
            self._end(infos.get("final_info", {}))

    def _end(self, infos: Mapping[str, Any]) -> None:
        ended = {"return": self._return, "length": float(self._length)}
        for name, value in infos.items():
            known = not name.startswith("_") and name not in ("episode_return", "episode_length")
            if known and np.shape(value) == (1,) and np.asarray(value).dtype.kind in "biuf":
                ended[name] = float(value[0])
        self.done.append(ended)
        self._return, self._length = 0.0, 0
        if len(self.done) >= self._episodes:
            self.stop.set()


def dry(skill: Skill, steps: int, rate: float | None) -> LoopReport:
    """Run a skill on nothing."""
    return control(skill, Rest(skill.interface), rate, steps)


def simulated(
    skill: Skill,
    *,
    robot: str | None,
    tool: str | None,
    env: str | None,
    episodes: int,
    steps: int | None,
    rate: float | None,
    seed: int,
) -> tuple[LoopReport, list[dict[str, float]], str]:
    """Run a skill in a simulated cell.

    Returns:
        How the loop kept its rate, what each episode reported, and where it ran.

    Raises:
        IncompatibleError: The skill does not fit the cell.
    """
    from neuraverse.learn import make_env
    from neuraverse.learn.adopt import interface_problems
    from neuraverse.learn.envs import interface_of, outside

    settings = recipe_for(skill.manifest, env=env, robot=robot, tool=tool).env
    where = settings.robot or settings.id
    world = make_env(settings, 1)
    interface = interface_of(world)
    problems = interface_problems(skill.interface, interface)
    if problems:
        raise IncompatibleError(f"{skill.ref} cannot run on {where}", problems=problems)
    for sentence in outside(world, skill.manifest):
        note(f"outside what it was trained over: {sentence}")
    cell = Cell(world, interface, episodes, seed)
    report = control(skill, cell, rate, steps, stop=cell.stop)
    return report, cell.done, where
