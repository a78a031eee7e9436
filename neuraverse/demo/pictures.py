"""The demo's pictures: the learning curves, and a film of the weld."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuraverse.errors import MissingExtraError
from neuraverse.learn.adopt import check_env
from neuraverse.learn.envs import make_env
from neuraverse.learn.export import policy_of
from neuraverse.learn.recipe import EnvSettings
from neuraverse.skill import Skill
from neuraverse.storage import write_atomic

_FILM_SEED = 3_000_000_007  # a seam that no score was taken on
_WIDTH, _HEIGHT = 480, 360
_BEAD_STEP_M = 1e-3


def curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, float | None]]], target: float) -> None:
    """Draw success on the validation seeds over the steps learned from, one line for each run.

    Args:
        path: The PNG.
        runs: Curve of each run, by its label.
        target: Success asked for, drawn as a line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingExtraError("matplotlib", "train", "the picture of the learning curves") from err
    figure = Figure(figsize=(7.2, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for label, curve in runs.items():
        points = [(e["env_steps"], e["validation"]) for e in curve if e.get("validation") is not None]
        if points:
            steps, rates = np.asarray(points, dtype=float).T
            axes.plot(steps / 1e3, 100.0 * rates, marker="o", markersize=3, label=label)
    axes.axhline(100.0 * target, color="grey", linewidth=0.8, linestyle="--", label="lower bound asked for")
    axes.set_xlabel("steps learned from [thousand]")
    axes.set_ylabel("success on the validation seeds [%]")
    axes.set_ylim(-3.0, 103.0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def film(path: Path, skill: Skill, env: EnvSettings, *, seed: int = _FILM_SEED) -> None:
    """Film one weld by `skill`, with the bead drawn green where it is in tolerance and red where it is not.

    Args:
        path: The GIF.
        skill: What welds.
        env: Where: task and robot.
        seed: Of the episode.

    Raises:
        NeuraverseError: This machine cannot render; says what to install.
    """
    from neuraverse.sim.render import Line, Renderer, View, save_gif

    check_env(env)
    vector: Any = make_env(env, 1, backend="torch", threads=1).unwrapped
    policy = policy_of(skill)
    task = vector.task
    obs, _ = vector.reset(seed=seed)
    seam = task.physics.mocap_pos[0, 0].tolist()
    view = View(
        lookat=(seam[0], seam[1], seam[2] + 0.12), distance_m=0.75, azimuth_deg=125.0, elevation_deg=-22.0
    )
    renderer = Renderer(task.physics.model, width=_WIDTH, height=_HEIGHT, view=view)
    frames, bead = [], _Bead()
    try:
        for step in range(task.max_steps):
            if step % 3 == 0:
                frames.append(renderer.frame(task.physics, 0, lines=bead.lines(Line)))
            obs, _, terminated, truncated, _ = vector.step(policy(obs))
            if bool(terminated[0] | truncated[0]):
                break
            bead.extend(task)
    finally:
        renderer.close()
    save_gif(path, [*frames, *frames[-1:] * 8], fps=task.rate_hz / 3.0)


class _Bead:
    """What has been welded so far, as lines in the world."""

    def __init__(self) -> None:
        self._runs: list[tuple[bool, list[np.ndarray]]] = []

    def extend(self, task: Any) -> None:
        if float(task.s_max[0]) <= 0.0:
            return
        tip, rotation = task.physics.site_pose("tool_tip")
        point = (tip[0] + 0.015 * rotation[0, :, 2]).numpy().copy()
        good = bool(float(task.good[0]) > getattr(self, "_good", 0.0))
        self._good = float(task.good[0])
        if not self._runs or self._runs[-1][0] != good:
            start = [self._runs[-1][1][-1]] if self._runs else []
            self._runs.append((good, start))
        points = self._runs[-1][1]
        if not points or float(np.linalg.norm(point - points[-1])) >= _BEAD_STEP_M:
            points.append(point)

    def lines(self, line: Any) -> list[Any]:
        colours = {True: (0.15, 0.75, 0.3, 1.0), False: (0.9, 0.2, 0.15, 1.0)}
        return [line(points=np.asarray(p), rgba=colours[good]) for good, p in self._runs if len(p) > 1]
