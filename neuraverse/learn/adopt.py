"""Taking over a skill of another robot: probe it on one's own task, decide, and fine-tune it if need be.

A probe costs some episodes and says what the skill does here. `decide` turns that into *use* (its Wilson
lower bound reaches the target), *fine-tune*, or *refuse* (it does not fit, or it is not safe to run).
`fine_tune` goes on from the parent's actor, critic, normaliser and exploration: first the critic alone learns
what the new body returns, then PPO with a pull towards the parent that fades as the learner catches up.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from gymnasium.vector import VectorEnv

from neuraverse.errors import ConfigError, IncompatibleError, TrainingError
from neuraverse.interface import Interface
from neuraverse.learn.envs import interface_of, make_env
from neuraverse.learn.evaluation import Scored, evaluate
from neuraverse.learn.export import policy_of
from neuraverse.learn.ppo import Teacher
from neuraverse.learn.progress import Progress, Result
from neuraverse.learn.recipe import VALIDATION_SEED, EnvSettings, Recipe
from neuraverse.learn.trainer import Trainer
from neuraverse.skill import Skill

PROBE_SEED = VALIDATION_SEED + 500_000_000
_OWN_ENVS = "neuraverse_envs"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a skill does on the receiver's own task.

    Attributes:
        problems: Why it cannot or must not run here; empty if it can.
        scored: Its zero-shot score; None if it was not run to the end.
    """

    problems: tuple[str, ...]
    scored: Scored | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do with a skill, and why, in one sentence."""

    action: Literal["use", "fine-tune", "refuse"]
    reason: str


def interface_problems(skill: Interface, cell: Interface) -> list[str]:
    """Why a policy of the interface `skill` cannot act in a cell of the interface `cell`; empty if it can."""
    found = []
    for kind in ("observation", "action"):
        wanted, offered = getattr(skill, kind), getattr(cell, kind)
        if [s.name for s in wanted] != [s.name for s in offered]:
            found.append(
                f"{kind} signals are {', '.join(s.name for s in wanted)} in the skill "
                f"and {', '.join(s.name for s in offered)} here"
            )
            continue
        for want, have in zip(wanted, offered, strict=True):
            fields = ("shape", "unit", "frame") + (("low", "high") if kind == "action" else ())
            for field in fields:
                w, h = getattr(want, field), getattr(have, field)
                if w != h:
                    found.append(f"{kind} {want.name}: {field} is {w} in the skill and {h} here")
    if not math.isclose(skill.rate_hz, cell.rate_hz, rel_tol=1e-6):
        found.append(f"control rate: {skill.rate_hz:g} Hz in the skill and {cell.rate_hz:g} Hz here")
    return found


def probe(
    skill: Skill,
    env: VectorEnv[Any, Any, Any],
    *,
    episodes: int = 128,
    seed_first: int = PROBE_SEED,
    success_return: float | None = None,
) -> Probe:
    """Run a skill as it is on the receiver's own task.

    Args:
        skill: The skill, opened and verified.
        env: The receiver's environment.
        episodes: How many.
        seed_first: Disjoint from the seeds of validation and of published scores.
        success_return: See `neuraverse.learn.evaluation.evaluate`.
    """
    problems = interface_problems(skill.interface, interface_of(env))
    if problems:
        return Probe(problems=tuple(problems), scored=None)
    try:
        scored = evaluate(
            policy_of(skill), env, episodes=episodes, seed_first=seed_first, success_return=success_return
        )
    except TrainingError as error:
        return Probe(problems=(error.message,), scored=None)
    if not scored.finite:
        problems.append("the simulation blew up under it")
    return Probe(problems=tuple(problems), scored=scored)


def decide(found: Probe, target: float) -> Decision:
    """Use, fine-tune or refuse.

    Args:
        found: What the probe showed.
        target: Success that is good enough: the Wilson lower bound must reach it.
    """
    if found.problems:
        return Decision(action="refuse", reason="; ".join(found.problems))
    score = None if found.scored is None else found.scored.score
    if score is None:
        return Decision(
            action="refuse", reason="the task reports no success, so there is nothing to judge by"
        )
    said = f"success {score.rate:.3f}, lower bound {score.lower:.3f} of {score.n} episodes"
    if score.lower >= target:
        return Decision(action="use", reason=f"{said}, reaches {target:g}")
    return Decision(action="fine-tune", reason=f"{said}, does not reach {target:g}")


def fine_tune(
    parent: Skill,
    env: VectorEnv[Any, Any, Any] | None = None,
    *,
    robot: str | None = None,
    randomise: Mapping[str, tuple[float, float]] | None = None,
    recipe: Recipe | None = None,
    overrides: Iterable[str] = (),
    target: float | None = None,
    zero_shot: Scored | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    run_dir: Path | str | None = None,
    eval_env: VectorEnv[Any, Any, Any] | None = None,
    callbacks: Iterable[Callable[[Progress], object]] = (),
) -> Result:
    """Go on from a parent skill on another body.

    Args:
        parent: The skill, opened and verified.
        env: The receiver's environment; made from the parent's task, `robot` and `randomise` if not given.
        robot: Name of the body, if `env` is not given.
        randomise: Spread of the body, if `env` is not given.
        recipe: Hyperparameters; the parent's own if not given. ``[fine_tune]`` decides about steps and pull.
        overrides: Changes to the recipe, such as ``"fine_tune.total_steps=500000"``.
        target: Stop once the validation's Wilson lower bound is this high; else the recipe's ``stop_lower``.
        zero_shot: What `probe` found, to save doing it again.
        seed: Of exploration and environments.
        device: CUDA if present and not said otherwise.
        run_dir: Checkpoints; see `Trainer`.
        eval_env: Environments for validation; see `Trainer`.
        callbacks: See `Trainer`.

    Raises:
        IncompatibleError: The skill does not fit the environment.
        ConfigError: The recipe is wrong.
        TrainingError: Learning diverged.
    """
    recipe = child_recipe(
        parent, recipe=recipe, overrides=overrides, robot=robot, randomise=randomise, target=target
    )
    if env is None:
        check_env(recipe.env)
        env = make_env(recipe.env, recipe.ppo.num_envs)
        if eval_env is None and recipe.validation.every:
            eval_env = make_env(recipe.env, recipe.validation.episodes)
    problems = interface_problems(parent.interface, interface_of(env))
    if problems:
        raise IncompatibleError(f"{parent.ref} cannot be fine-tuned here", problems=problems)
    settings = recipe.fine_tune
    policy = policy_of(parent)
    if zero_shot is None:
        zero_shot = evaluate(
            policy,
            env if eval_env is None else eval_env,
            episodes=settings.probe_episodes,
            seed_first=PROBE_SEED,
            success_return=recipe.bar.success_return,
        )
    teacher = Teacher(policy=policy, success=0.0 if zero_shot.score is None else zero_shot.score.rate)
    start = policy.clone()
    if settings.std_floor > 0.0:
        start.log_std.clamp_(min=math.log(settings.std_floor))
    trainer = Trainer(
        env,
        recipe,
        seed=seed,
        device=device,
        run_dir=run_dir,
        eval_env=eval_env,
        callbacks=callbacks,
        initial=start,
        teacher=teacher,
    )
    return trainer.fit()


def child_recipe(
    parent: Skill,
    *,
    recipe: Recipe | None = None,
    overrides: Iterable[str] = (),
    robot: str | None = None,
    randomise: Mapping[str, tuple[float, float]] | None = None,
    target: float | None = None,
) -> Recipe:
    """The recipe of the child: the parent's, with the steps and the learning rate of ``[fine_tune]``.

    See `fine_tune` for the arguments. A recipe that came from here stays as it is.

    Raises:
        ConfigError: A field is wrong.
    """
    manifest = parent.manifest
    plain = dict(manifest.training.recipe) if recipe is None else recipe.to_dict()
    source = f"recipe of {parent.ref}" if recipe is None else "recipe"
    if not plain:
        plain = {"skill": {"name": parent.name}, "env": {"id": manifest.task.env_id}}
    child = Recipe.parse(plain, overrides, source=source)
    env, validation = child.env, child.validation
    if robot is not None or randomise is not None:
        env = EnvSettings(
            id=env.id, robot=robot or env.robot, randomise=dict(randomise or {}), kwargs=env.kwargs
        )
    if target is not None:
        validation = dataclasses.replace(validation, stop_lower=target)
    ppo = dataclasses.replace(child.ppo, lr=child.fine_tune.lr, total_steps=child.fine_tune.total_steps)
    return dataclasses.replace(child, env=env, ppo=ppo, validation=validation)


def check_env(settings: EnvSettings) -> None:
    """Refuse an environment that a manifest names and whose module nobody here has loaded; it could be any.

    Raises:
        ConfigError: The module is neither loaded nor our own.
    """
    package = settings.id.rpartition(":")[0].partition(".")[0]
    if package and package != _OWN_ENVS and package not in sys.modules:
        raise ConfigError(
            f"the skill asks for the environment {settings.id}, whose module is not loaded here",
            remedy="import it, or make the environment yourself and pass env=",
        )
