"""Learn: train, fine-tune, eval, and the recipes and environments there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.options import LEARN, example
from neuraverse.cli.output import Out, busy, note, score_json, score_words

if TYPE_CHECKING:
    from neuraverse.learn.evaluation import Scored
    from neuraverse.manifest import SkillManifest


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(
        "train",
        rich_help_panel=LEARN,
        epilog=example(
            "neuraverse train weld-seam",
            "neuraverse train HalfCheetah-v5 ppo.lr=3e-4 ppo.total_steps=2e6 --seeds 3",
        ),
    )(train)
    app.command(
        "fine-tune",
        rich_help_panel=LEARN,
        epilog=example("neuraverse fine-tune acme/weld-seam --robot ur5e-slow skill.name=me/weld-seam-slow"),
    )(fine_tune)
    app.command(
        "eval",
        rich_help_panel=LEARN,
        epilog=example(
            "neuraverse eval acme/weld-seam --robot ur5e --episodes 1000 --json scores.json",
            "neuraverse eval ./skill --robot arm.xml --tool wrist_3_link",
        ),
    )(evaluate)
    app.command(
        "recipes",
        rich_help_panel=LEARN,
        epilog=example("neuraverse recipes", "neuraverse recipes weld-seam ppo.num_envs=512"),
    )(recipes)
    envs = typer.Typer(help="List the tasks that come with Neuraverse, and check one of your own.")
    envs.command("list", epilog=example("neuraverse envs list"))(list_envs)
    envs.command(
        "check", epilog=example("neuraverse envs check neuraverse_envs:neuraverse/WeldSeam-v0 --robot ur5e")
    )(check_env)
    app.add_typer(envs, name="envs", rich_help_panel=LEARN)


def train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH|GYM_ID",
            help="A recipe by name, a skill.toml, or a Gymnasium id such as HalfCheetah-v5.",
            show_default=False,
        ),
    ],
    overrides: options.Overrides = None,
    seed: options.Seed = 0,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="N",
            min=1,
            max=100,
            help="Train so many seeds, SEED and on, each in a Ray actor of its own; the best one is kept.",
        ),
    ] = 1,
    device: options.Device = None,
    run_dir: options.RunDir = None,
    out: options.SkillDir = None,
    key: options.Key = None,
    json: options.Json = None,
) -> None:
    """Train a skill: learn in simulation, score it on seeds that training never saw, seal and sign it.

    Several seeds train side by side in Ray actors; with RAY_ADDRESS set, on that cluster, one seed too. A run
    that was interrupted goes on when the same command is given again.
    """
    from neuraverse.cli.training import train as run

    run(
        name,
        overrides or (),
        seed=seed,
        seeds=seeds,
        device=device,
        run_dir=run_dir,
        skill_dir=out,
        key=key,
        out=Out(json),
    )


def fine_tune(
    ref: options.Ref,
    overrides: options.Overrides = None,
    robot: options.Robot = None,
    tool: options.Tool = None,
    env: options.Env = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    run_dir: options.RunDir = None,
    out: options.SkillDir = None,
    key: options.Key = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Go on from a skill on another robot, and seal the result as its child.

    Parent and child are scored on the same seeds. The child is called local/SKILL-ROBOT unless
    skill.name=ORG/SKILL is given; a run that was interrupted goes on when the same command is given again.
    With RAY_ADDRESS set, the work is done on that Ray cluster.
    """
    from neuraverse.cli.training import fine_tune as run

    run(
        ref,
        overrides or (),
        robot=robot,
        tool=tool,
        env_id=env,
        seed=seed,
        device=device,
        run_dir=run_dir,
        skill_dir=out,
        key=key,
        registry=registry,
        out=Out(json),
    )


def evaluate(
    ref: options.Ref,
    robot: options.Robot = None,
    tool: options.Tool = None,
    env: options.Env = None,
    episodes: options.Episodes = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Score a skill on any robot, as it is.

    One episode for each seed of the published list, deterministic. Without --robot, on the body and the
    spread that it was trained on, which repeats the score in its manifest. With RAY_ADDRESS set, the episodes
    are shared out on that Ray cluster.
    """
    from neuraverse.cli.cell import fetch, recipe_for
    from neuraverse.cli.place import place
    from neuraverse.learn import make_env
    from neuraverse.learn.envs import outside

    out = Out(json)
    skill = fetch(ref, registry)
    manifest = skill.manifest
    recipe = recipe_for(manifest, env=env, robot=robot, tool=tool)
    count = episodes or manifest.evaluation.episodes
    where = recipe.env.robot or recipe.env.id
    strange = outside(make_env(recipe.env, 1), manifest)
    for sentence in strange:
        note(f"outside what it was trained over: {sentence}")
    with place() as there, busy(f"{count} episodes of {skill.ref} on {where}"):
        found = there.probe(
            skill,
            recipe.env,
            num_envs=min(count, recipe.eval.num_envs),
            episodes=count,
            seed_first=manifest.evaluation.seed_first,
            success_return=recipe.bar.success_return,
        )
    if found.scored is None:
        from neuraverse.errors import IncompatibleError

        raise IncompatibleError(f"{skill.ref} cannot run on {where}", problems=found.problems)
    scored = found.scored
    out.line(f"{skill.ref} on {where}")
    out.fields(_score_fields(scored, manifest))
    for problem in found.problems:
        out.line(f"not safe to use here: {problem}")
    out.json(
        {
            "skill": skill.ref,
            "digest": skill.digest,
            "robot": recipe.env.robot,
            "env": recipe.env.id,
            "seed_first": scored.seed_first,
            "outside": strange,
            "problems": list(found.problems),
            "published": score_json(manifest.evaluation.score),
            **scored_json(scored),
        }
    )


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|PATH|GYM_ID", help="Show this one, field by field.")
    ] = None,
    overrides: options.Overrides = None,
    json: options.Json = None,
) -> None:
    """List the recipes that can be trained, or show every field of one and so what can be overridden."""
    from neuraverse.learn.recipe import Recipe, names

    out = Out(json)
    if name is None:
        found = {known: Recipe.load(path) for known, path in names().items()}
        out.table(
            ("recipe", "title", "environment", "robot"),
            [(k, r.skill.title, r.env.id, r.env.robot or "") for k, r in found.items()],
        )
        out.json([{"recipe": k, **r.to_dict()} for k, r in found.items()])
        return
    plain = Recipe.load(name, overrides or ()).to_dict()
    for section, fields in plain.items():
        out.line(f"[{section}]")
        out.fields((f"{section}.{field}", _toml(value)) for field, value in fields.items())
        out.line()
    out.json(plain)


def list_envs(json: options.Json = None) -> None:
    """List the tasks that come with Neuraverse. Any other Gymnasium id with Box spaces can be trained too."""
    from neuraverse.sim.registration import tasks

    out = Out(json)
    known: dict[str, Any] = dict(tasks())
    found = [
        {
            "env": env_id,
            "rate_hz": task.rate_hz,
            "success": task.success,
            "observation": [s.name for s in task.observation],
            "action": [s.name for s in task.action],
        }
        for env_id, task in known.items()
    ]
    for env in found:
        out.fields(
            (k, " ".join(v) if isinstance(v, list) else f"{v:g}" if isinstance(v, float) else str(v))
            for k, v in env.items()
        )
        out.line()
    out.json(found)


def check_env(
    env_id: Annotated[
        str, typer.Argument(metavar="ID", help="Gymnasium id, module:namespace/Name-v0.", show_default=False)
    ],
    robot: options.Robot = None,
    tool: options.Tool = None,
    json: options.Json = None,
) -> None:
    """Check that a task keeps what its users rely on; exit 1 if it does not."""
    from neuraverse.cli.cell import load_tasks
    from neuraverse.errors import UsageError
    from neuraverse.learn import make_env
    from neuraverse.learn.recipe import EnvSettings
    from neuraverse.sim.testing import check_task

    out = Out(json)
    load_tasks()
    kwargs: dict[str, Any] = {k: v for k, v in (("robot", robot), ("tool", tool)) if v is not None}
    if not hasattr(make_env(EnvSettings(id=env_id), 1, **kwargs), "task"):
        raise UsageError(
            f"{env_id} is no task made with neuraverse.sim", remedy="register it with neuraverse.sim.register"
        )
    with busy(f"checking {env_id}"):
        checks = check_task(env_id, **kwargs)
    out.table(
        ("", "check", "seen"),
        [("ok" if c.passed else "FAILED", c.name, " ".join(c.detail.split())) for c in checks],
    )
    passed = all(c.passed for c in checks)
    out.json(
        {
            "env": env_id,
            "passed": passed,
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
        }
    )
    if not passed:
        note(f"error: {env_id} fails {sum(not c.passed for c in checks)} of {len(checks)} checks")
        raise typer.Exit(1)


def scored_json(scored: Scored) -> dict[str, Any]:
    """What an evaluation found, for programs."""
    return {
        "episodes": scored.episodes,
        "success": score_json(scored.score),
        "mean_return": scored.mean_return,
        "metrics": scored.metrics,
    }


def _score_fields(scored: Scored, manifest: SkillManifest) -> list[tuple[str, str]]:
    return [
        ("success", score_words(scored.score)),
        ("published", score_words(manifest.evaluation.score)),
        ("mean return", f"{scored.mean_return:.2f}"),
        *((name, f"{value:.3g}") for name, value in scored.metrics.items()),
    ]


def _toml(value: object) -> str:
    import json

    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
