"""The worker: one Ray actor that trains, fine-tunes or evaluates, and tells how far it is.

Its job runs in one thread while `poll` is answered in another, so that progress reaches the driver as it
happens and without a process in between.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import platform
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from neuraverse.errors import IntegrityError

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from neuraverse.interface import Interface
    from neuraverse.learn.evaluation import Episodes, Scored
    from neuraverse.learn.policy import ActorCritic
    from neuraverse.learn.progress import Progress, Result
    from neuraverse.learn.recipe import EnvSettings, Recipe

POLL_S = 10.0  # the longest that a poll waits for news


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a worker runs, and what it was given.

    Attributes:
        host: Name of the machine.
        node: Ray's id of the node.
        pid: Process id there.
        resources: Such as ``{"CPU": 1.0, "GPU": 0.5}``.
        device: What it computes on unless it is told otherwise.
    """

    host: str
    node: str
    pid: int
    resources: dict[str, float]
    device: str


@dataclass(frozen=True, kw_only=True)
class News:
    """An answer to a poll."""

    where: Where
    progress: list[Progress]


class Worker:
    """Does one job at a time; `poll` and `stop` may be called meanwhile.

    Args:
        threads: Threads for torch and for the physics.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._where = _where()
        self._news = threading.Condition()
        self._progress: list[Progress] = []
        self._greeted = False
        self._finished = False
        self._stop = threading.Event()

    def poll(self, since: int) -> News:
        """Progress from the entry `since` on, as soon as there is some; the first answer comes at once."""
        with self._news:
            self._news.wait_for(
                lambda: not self._greeted or self._finished or len(self._progress) > since, POLL_S
            )
            self._greeted = True
            return News(where=self._where, progress=self._progress[since:])

    def stop(self) -> None:
        """End training after the iteration that runs now; what was learned so far is the result."""
        self._stop.set()

    def train(
        self, *, recipe: Recipe, seed: int, run_dir: Path, total_steps: int | None, device: str | None
    ) -> Result:
        """Train from scratch, or go on with the run in `run_dir`."""
        from neuraverse.learn.trainer import Trainer

        with self._job(), self._envs(recipe) as (env, eval_env):
            trainer = Trainer(
                env,
                recipe,
                seed=seed,
                device=device or self._where.device,
                run_dir=run_dir,
                eval_env=eval_env,
                callbacks=[self._tell],
            )
            return trainer.fit(total_steps)

    def fine_tune(
        self,
        *,
        parent: Path,
        digest: str,
        recipe: Recipe,
        zero_shot: Scored | None,
        seed: int,
        run_dir: Path,
        device: str | None,
    ) -> Result:
        """Go on from the skill in `parent`, or with the run in `run_dir`.

        Raises:
            IntegrityError: The folder holds another skill than `digest`.
        """
        from neuraverse.learn.adopt import fine_tune
        from neuraverse.skill import Skill

        skill = Skill.open(parent)
        if skill.digest != digest:
            raise IntegrityError(f"{parent} holds {skill.digest}, not {digest}")
        with self._job(), self._envs(recipe) as (env, eval_env):
            return fine_tune(
                skill,
                env,
                recipe=recipe,
                zero_shot=zero_shot,
                seed=seed,
                device=device or self._where.device,
                run_dir=run_dir,
                eval_env=eval_env,
                callbacks=[self._tell],
            )

    def evaluate(
        self,
        *,
        policy: ActorCritic,
        interface: Interface | None,
        env: EnvSettings,
        num_envs: int,
        episodes: int,
        seed_first: int,
    ) -> Episodes:
        """Run one episode for each of the seeds.

        Raises:
            IncompatibleError: `interface` is not that of the environment.
        """
        from neuraverse.errors import IncompatibleError
        from neuraverse.learn.adopt import interface_problems
        from neuraverse.learn.envs import interface_of
        from neuraverse.learn.evaluation import run_episodes

        with self._job(), contextlib.closing(make_env(env, num_envs, self._threads)) as made:
            problems = interface_problems(interface, interface_of(made)) if interface is not None else []
            if problems:
                raise IncompatibleError(f"the skill does not fit {env.robot or env.id}", problems=problems)
            return run_episodes(policy, made, episodes=episodes, seed_first=seed_first)

    def _tell(self, progress: Progress) -> bool:
        with self._news:
            self._progress.append(progress)
            self._news.notify_all()
        return not self._stop.is_set()

    @contextlib.contextmanager
    def _job(self) -> Iterator[None]:
        import torch

        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            with self._news:
                self._finished = True
                self._news.notify_all()

    @contextlib.contextmanager
    def _envs(
        self, recipe: Recipe
    ) -> Iterator[tuple[VectorEnv[Any, Any, Any], VectorEnv[Any, Any, Any] | None]]:
        """The environments of a recipe, for training and for validation."""
        with contextlib.ExitStack() as stack:
            env = make_env(recipe.env, recipe.ppo.num_envs, self._threads)
            stack.callback(env.close)
            if not recipe.validation.every:
                yield env, None
                return
            eval_env = make_env(recipe.env, recipe.validation.episodes, self._threads)
            stack.callback(eval_env.close)
            yield env, eval_env


def make_env(settings: EnvSettings, num_envs: int, threads: int) -> VectorEnv[Any, Any, Any]:
    """As `neuraverse.learn.envs.make_env`; environments with a pool of threads get `threads` of them."""
    from neuraverse.learn import envs

    limited = {"threads": threads} if "threads" not in settings.kwargs and _takes_threads(settings.id) else {}
    return envs.make_env(settings, num_envs, **limited)


def _takes_threads(env_id: str) -> bool:
    import gymnasium

    try:
        entry = gymnasium.spec(env_id).vector_entry_point
    except (gymnasium.error.Error, ImportError):
        return False  # making it will say what is wrong
    return callable(entry) and "threads" in inspect.signature(entry).parameters


def _where() -> Where:
    device = "cpu"
    if ray.get_gpu_ids():
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    context = ray.get_runtime_context()
    return Where(
        host=platform.node(),
        node=context.get_node_id(),
        pid=os.getpid(),
        resources={k: float(v) for k, v in context.get_assigned_resources().items()},
        device=device,
    )
