"""The door between learning and environments: any `gymnasium.vector.VectorEnv` as float32 torch tensors.

An environment must reset ended episodes within the step (`AutoresetMode.SAME_STEP`) and hand over the final
observation, or a time-out could not be told from an end. Arrays may be NumPy or torch; they are not copied
where type and device allow it, so a tensor from here is valid until the next call.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from neuraverse.errors import ConfigError, MissingExtraError, UnknownNameError
from neuraverse.interface import Interface, Signal
from neuraverse.learn.recipe import EnvSettings
from neuraverse.manifest import Body, SkillManifest

_MAX_SIZE = 4096


def make_env(settings: EnvSettings, num_envs: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Make a vector environment with same-step autoreset.

    Args:
        settings: The id, and what it is made with.
        num_envs: Number of environments.
        kwargs: More keyword arguments for the environment; they override those of `settings`.

    Raises:
        UnknownNameError: There is no environment of that id, or no module of that name.
        ConfigError: The environment refuses its arguments, or needs a package that no extra of ours installs.
        MissingExtraError: A package that it needs is not installed.
    """
    module, _, name = settings.id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(f"{error.name}.")):
                raise UnknownNameError("environment module", module) from error
            raise MissingExtraError(error.name or "?", "train", f"the environment {settings.id}") from error
    if name not in gymnasium.registry:
        raise UnknownNameError("environment", name, gymnasium.registry)
    arguments: dict[str, Any] = {**settings.kwargs}
    if settings.robot is not None:
        arguments["robot"] = settings.robot
    if settings.randomise:
        arguments["randomise"] = dict(settings.randomise)
    arguments |= kwargs
    if gymnasium.registry[name].vector_entry_point is None:
        arguments |= {
            "vectorization_mode": "sync",
            "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP},
        }
    try:
        return gymnasium.make_vec(name, num_envs=num_envs, **arguments)
    except gymnasium.error.DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise MissingExtraError("mujoco", "train", f"the environment {settings.id}") from error
        raise ConfigError(f"the environment {settings.id} needs more than is installed: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"the environment {settings.id} refuses its arguments: {error}", remedy="look at [env]"
        ) from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"the environment {settings.id} cannot be made: {error}") from error


def outside(env: VectorEnv[Any, Any, Any], manifest: SkillManifest) -> list[str]:
    """One sentence for each figure of the environment's body that the skill was not trained over."""
    robot = getattr(getattr(env.unwrapped, "task", None), "robot", None)
    return [] if robot is None else Body(**robot.body()).outside(manifest.randomised)


class Step(NamedTuple):
    """What one step of all environments gave; observations are those of new episodes where one ended."""

    obs: Tensor  # (N, obs_dim)
    reward: Tensor  # (N,)
    terminated: Tensor  # (N,) bool
    truncated: Tensor  # (N,) bool
    ended: Tensor  # (k,) indices of the environments whose episode ended
    infos: Mapping[str, Any]


class TorchEnv:
    """A vector environment with flat float32 observations and actions in [-1, 1].

    Args:
        env: Same-step autoreset, Box spaces.
        device: Where tensors are wanted.

    Attributes:
        action_scale: (act_dim,) numpy float32; SI action = scale * action + offset.
        action_offset: (act_dim,).

    Raises:
        ConfigError: Another autoreset mode, or spaces that are no Box.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], device: torch.device | str = "cpu") -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"the vector environment has autoreset mode {mode}, learning needs SAME_STEP",
                remedy='pass vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP} to gymnasium.make_vec',
            )
        obs_space, act_space = env.single_observation_space, env.single_action_space
        for kind, space in (("observation", obs_space), ("action", act_space)):
            if not isinstance(space, Box):
                raise ConfigError(f"the {kind} space is {space}, learning needs a Box")
            if int(np.prod(space.shape)) > _MAX_SIZE:
                raise ConfigError(f"the {kind} space has shape {space.shape}, more than {_MAX_SIZE} numbers")
        assert isinstance(obs_space, Box)
        assert isinstance(act_space, Box)
        self.env = env
        self.device = torch.device(device)
        self.num_envs = env.num_envs
        self.obs_dim = int(np.prod(obs_space.shape))
        self.act_dim = int(np.prod(act_space.shape))
        self._act_shape = (env.num_envs, *act_space.shape)
        # An element without limits is taken as [-1, 1].
        bounded = np.isfinite(act_space.low) & np.isfinite(act_space.high)
        low = np.where(bounded, act_space.low, -1.0).astype(np.float32).reshape(-1)
        high = np.where(bounded, act_space.high, 1.0).astype(np.float32).reshape(-1)
        scale, offset = (high - low) / 2.0, (high + low) / 2.0
        self._plain = bool((scale == 1.0).all() and (offset == 0.0).all())
        self._scale = torch.from_numpy(scale)
        self._offset = torch.from_numpy(offset)
        own = getattr(env, "action_scale", None)  # such an environment takes normalised actions
        self.action_scale = scale if own is None else np.asarray(own, np.float32).reshape(-1)
        self.action_offset = offset if own is None else np.zeros_like(offset)
        self._torch = False  # whether the environment speaks torch, and where its tensors live
        self._home = torch.device("cpu")

    def _tensor(self, value: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.as_tensor(value, dtype=dtype, device=self.device)

    def reset(self, seed: int | None = None) -> Tensor:
        """Begin new episodes, environment i with the seed ``seed + i``; observations (N, obs_dim)."""
        obs, _ = self.env.reset(seed=seed)
        self._learn_kind(obs)
        return self._tensor(obs).reshape(self.num_envs, -1)

    def step(self, actions: Tensor) -> Step:
        """Apply actions (N, act_dim); they must lie in [-1, 1]."""
        actions = actions.detach()
        if not self._plain:
            actions = torch.addcmul(self._offset, actions.cpu(), self._scale)
        actions = actions.to(self._home).reshape(self._act_shape)
        obs, reward, terminated, truncated, infos = self.env.step(actions if self._torch else actions.numpy())
        ended = self._tensor(terminated, torch.bool), self._tensor(truncated, torch.bool)
        return Step(
            self._tensor(obs).reshape(self.num_envs, -1),
            self._tensor(reward),
            *ended,
            (ended[0] | ended[1]).nonzero().squeeze(1),
            infos,
        )

    def final_obs(self, infos: Mapping[str, Any], indices: Tensor) -> Tensor:
        """Final observations (k, obs_dim) of the episodes that ended at `indices` in the step of `infos`."""
        rows = infos["final_obs"]
        if isinstance(rows, np.ndarray) and rows.dtype == object:
            rows = np.stack([rows[i] for i in indices.tolist()])
            return self._tensor(rows).reshape(len(indices), -1)
        return self._tensor(rows)[indices].reshape(len(indices), -1)

    def final_info(self, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Numbers (N,) that the environments report of episodes that ended; valid where one did."""
        found = {}
        for name, value in infos.get("final_info", {}).items():
            if name.startswith("_") or isinstance(value, Mapping):
                continue
            array = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            if array.shape == (self.num_envs,) and array.dtype.kind in "biuf":
                found[name] = array
        return found

    def get_state(self) -> dict[str, Tensor] | None:
        """Everything the next step depends on, if the environment can tell."""
        getter = getattr(self.env, "get_state", None)
        return None if getter is None else dict(getter())

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `get_state` returned."""
        self._learn_kind(self.env.set_state(state))  # type: ignore[attr-defined]

    def _learn_kind(self, obs: Any) -> None:
        self._torch = isinstance(obs, Tensor)
        self._home = obs.device if isinstance(obs, Tensor) else torch.device("cpu")


def interface_of(env: VectorEnv[Any, Any, Any]) -> Interface:
    """The environment's own interface, or for a plain one an interface of one observation and one action.

    Raises:
        ConfigError: A space is no Box.
    """
    own = getattr(env, "interface", None)
    if isinstance(own, Interface):
        return own
    port = TorchEnv(env)
    low, high = port.action_offset - port.action_scale, port.action_offset + port.action_scale
    rate = env.metadata.get("render_fps") or 50
    return Interface(
        observation=(Signal(name="observation", shape=(port.obs_dim,), unit="1"),),
        action=(
            Signal(
                name="action",
                shape=(port.act_dim,),
                unit="1",
                low=tuple(float(x) for x in low),
                high=tuple(float(x) for x in high),
            ),
        ),
        rate_hz=float(rate),
    )
