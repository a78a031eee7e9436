"""One `register()` for a task: `gymnasium.make` and `make_vec` both find it by the same id.

The canonical id is ``"module:namespace/Name-v0"``; any process, a Ray worker too, imports the module by
itself and finds the task registered.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium

from neuraverse.errors import ConfigError
from neuraverse.sim.task import Task
from neuraverse.sim.vector_env import TaskEnv, TaskVectorEnv

BUILTIN = "neuraverse_envs"  # imported by name when tasks are listed: sim never imports envs by itself
_tasks: dict[str, Callable[..., Task]] = {}  # canonical id -> the task


def register(env_id: str, task: Callable[..., Task], **defaults: Any) -> None:
    """Make a task known to Gymnasium under `env_id` (``namespace/Name-vN``).

    Args:
        env_id: The id, without the module.
        task: The task's class; keyword arguments of ``make`` that are not the environment's go to it.
        defaults: Keyword arguments that hold unless ``make`` overrides them.

    Raises:
        ConfigError: The id is taken or malformed.
    """
    if env_id in gymnasium.registry:
        raise ConfigError(
            f"the environment id {env_id!r} is registered already", remedy="choose another name or version"
        )
    try:
        gymnasium.register(
            env_id,
            entry_point=partial(_make_env, task),
            vector_entry_point=partial(_make_vector_env, task),
            kwargs=defaults,
            disable_env_checker=True,
            order_enforce=False,
        )
    except gymnasium.error.Error as err:
        raise ConfigError(
            f"{env_id!r} is no environment id ({err})", remedy="write namespace/Name-v0"
        ) from err
    _tasks[f"{task.__module__.partition('.')[0]}:{env_id}"] = task


def tasks() -> dict[str, Callable[..., Task]]:
    """The tasks registered so far, the built-in ones included, by canonical id."""
    importlib.import_module(BUILTIN)
    return dict(sorted(_tasks.items()))


def _make_env(task: Callable[..., Task], *, render_mode: str | None = None, **kwargs: Any) -> TaskEnv:
    return TaskEnv(task(**kwargs), render_mode=render_mode)


def _make_vector_env(
    task: Callable[..., Task],
    *,
    num_envs: int = 1,
    backend: str = "numpy",
    threads: int = 0,
    render_mode: str | None = None,
    **kwargs: Any,
) -> TaskVectorEnv:
    return TaskVectorEnv(
        task(**kwargs),
        num_envs,
        backend=backend,  # type: ignore[arg-type]
        threads=threads,
        render_mode=render_mode,
    )
