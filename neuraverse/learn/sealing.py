"""Sealing: a training run becomes a Skill: manifest, weights, ONNX, evaluation, curve, card and signature."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from neuraverse.learn.card import model_card
from neuraverse.learn.envs import TorchEnv, interface_of
from neuraverse.learn.evaluation import Scored
from neuraverse.learn.export import OPSET, to_onnx, to_safetensors
from neuraverse.learn.progress import Result
from neuraverse.learn.recipe import Recipe
from neuraverse.manifest import Body, Network, Score, SkillManifest, TaskInfo, Training
from neuraverse.skill import Skill
from neuraverse.trust import sign

_PACKAGES = (
    *("neuraverse", "torch", "numpy", "gymnasium", "mujoco", "mjbatch", "ray"),
    *("onnx", "onnxruntime", "safetensors"),
)


def seal(
    result: Result,
    recipe: Recipe,
    evaluation: Scored,
    path: Path | str,
    *,
    env: VectorEnv[Any, Any, Any],
    key: Path | str | None,
    runs: Sequence[Result] = (),
    parent: Skill | None = None,
    parent_score: Score | None = None,
    name: str | None = None,
    version: str | None = None,
) -> Skill:
    """Write and sign a skill.

    Args:
        result: The run whose policy is published.
        recipe: What it was trained with.
        evaluation: Its score on the published seeds.
        path: The new directory; must not exist.
        env: The environment it was trained in: interface, body and spread are read off it.
        key: Private key to sign with; None leaves the skill unsigned.
        runs: Every run made for this skill, other seeds too; they are all shown and all charged.
        parent: The skill that was fine-tuned.
        parent_score: The parent's score on the same seeds as `evaluation`.
        name: ``org/skill`` instead of the recipe's.
        version: Instead of the recipe's.

    Raises:
        ManifestError: A field of the recipe does not suit a manifest.
        UsageError: The directory exists already.
        StorageError: The disk is full, read-only or gone.
    """
    runs = tuple(runs) or (result,)
    interface = interface_of(env)
    port = TorchEnv(env)
    policy = result.policy
    body, randomised = body_of(env, recipe)
    manifest = SkillManifest.build(
        name=name or recipe.skill.name,
        version=version or recipe.skill.version,
        title=recipe.skill.title or recipe.skill.name,
        description=recipe.skill.description,
        license=recipe.skill.license,
        created=datetime.now(UTC).replace(microsecond=0),
        interface=interface,
        body=body,
        randomised=randomised,
        task=TaskInfo(
            env_id=recipe.env.id,
            success=_success_sentence(env, recipe),
            parameters={
                k: v for k, v in recipe.env.kwargs.items() if isinstance(v, float | int | str | bool)
            },
        ),
        network=Network(
            hidden=policy.hidden,
            activation=policy.activation,
            parameters=sum(t.numel() for t in policy.tensors().values()),
            opset=OPSET,
        ),
        evaluation=evaluation.for_manifest(parent_score),
        training=Training(
            algorithm="ppo" if parent is None else "ppo, fine-tuned",
            recipe=recipe.to_dict(),
            seeds=tuple(run.seed for run in runs),
            seed_scores={str(run.seed): _validation(run) for run in runs if run.validation is not None},
            env_steps=sum(run.env_steps for run in runs),
            wall_s=max(run.wall_s for run in runs),
            cpu_s=sum(run.cpu_s for run in runs),
            device=result.device,
        ),
        versions=versions(),
        parents=() if parent is None else (parent.digest,),
        files={},
        tags=recipe.skill.tags,
    )
    files = {
        "model.safetensors": to_safetensors(policy),
        "policy.onnx": to_onnx(policy, interface, port.action_scale, port.action_offset),
        "evaluation.json": _json(_episodes(evaluation)),
        "curve.json": _json(_columns(result.curve)),
        "README.md": model_card(manifest, parent).encode(),
    }
    signer = None if key is None else functools.partial(sign, private_key_path=key)
    return Skill.write(path, manifest, files, sign=signer)


def body_of(env: VectorEnv[Any, Any, Any], recipe: Recipe) -> tuple[Body, dict[str, tuple[float, float]]]:
    """The body of an environment's task and the ranges it is spread over, as far as the task says so."""
    task = getattr(env, "task", None)
    robot = getattr(task, "robot", None)
    ranges: Mapping[str, tuple[float, float]] = getattr(task, "ranges", recipe.env.randomise)
    if robot is None:
        dof = TorchEnv(env).act_dim
        plain = Body(robot=recipe.env.id, dof=dof, servo_hz=0.0, latency_s=0.0, tool_mass_kg=0.0)
        return plain, dict(ranges)
    return Body(**robot.body()), dict(ranges)


def versions() -> dict[str, str]:
    """Versions of everything that decides the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _validation(run: Result) -> float:
    assert run.validation is not None
    return run.validation.score.rate if run.validation.score else run.validation.mean_return


def _success_sentence(env: VectorEnv[Any, Any, Any], recipe: Recipe) -> str:
    told = recipe.skill.success or getattr(getattr(env, "task", None), "success", "")
    return told or "the environment reports no success; see the mean return"


def _episodes(scored: Scored) -> dict[str, object]:
    return {
        "seed_first": scored.seed_first,
        "episodes": scored.episodes,
        "success": scored.successes,
        "return": scored.returns,
        "mean_return": scored.mean_return,
        "mean_length": scored.mean_length,
        "metrics": scored.metrics,
    }


def _columns(curve: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    names = list(curve[0]) if curve else ["env_steps"]
    return {name: [row[name] for row in curve] for name in names}


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
