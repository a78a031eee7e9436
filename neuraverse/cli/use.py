"""Use: run, robots, version."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuraverse.cli import options
from neuraverse.cli.failures import EXTRA_OF
from neuraverse.cli.options import USE, example
from neuraverse.cli.output import Out, busy, note

if TYPE_CHECKING:
    from neuraverse.sim.robot import Robot

RobotName = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE", help="A robot by name, or an arm's MJCF file with --tool.", show_default=False
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(
        "run",
        rich_help_panel=USE,
        epilog=example(
            "neuraverse run acme/weld-seam --robot ur5e", "neuraverse run ./skill --dry --steps 500"
        ),
    )(run)
    robots = typer.Typer(help="List the robots there are; check and draw one, or an arm of your own.")
    robots.command("list", epilog=example("neuraverse robots list"))(list_robots)
    robots.command(
        "check",
        epilog=example("neuraverse robots check ur5e", "neuraverse robots check arm.xml --tool wrist_3_link"),
    )(check_robot)
    robots.command("view", epilog=example("neuraverse robots view ur5e --out ur5e.png"))(view_robot)
    app.add_typer(robots, name="robots", rich_help_panel=USE)
    app.command("version", rich_help_panel=USE, epilog=example("neuraverse version"))(version)


def run(
    ref: options.Ref,
    robot: options.Robot = None,
    tool: options.Tool = None,
    env: options.Env = None,
    dry: Annotated[
        bool,
        typer.Option("--dry", help="Without a simulation: observe rest, throw actions away. Needs no extra."),
    ] = False,
    episodes: Annotated[
        int, typer.Option("--episodes", metavar="N", min=1, help="Episodes to run in the simulated cell.")
    ] = 1,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="End after so many control steps; 100 if --dry."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="HZ", help="Control rate; the skill's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the simulated cell.")] = 0,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Run a skill as a robot does: a control loop at its rate, in a simulated cell or dry."""
    from neuraverse.cli import loop
    from neuraverse.cli.cell import fetch

    out = Out(json)
    skill = fetch(ref, registry)
    done: list[dict[str, float]] = []
    if dry:
        report, where = loop.dry(skill, steps or 100, rate), "nothing (dry)"
    else:
        report, done, where = loop.simulated(
            skill, robot=robot, tool=tool, env=env, episodes=episodes, steps=steps, rate=rate, seed=seed
        )
    out.line(f"{skill.ref} on {where}")
    for index, episode in enumerate(done):
        words = (f"{name} {value:.4g}" for name, value in episode.items() if name != "success")
        verdict = {1.0: "success, ", 0.0: "no success, "}.get(episode.get("success", -1.0), "")
        out.line(f"episode {index}: {verdict}{', '.join(words)}")
    out.line(
        f"{report.ticks} ticks, {report.missed} missed, late p99 {report.late_p99_s * 1e3:.2f} ms,"
        f" observation to action and applied p99 {report.busy_p99_s * 1e3:.2f} ms"
    )
    out.json(
        {
            "skill": skill.ref,
            "digest": skill.digest,
            "where": where,
            "episodes": done,
            "loop": dataclasses.asdict(report),
        }
    )


def list_robots(json: options.Json = None) -> None:
    """List the robots that skills can be trained and run on."""
    from neuraverse.sim.robot import Robot, robot_names

    out = Out(json)
    found = [Robot.load(name) for name in robot_names()]
    out.table(
        ("robot", "", "joints", "reach m", "servo Hz", "latency ms", "tool kg"),
        [
            (
                r.name,
                r.title,
                str(r.dof),
                f"{r.reach_m:.2f}",
                f"{r.servo_hz:g}",
                f"{r.latency_s * 1e3:g}",
                f"{r.tool_mass_kg:g}",
            )
            for r in found
        ],
    )
    out.json([r.body() | {"title": r.title, "reach_m": r.reach_m, "source": r.source} for r in found])


def check_robot(name: RobotName, tool: options.Tool = None, json: options.Json = None) -> None:
    """Drive a robot with random twists and along a path at weld speed; exit 1 if it does not track."""
    from neuraverse.sim.check import check_robot as check

    out = Out(json)
    robot = _robot(name, tool)
    with busy(f"driving {robot.name}"):
        report = check(robot)
    found = dataclasses.asdict(report)
    out.fields((k, f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in found.items())
    out.json(found)
    if not report.passed:
        note(f"error: {robot.name} does not track well enough to run task-space skills")
        raise typer.Exit(1)


def view_robot(
    name: RobotName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="The picture to write.")],
    tool: options.Tool = None,
) -> None:
    """Draw a robot at home. Works without a screen."""
    from neuraverse.sim.render import Renderer, save_png

    robot = _robot(name, tool)
    model = robot.spec().compile()
    qpos = [0.0] * model.nq
    for joint, q in zip(robot.joints, robot.home, strict=True):
        qpos[model.joint(joint).qposadr[0]] = q
    renderer = Renderer(model)
    try:
        save_png(out, renderer.image(qpos))
    finally:
        renderer.close()
    Out().line(f"{robot.name} at home: {out}")


def _robot(name: str, tool: str | None) -> Robot:
    from neuraverse.sim.robot import Robot

    return Robot.load(name, tool=tool)


def version(json: options.Json = None) -> None:
    """Print the versions of Neuraverse and of the packages that decide its numbers."""
    found = {"neuraverse": "", "python": platform.python_version()}
    for package in ("neuraverse", "numpy", "onnxruntime", "safetensors", *sorted(EXTRA_OF)):
        try:
            found[package] = importlib.metadata.version("pillow" if package == "PIL" else package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not found["neuraverse"]:
        import neuraverse

        found["neuraverse"] = neuraverse.__version__
    out = Out(json)
    out.fields(found.items())
    out.json(found)
