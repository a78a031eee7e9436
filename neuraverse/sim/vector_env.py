"""`TaskVectorEnv`: a batch of one task's environments, as Gymnasium's vector API.

Ended episodes start anew within the same step (Gymnasium's ``AutoresetMode.SAME_STEP``): the observation
returned is the new episode's first, and ``infos["final_obs"]`` holds the last of the old one, with
``infos["final_info"]`` beside it in Gymnasium's own layout (arrays ``(N,)`` and masks with a leading ``_``).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from neuraverse.errors import ConfigError
from neuraverse.interface import Interface
from neuraverse.sim.task import Task


class TaskVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps `num_envs` copies of a task together.

    Args:
        task: The task; the environment attaches it to its own physics.
        num_envs: Number of environments, N.
        backend: Whether arrays go in and out as ``numpy`` or as ``torch`` tensors.
        threads: Threads of the physics; 0 for all CPUs of the process.
        autoreset: Whether ended episodes start anew within the step; without, they go on until `reset`.
        render_mode: ``rgb_array`` to have `render` draw the first environment.

    Attributes:
        interface: Named signals behind the flat observation and action.
        action_scale: SI value of a full action, ``(action_size,)`` float32: ``action_si = action * scale``.
        reward_terms: Named reward terms of the last step, each ``(N,)``; their sum is the reward.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        *,
        backend: Literal["numpy", "torch"] = "numpy",
        threads: int = 0,
        autoreset: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}", remedy="at least one environment is needed")
        if backend not in ("numpy", "torch"):
            raise ConfigError(f"backend {backend!r} is neither 'numpy' nor 'torch'")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode {render_mode!r} is neither None nor 'rgb_array'")
        self.task = task
        self.num_envs = num_envs
        self.backend = backend
        self.render_mode = render_mode
        self._autoreset = autoreset
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED,
            "render_modes": ["rgb_array"],
            "render_fps": round(task.rate_hz),
        }
        task.attach(num_envs, threads)
        self.interface: Interface = task.interface
        self.action_scale = np.concatenate([np.asarray(s.high, np.float32) for s in task.action])
        if any(tuple(-x for x in s.low) != s.high or not s.high for s in task.action):
            raise ConfigError("action signals must be bounded symmetrically about zero")
        low, high = (np.concatenate([_limits(s, side) for s in task.observation]) for side in ("low", "high"))
        self.single_observation_space = Box(low, high, dtype=np.float32)
        self.single_action_space = Box(-1.0, 1.0, (self.interface.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._scale = torch.from_numpy(self.action_scale)
        self._obs = torch.zeros(num_envs, self.interface.observation_size)
        self.observation_views: dict[str, Tensor] = {}
        start = 0
        for signal in task.observation:
            columns = self._obs[:, start : start + signal.size]
            self.observation_views[signal.name] = columns.view(num_envs, *signal.shape)
            start += signal.size
        self._steps = torch.zeros(num_envs, dtype=torch.int64)
        self._return = torch.zeros(num_envs)
        self.reward_terms: Mapping[str, Tensor] = {}
        self._seeded = False
        self._renderer: Any = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: Environment ``i`` takes the seed ``seed + i``; None goes on with the present streams.
            options: ``{"reset_mask": (N,) bool}`` restarts only some environments.

        Returns:
            Observations ``(N, observation_size)`` and an empty dictionary.
        """
        if isinstance(seed, list):
            if seed and any(s is None or s != seed[0] + i for i, s in enumerate(seed)):  # type: ignore[operator]
                raise ConfigError(
                    "a list of seeds must be consecutive", remedy="pass the first one as an int"
                )
            seed = seed[0] if seed else None
        if seed is None and not self._seeded:
            seed = secrets.randbelow(2**31)
        if seed is not None:
            self.task.random.seed(seed)
            self._seeded = True
        mask = (options or {}).get("reset_mask")
        ids = torch.arange(self.num_envs) if mask is None else torch.as_tensor(mask).nonzero().squeeze(1)
        self._begin(ids)
        self.task.observe(self.observation_views)
        return self._out(self._obs.clone()), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Apply normalised actions ``(N, action_size)``, clipped to [-1, 1], for one control step."""
        action = torch.as_tensor(actions, dtype=torch.float32).clamp(-1.0, 1.0).mul_(self._scale)
        task = self.task
        task.apply(action)
        task.physics.step(task.substeps)
        outcome = task.outcome()
        self.reward_terms = outcome.reward
        task.observe(self.observation_views)
        self._steps += 1

        reward = torch.stack(tuple(outcome.reward.values())).sum(0)
        # A simulation that blew up ends as a failure; its numbers must not reach a learner.
        broken = ~torch.isfinite(self._obs.sum(1) + reward)
        terminated = outcome.terminated | broken
        truncated = (self._steps >= task.max_steps) & ~terminated
        infos: dict[str, Any] = {}
        if broken.any():
            reward = torch.where(broken, 0.0, reward)
            self._obs[broken] = 0.0
        self._return += reward
        done = terminated | truncated
        if done.any():
            info = {**outcome.info, "episode_return": self._return, "episode_length": self._steps}
            info["success"] = outcome.info["success"] & ~broken
            info["diverged"] = broken
            self._report(infos, done, info)
            if self._autoreset:
                self._begin(done.nonzero().squeeze(1))
                task.observe(self.observation_views)
        return (
            self._out(self._obs.clone()),
            self._out(reward),
            self._out(terminated),
            self._out(truncated),
            infos,
        )

    def _begin(self, ids: Tensor) -> None:
        self.task.reset(ids)
        self._steps[ids] = 0
        self._return[ids] = 0.0

    def _report(self, infos: dict[str, Any], done: Tensor, info: dict[str, Tensor]) -> None:
        mask = self._out(done)
        final: dict[str, Any] = {}
        for name, values in info.items():
            final[name] = self._out(values.clone())
            final[f"_{name}"] = mask
        infos["final_obs"] = self._out(self._obs.clone())
        infos["_final_obs"] = mask
        infos["final_info"] = final
        infos["_final_info"] = mask

    def _out(self, value: Tensor) -> Any:
        return value if self.backend == "torch" else value.numpy()

    def get_state(self) -> dict[str, Tensor]:
        """A copy of everything that the next step depends on, as tensors."""
        return {
            **self.task.get_state(),
            "env.steps": self._steps.clone(),
            "env.return": self._return.clone(),
            "env.obs": self._obs.clone(),
        }

    def set_state(self, state: dict[str, Tensor]) -> Any:
        """Restore what `get_state` returned; the environment goes on with the same numbers.

        Returns:
            The observations ``(N, observation_size)`` of that moment.
        """
        self.task.set_state(state)
        self._steps.copy_(state["env.steps"])
        self._return.copy_(state["env.return"])
        self._obs.copy_(state["env.obs"])
        self._seeded = True
        return self._out(self._obs.clone())

    def render(self) -> Any:
        """A picture of the first environment, ``(height, width, 3)`` uint8, or None without a render mode."""
        if self.render_mode is None:
            return None
        from neuraverse.sim.render import Renderer

        if self._renderer is None:
            self._renderer = Renderer(self.task.physics.model)
        return self._renderer.frame(self.task.physics, 0)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class TaskEnv(gymnasium.Env[Any, Any]):
    """One environment of a task, as Gymnasium's plain API: a batch of one without its leading axis.

    Args:
        task: The task.
        render_mode: ``rgb_array`` or None.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, task: Task, *, render_mode: str | None = None) -> None:
        self.vector = TaskVectorEnv(task, 1, threads=1, autoreset=False, render_mode=render_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(task.rate_hz)}
        self.render_mode = render_mode
        self.interface = self.vector.interface
        self.action_scale = self.vector.action_scale
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    @property
    def task(self) -> Task:
        """The task behind this environment."""
        return self.vector.task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode."""
        super().reset(seed=seed)
        obs, _ = self.vector.reset(seed=seed)
        return obs[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one normalised action; the episode's results are in the info of its last step."""
        obs, reward, terminated, truncated, infos = self.vector.step(np.asarray(action)[None])
        final = infos.get("final_info", {})
        info = {name: value[0].item() for name, value in final.items() if not name.startswith("_")}
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        """A picture of the scene, ``(height, width, 3)`` uint8."""
        return self.vector.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self.vector.close()


def _limits(signal: Any, side: str) -> np.ndarray:
    values = getattr(signal, side)
    fill = -np.inf if side == "low" else np.inf
    return np.asarray(values, np.float32) if values else np.full(signal.size, fill, np.float32)
