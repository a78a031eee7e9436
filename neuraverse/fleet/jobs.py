"""What the fleet does: train several seeds, fine-tune a skill, evaluate a policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import ray

from neuraverse.errors import ConfigError
from neuraverse.fleet.cluster import Resources, offered
from neuraverse.fleet.supervisor import Job, run
from neuraverse.fleet.workers import Where
from neuraverse.learn.adopt import check_env, child_recipe
from neuraverse.learn.evaluation import Scored, join, score
from neuraverse.learn.export import policy_of
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.progress import Progress, Result
from neuraverse.learn.recipe import EnvSettings, Recipe
from neuraverse.skill import Skill


def train(
    recipe: Recipe | str | Path,
    seeds: Iterable[int],
    *,
    run_dir: Path | str,
    on_progress: Callable[[int, Progress], object] | None = None,
    on_worker: Callable[[int, Where], object] | None = None,
    resources: Resources | None = None,
    max_restarts: int = 3,
    total_steps: int | None = None,
    device: str | None = None,
) -> list[Result]:
    """Train each seed in a worker of its own, side by side as far as there is room.

    Args:
        recipe: A recipe, its name or its path.
        seeds: One run each.
        run_dir: Each run keeps its checkpoints in ``run_dir/seed-N``; runs found there are resumed.
        on_progress: Called with seed and progress after each iteration; ``False`` from it ends that run.
        on_worker: Called with seed and whereabouts when a worker has started.
        resources: Of each worker; one CPU and an even share of the GPUs if not given.
        max_restarts: How many workers of one seed may die.
        total_steps: Instead of the recipe's.
        device: CUDA if the worker has a GPU and not said otherwise.

    Returns:
        One result per seed, in the order of `seeds`.

    Raises:
        ConfigError: The recipe or the resources are wrong, or `run_dir` holds other runs.
        TrainingError: Learning diverged, or workers died too often.
        StorageError: A checkpoint could not be written.
    """
    seeds = list(seeds)
    if not seeds:
        return []
    resources = resources or Resources.share(len(seeds), device)
    names = {f"seed-{seed}": seed for seed in seeds}
    jobs = [
        train_job(
            recipe,
            seed=seed,
            run_dir=Path(run_dir) / name,
            name=name,
            resources=resources,
            total_steps=total_steps,
            device=device,
        )
        for name, seed in zip(map("seed-{}".format, seeds), seeds, strict=True)
    ]
    return run(
        jobs,
        on_progress=None if on_progress is None else lambda name, p: on_progress(names[name], p),
        on_worker=None if on_worker is None else lambda name, w: on_worker(names[name], w),
        max_restarts=max_restarts,
    )


def train_job(
    recipe: Recipe | str | Path,
    *,
    seed: int = 0,
    run_dir: Path | str,
    name: str = "train",
    resources: Resources | None = None,
    total_steps: int | None = None,
    device: str | None = None,
) -> Job:
    """A training run for `run`; see `train`. Its checkpoints lie in `run_dir` itself."""
    arguments = {
        "recipe": recipe if isinstance(recipe, Recipe) else Recipe.load(recipe),
        "seed": seed,
        "run_dir": Path(run_dir).absolute(),
        "total_steps": total_steps,
        "device": device,
    }
    return Job(
        name=name, method="train", arguments=arguments, resources=resources or Resources.share(1, device)
    )


def fine_tune(
    parent: Skill | Path | str,
    *,
    run_dir: Path | str,
    robot: str | None = None,
    randomise: Mapping[str, tuple[float, float]] | None = None,
    recipe: Recipe | None = None,
    overrides: Iterable[str] = (),
    target: float | None = None,
    zero_shot: Scored | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], object] | None = None,
    on_worker: Callable[[Where], object] | None = None,
    resources: Resources | None = None,
    max_restarts: int = 3,
    device: str | None = None,
) -> Result:
    """Carry a skill over to another body, in a worker.

    Args:
        parent: A skill that was verified, or its folder; the worker must see the same folder.
        run_dir: Where its checkpoints lie; a run found there is resumed.
        robot: Name of the body.
        randomise: Spread of the body.
        recipe: As for `neuraverse.learn.fine_tune`, as are the following up to `seed`.
        overrides: Changes to the recipe.
        target: Stop once the validation's Wilson lower bound is this high.
        zero_shot: What a probe found, to save doing it again.
        seed: Of exploration and environments.
        on_progress: Called after each iteration; ``False`` from it ends the run.
        on_worker: Called when the worker has started.
        resources: One CPU and up to one GPU if not given.
        max_restarts: How many workers may die.
        device: CUDA if the worker has a GPU and not said otherwise.

    Raises:
        ConfigError: The recipe or the resources are wrong, or `run_dir` holds another run.
        IncompatibleError: The skill does not fit the environment.
        TrainingError: Learning diverged, or workers died too often.
    """
    job = fine_tune_job(
        parent,
        run_dir=run_dir,
        robot=robot,
        randomise=randomise,
        recipe=recipe,
        overrides=overrides,
        target=target,
        zero_shot=zero_shot,
        seed=seed,
        resources=resources,
        device=device,
    )
    [result] = run(
        [job],
        on_progress=None if on_progress is None else lambda _, p: on_progress(p),
        on_worker=None if on_worker is None else lambda _, w: on_worker(w),
        max_restarts=max_restarts,
    )
    assert isinstance(result, Result)
    return result


def fine_tune_job(
    parent: Skill | Path | str,
    *,
    run_dir: Path | str,
    name: str = "fine-tune",
    robot: str | None = None,
    randomise: Mapping[str, tuple[float, float]] | None = None,
    recipe: Recipe | None = None,
    overrides: Iterable[str] = (),
    target: float | None = None,
    zero_shot: Scored | None = None,
    seed: int = 0,
    resources: Resources | None = None,
    device: str | None = None,
) -> Job:
    """A fine-tuning for `run`; see `fine_tune`."""
    skill = parent if isinstance(parent, Skill) else Skill.open(parent)
    child = child_recipe(
        skill, recipe=recipe, overrides=overrides, robot=robot, randomise=randomise, target=target
    )
    if recipe is None:
        check_env(child.env)
    arguments = {
        "parent": skill.path.absolute(),
        "digest": skill.digest,
        "recipe": child,
        "zero_shot": zero_shot,
        "seed": seed,
        "run_dir": Path(run_dir).absolute(),
        "device": device,
    }
    return Job(
        name=name, method="fine_tune", arguments=arguments, resources=resources or Resources.share(1, device)
    )


def evaluate(
    policy: ActorCritic | Skill,
    env: EnvSettings,
    episodes: int,
    seed_first: int,
    *,
    num_envs: int = 250,
    workers: int | None = None,
    success_return: float | None = None,
    resources: Resources | None = None,
    max_restarts: int = 3,
) -> Scored:
    """Score a policy on one episode per seed, shared among workers.

    The seeds are dealt out in whole batches of `num_envs`, so that each batch is computed in the same way
    whoever does it: the figures are those of one worker, to the last bit.

    Args:
        policy: A policy, or a skill that was verified.
        env: The environment.
        episodes: How many.
        seed_first: Seed of the first.
        num_envs: Environments in a batch.
        workers: How many at most; one per CPU of the cluster if not given.
        success_return: See `neuraverse.learn.evaluation.evaluate`.
        resources: Of each worker; one CPU if not given.
        max_restarts: How many workers of one share may die.

    Raises:
        ConfigError: The environment or the resources are wrong.
        IncompatibleError: The policy does not fit the environment.
        TrainingError: The policy acts with NaN, an episode does not end, or workers died too often.
    """
    if episodes < 1 or num_envs < 1:
        raise ConfigError(
            f"episodes = {episodes} in batches of {num_envs}", remedy="choose at least 1 of each"
        )
    batches = math.ceil(episodes / num_envs)
    workers = min(batches, workers or max(1, int(offered().get("CPU", 1.0))))
    edges = [min(episodes, num_envs * (batches * i // workers)) for i in range(workers + 1)]
    edges[-1] = episodes
    interface = policy.interface if isinstance(policy, Skill) else None
    shared = {
        "policy": ray.put(policy_of(policy) if isinstance(policy, Skill) else policy),
        "interface": interface,
        "env": env,
        "num_envs": num_envs,
    }
    jobs = [
        Job(
            name=f"seeds {seed_first + low} to {seed_first + high - 1}",
            method="evaluate",
            arguments={**shared, "episodes": high - low, "seed_first": seed_first + low},
            resources=resources or Resources(),
        )
        for low, high in itertools.pairwise(edges)
    ]
    return score(join(run(jobs, max_restarts=max_restarts)), success_return=success_return)


def best_of(results: Sequence[Result]) -> Result:
    """The result with the best validation; of equals the one that took fewer steps.

    Where none was validated, the one whose episodes in training returned most in the end.

    Raises:
        ConfigError: There are no results.
    """
    if not results:
        raise ConfigError("there is no best of no runs", remedy="train at least one seed")
    validated = [(r.validation.rank, -r.env_steps, r) for r in results if r.validation is not None]
    if validated:
        return max(validated, key=lambda entry: entry[:2])[2]
    return max(results, key=_last_return)


def _last_return(result: Result) -> float:
    last = result.curve[-1]["ep_return"] if result.curve else None
    return -math.inf if last is None else last
