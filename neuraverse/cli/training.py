"""The work behind ``train`` and ``fine-tune``: run, score, seal, sign."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse.cli.cell import fetch, load_tasks, recipe_for, signing_key, slug
from neuraverse.cli.display import training
from neuraverse.cli.output import Out, busy, note, score_json, score_words
from neuraverse.cli.place import place
from neuraverse.errors import ContentError, IncompatibleError, UsageError
from neuraverse.skill import Skill

if TYPE_CHECKING:
    from neuraverse.learn import Recipe, Result

RUNS = Path("runs")
SKILL = "skill"


def train(
    name: str,
    overrides: Sequence[str],
    *,
    seed: int,
    seeds: int,
    device: str | None,
    run_dir: Path | None,
    skill_dir: Path | None,
    key: str | None,
    out: Out,
) -> None:
    """Train one recipe with one or more seeds, several side by side in Ray actors; seal the best run."""
    from neuraverse.learn import Recipe

    recipe = Recipe.load(name, overrides)
    numbers = tuple(range(seed, seed + seeds))
    label = f"seed{seed}" if seeds == 1 else f"seeds{seed}-{numbers[-1]}"
    folder = run_dir or RUNS / f"{recipe.skill.name.partition('/')[2]}-{label}"
    target = skill_dir or folder / SKILL
    if _done(target, recipe, numbers, ()):
        _report(Skill.open(target), recipe, folder, out)
        return

    from neuraverse.learn import make_env, seal

    private = signing_key(key)
    load_tasks()
    env = make_env(recipe.env, 1)
    with place(seeds) as there:
        with training(_titles(recipe, numbers)) as tell:
            runs = there.train(recipe, numbers, run_dir=folder, device=device, tell=tell)
        best = _best(runs)
        with busy(f"scoring {recipe.eval.episodes} episodes"):
            scored = there.evaluate(best.policy, recipe)
    skill = seal(best, recipe, scored, target, env=env, key=private, runs=runs)
    _report(skill, recipe, folder, out)


def fine_tune(
    ref: str,
    overrides: Sequence[str],
    *,
    robot: str | None,
    tool: str | None,
    env_id: str | None,
    seed: int,
    device: str | None,
    run_dir: Path | None,
    skill_dir: Path | None,
    key: str | None,
    registry: str | None,
    out: Out,
) -> None:
    """Carry a skill over to another body; seal the child."""
    from neuraverse.learn import child_recipe, make_env, policy_of, seal
    from neuraverse.learn.adopt import PROBE_SEED
    from neuraverse.learn.envs import outside

    parent = fetch(ref, registry)
    if not any(word.replace(" ", "").startswith("skill.name=") for word in overrides):
        body = slug(robot or parent.manifest.body.robot)
        overrides = (f'skill.name="local/{parent.name.partition("/")[2]}-{body}"', *overrides)
    recipe = recipe_for(parent.manifest, env=env_id, robot=robot, tool=tool, overrides=overrides)
    recipe = child_recipe(parent, recipe=recipe)
    folder = run_dir or RUNS / f"{recipe.skill.name.partition('/')[2]}-seed{seed}"
    target = skill_dir or folder / SKILL
    if _done(target, recipe, (seed,), (parent.digest,)):
        _report(Skill.open(target), recipe, folder, out)
        return
    private = signing_key(key)
    env = make_env(recipe.env, 1)
    for sentence in outside(env, parent.manifest):
        note(f"outside what {parent.ref} was trained over: {sentence}")
    with place() as there:
        with busy(f"probing {parent.ref} as it is"):
            found = there.probe(
                parent,
                recipe.env,
                num_envs=recipe.validation.episodes,
                episodes=recipe.fine_tune.probe_episodes,
                seed_first=PROBE_SEED,
                success_return=recipe.bar.success_return,
            )
        as_it_is = found.scored
        if as_it_is is None:
            raise IncompatibleError(f"{parent.ref} cannot be fine-tuned here", problems=found.problems)
        note(f"as it is: {score_words(as_it_is.score) or f'return {as_it_is.mean_return:.1f}'}")
        with training(_titles(recipe, (seed,))) as tell:
            result = there.fine_tune(
                parent, recipe, zero_shot=as_it_is, seed=seed, run_dir=folder, device=device, tell=tell
            )
        with busy(f"scoring parent and child, {recipe.eval.episodes} episodes each"):
            before, after = (there.evaluate(p, recipe) for p in (policy_of(parent), result.policy))
    skill = seal(
        result, recipe, after, target, env=env, key=private, parent=parent, parent_score=before.score
    )
    _report(skill, recipe, folder, out)


def _done(path: Path, recipe: Recipe, seeds: tuple[int, ...], parents: tuple[str, ...]) -> bool:
    """Whether the skill that would be made is there already.

    Raises:
        UsageError: Something else is there.
    """
    if not path.exists():
        return False
    remedy = "choose another folder with --out, or remove that one"
    try:
        manifest = Skill.open(path).manifest
    except ContentError as error:
        raise UsageError(f"{path} exists and is no skill", remedy=remedy) from error
    training = manifest.training
    if (training.recipe, training.seeds, manifest.parents) != (recipe.to_dict(), seeds, parents):
        raise UsageError(f"{path} holds the skill of another run", remedy=remedy)
    note(f"{path} is there already, made by this very command")
    return True


def _titles(recipe: Recipe, seeds: Sequence[int]) -> dict[int, str]:
    return {seed: f"{recipe.skill.name} seed {seed}" for seed in seeds}


def _best(runs: Sequence[Result]) -> Result:
    if len(runs) == 1:
        return runs[0]
    from neuraverse.fleet import best_of

    return best_of(runs)


def _report(skill: Skill, recipe: Recipe, folder: Path, out: Out) -> None:
    manifest = skill.manifest
    training, evaluation = manifest.training, manifest.evaluation
    judged = json.loads(skill.read("evaluation.json"))["success"] is not None
    reached = evaluation.lower >= recipe.bar.success if judged else None
    words = {True: "reached", False: "not reached", None: "nothing to judge by: the task reports no success"}
    speed = training.env_steps / max(training.wall_s, 1e-9)
    out.line(f"{skill.ref}  {skill.digest}")
    out.fields(
        [
            ("success", score_words(evaluation.score) if judged else ""),
            ("parent", score_words(evaluation.source)),
            ("bar", f"{words[reached]} (lower bound {recipe.bar.success:g} wanted)"),
            ("mean return", f"{evaluation.metrics.get('mean_return', 0.0):.2f}"),
            ("trained", f"{training.env_steps:,} steps in {training.wall_s:.0f} s ({speed:,.0f} steps/s)"),
            ("skill", str(skill.path)),
            ("next", f"neuraverse publish {skill.path}"),
        ]
    )
    out.json(
        {
            "skill": skill.ref,
            "digest": skill.digest,
            "path": str(skill.path),
            "run_dir": str(folder),
            "parents": list(manifest.parents),
            "seeds": list(training.seeds),
            "seed_scores": training.seed_scores,
            "env_steps": training.env_steps,
            "wall_s": training.wall_s,
            "cpu_s": training.cpu_s,
            "device": training.device,
            "episodes": evaluation.episodes,
            "success": score_json(evaluation.score) if judged else None,
            "source": score_json(evaluation.source),
            "metrics": evaluation.metrics,
            "bar": {"success": recipe.bar.success, "reached": reached},
        }
    )
