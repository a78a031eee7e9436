"""Where learning and scoring are done: in this process, or in Ray actors.

One run without ``RAY_ADDRESS`` stays here, since starting Ray takes seconds. Several seeds, and everything
where ``RAY_ADDRESS`` is set, go through `neuraverse.fleet`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from neuraverse.cli.output import busy

if TYPE_CHECKING:
    from neuraverse.learn import ActorCritic, Probe, Progress, Recipe, Result, Scored
    from neuraverse.learn.recipe import EnvSettings
    from neuraverse.skill import Skill

    Tell = Callable[[int, Progress], bool]


class Place(Protocol):
    """What a command has done for it. `tell` is called with seed and progress, and says whether to go on."""

    def train(
        self, recipe: Recipe, seeds: Sequence[int], *, run_dir: Path, device: str | None, tell: Tell
    ) -> list[Result]:
        """One run for each seed: in `run_dir` itself if there is but one, in ``run_dir/seed-N`` otherwise."""

    def fine_tune(
        self,
        parent: Skill,
        recipe: Recipe,
        *,
        zero_shot: Scored,
        seed: int,
        run_dir: Path,
        device: str | None,
        tell: Tell,
    ) -> Result:
        """Go on from a skill, in the environment of `recipe`."""

    def evaluate(self, policy: ActorCritic, recipe: Recipe) -> Scored:
        """The score that is published."""

    def probe(
        self,
        skill: Skill,
        env: EnvSettings,
        *,
        num_envs: int,
        episodes: int,
        seed_first: int,
        success_return: float | None,
    ) -> Probe:
        """A skill as it is; see `neuraverse.learn.probe`."""


@contextlib.contextmanager
def place(seeds: int = 1) -> Iterator[Place]:
    """Where to do the work of so many seeds.

    Raises:
        MissingExtraError: Ray is wanted and not installed.
        NetworkError: No Ray cluster answers at ``RAY_ADDRESS``.
        UsageError: Ray cannot be started or joined.
    """
    address = os.environ.get("RAY_ADDRESS")
    if seeds == 1 and not address:
        yield _Here()
        return
    from neuraverse.fleet import connect

    with contextlib.ExitStack() as stack:
        with busy(f"joining Ray at {address}" if address else "starting Ray"):
            stack.enter_context(connect())
        yield _Fleet()


class _Here:
    def train(
        self, recipe: Recipe, seeds: Sequence[int], *, run_dir: Path, device: str | None, tell: Tell
    ) -> list[Result]:
        from neuraverse.learn import Trainer

        [seed] = seeds
        trainer = Trainer.from_recipe(recipe, seed=seed, device=device, run_dir=run_dir)
        return [trainer.fit(on_progress=lambda progress: tell(seed, progress))]

    def fine_tune(
        self,
        parent: Skill,
        recipe: Recipe,
        *,
        zero_shot: Scored,
        seed: int,
        run_dir: Path,
        device: str | None,
        tell: Tell,
    ) -> Result:
        from neuraverse.learn import fine_tune

        return fine_tune(
            parent,
            recipe=recipe,
            zero_shot=zero_shot,
            seed=seed,
            device=device,
            run_dir=run_dir,
            callbacks=(lambda progress: tell(seed, progress),),
        )

    def evaluate(self, policy: ActorCritic, recipe: Recipe) -> Scored:
        from neuraverse.learn import evaluate, make_env

        env = make_env(recipe.env, min(recipe.eval.episodes, recipe.eval.num_envs))
        with contextlib.closing(env):
            return evaluate(policy, env, **_published(recipe))

    def probe(
        self,
        skill: Skill,
        env: EnvSettings,
        *,
        num_envs: int,
        episodes: int,
        seed_first: int,
        success_return: float | None,
    ) -> Probe:
        from neuraverse.learn import make_env, probe

        with contextlib.closing(make_env(env, num_envs)) as made:
            return probe(skill, made, episodes=episodes, seed_first=seed_first, success_return=success_return)


class _Fleet:
    def train(
        self, recipe: Recipe, seeds: Sequence[int], *, run_dir: Path, device: str | None, tell: Tell
    ) -> list[Result]:
        from neuraverse import fleet

        if len(seeds) > 1:
            return fleet.train(recipe, seeds, run_dir=run_dir, on_progress=tell, device=device)
        [seed] = seeds
        job = fleet.train_job(recipe, seed=seed, run_dir=run_dir, name=f"seed-{seed}", device=device)
        return fleet.run([job], on_progress=lambda _, progress: tell(seed, progress))

    def fine_tune(
        self,
        parent: Skill,
        recipe: Recipe,
        *,
        zero_shot: Scored,
        seed: int,
        run_dir: Path,
        device: str | None,
        tell: Tell,
    ) -> Result:
        from neuraverse import fleet

        return fleet.fine_tune(
            parent,
            recipe=recipe,
            zero_shot=zero_shot,
            seed=seed,
            run_dir=run_dir,
            device=device,
            on_progress=lambda progress: tell(seed, progress),
        )

    def evaluate(self, policy: ActorCritic, recipe: Recipe) -> Scored:
        from neuraverse import fleet

        num_envs = min(recipe.eval.episodes, recipe.eval.num_envs)
        return fleet.evaluate(policy, recipe.env, num_envs=num_envs, **_published(recipe))

    def probe(
        self,
        skill: Skill,
        env: EnvSettings,
        *,
        num_envs: int,
        episodes: int,
        seed_first: int,
        success_return: float | None,
    ) -> Probe:
        from neuraverse import fleet
        from neuraverse.learn import Probe, make_env
        from neuraverse.learn.adopt import interface_problems
        from neuraverse.learn.envs import interface_of

        with contextlib.closing(make_env(env, 1)) as made:
            problems = interface_problems(skill.interface, interface_of(made))
        if problems:
            return Probe(problems=tuple(problems), scored=None)
        scored = fleet.evaluate(
            skill,
            env,
            num_envs=num_envs,
            episodes=episodes,
            seed_first=seed_first,
            success_return=success_return,
        )
        return Probe(problems=() if scored.finite else ("the simulation blew up under it",), scored=scored)


def _published(recipe: Recipe) -> dict[str, Any]:
    return {
        "episodes": recipe.eval.episodes,
        "seed_first": recipe.eval.seed_first,
        "success_return": recipe.bar.success_return,
    }
