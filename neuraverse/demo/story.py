"""The whole story on one seam, every part of it real.

A Panda learns to weld in two Ray actors, its best policy is scored, sealed, signed and published to a
registry in a process of its own. Three robots, each with its own keys, trust and cache, wait at that
registry: they are told, pull, verify, check the interface and probe the skill in their own cells. Two use it
as it is; the third, a body outside what the skill was trained over, fine-tunes it, publishes the child, and
is compared with learning from nothing.

Everything lies in one folder. A run that was cut goes on where it stopped when it is run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from neuraverse import machine
from neuraverse.client import Client
from neuraverse.demo import pictures
from neuraverse.demo.report import Report, Taken
from neuraverse.errors import NetworkError, NeuraverseError, StorageError, TrainingError
from neuraverse.fleet import (
    AdoptionReport,
    best_of,
    connect,
    evaluate,
    fine_tune_job,
    get,
    run,
    start_cell,
    train,
    train_job,
)
from neuraverse.learn.adopt import child_recipe
from neuraverse.learn.envs import make_env
from neuraverse.learn.export import policy_of
from neuraverse.learn.progress import Progress, Result
from neuraverse.learn.recipe import EnvSettings, Recipe
from neuraverse.learn.sealing import seal, versions
from neuraverse.registry.server import claimed
from neuraverse.skill import Skill
from neuraverse.storage import write_atomic
from neuraverse.trust import KeyStore

RECIPE = "weld-seam"
SEEDS = (0, 1)
ROBOTS = ("ur5e", "iiwa14", "ur5e-slow")
TARGET = 0.90  # lower bound of success at which a robot is content
PROBE_EPISODES = 256
CHILD_EVERY = 4  # iterations between validations, of the fine-tuning and of the scratch run alike
_MARK = "demo.json"
_START_S = 60.0


class Narrator(Protocol):
    """Who tells the story while it happens."""

    def stage(self, text: str) -> None:
        """A new part begins."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, run: str, progress: Progress) -> None:
        """A run has got further."""


def tell(folder: Path, narrator: Narrator, *, overrides: Sequence[str] = ()) -> Report:
    """Run the story in `folder`.

    Args:
        folder: Registry, homes, runs and pictures go here. A finished story there is moved aside first, one
            that was cut goes on.
        narrator: Told what happens.
        overrides: Changes to the recipe, such as ``"ppo.total_steps=200000"``.

    Raises:
        NeuraverseError: What went wrong, and what to do.
    """
    began = time.monotonic()
    folder = folder.absolute()
    recipe = Recipe.load(RECIPE, overrides)
    aside = _move_finished(folder)
    if aside is not None:
        narrator.say(f"the story of before is in {aside}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"{folder} cannot be made: {err.strerror}", remedy="choose another --dir") from err
    narrator.stage("A registry on this machine, and Ray")
    with _registry(folder / "registry") as (url, check), connect():
        narrator.say(f"registry at {url}")
        if os.environ.get("RAY_ADDRESS"):
            narrator.say(f"Ray's cluster joined; all its nodes must see {folder}")
        story = _Story(folder, url, check, recipe, narrator)
        report = story.run()
    report.registry, report.registry_data = url, str(folder / "registry")
    report.author_key = str(story.author_key)
    report.machine, report.versions = machine.describe(), versions()
    report.seconds = time.monotonic() - began
    write_atomic(folder / _MARK, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    return report


class _Story:
    def __init__(
        self, folder: Path, url: str, check: Callable[[], None], recipe: Recipe, narrator: Narrator
    ) -> None:
        self.folder, self.url, self.recipe, self.narrator = folder, url, recipe, narrator
        self.check = check  # raises if the registry has died: the robots would wait for ever
        self.name = recipe.skill.name
        self.org = self.name.partition("/")[0]
        self.curves: dict[str, Sequence[Any]] = {}

    def run(self) -> Report:
        cells, ready, listening = self._robots()
        skill, runs = self._learn()
        self._publish(skill, ready)
        manifest = skill.manifest
        report = Report(
            skill=skill.ref,
            digest=skill.digest,
            seeds=manifest.training.seeds,
            seed_scores=manifest.training.seed_scores,
            train_seconds=manifest.training.wall_s,
            env_steps=manifest.training.env_steps,
            success=manifest.evaluation.score,
            metrics=manifest.evaluation.metrics,
        )
        report.robots = self._receive(cells, listening)
        for result in runs:
            self.curves[f"{self.recipe.env.robot}, seed {result.seed}"] = result.curve
        report.pictures = self._pictures(skill, report)
        return report

    # Robots that wait.

    def _home(self, robot: str) -> Path:
        return self.folder / "homes" / robot

    def _keys(self, robot: str) -> KeyStore:
        """The key store of a robot, with a key of its own."""
        store = KeyStore(self._home(robot))
        if not any(key.name == "default" for key in store.list()):
            store.new("default")
        return store

    @property
    def author_key(self) -> Path:
        """The author's public key, to hand to others."""
        return self._home(str(self.recipe.env.robot)) / "keys" / "default" / "public.pem"

    def _cell_env(self, robot: str) -> EnvSettings:
        return dataclasses.replace(self.recipe.env, robot=robot, randomise={})

    def _robots(self) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        """Start the cells; each operator trusts the author's public key, handed over in person.

        Returns:
            The cells, what tells that each is set up, and what each will have made of the skill: they watch
            from now on, and from the first event on, so that a story that was cut finds its own.
        """
        author = str(self.recipe.env.robot)
        pem = self._keys(author).public_key("default").pem
        cells = {}
        for robot in ROBOTS:
            self._keys(robot).trust(pem, self.org)
            cells[robot] = start_cell(
                self._cell_env(robot), registry=self.url, home=self._home(robot), num_envs=128
            )
        ready = [cell.ready.remote() for cell in cells.values()]
        listening = {
            robot: cell.listen.remote(self.name, target=TARGET, episodes=PROBE_EPISODES, after="0")
            for robot, cell in cells.items()
        }
        self.narrator.say(f"{', '.join(ROBOTS)} wait at the registry, each with its own keys and cache")
        return cells, ready, listening

    # One robot that learns.

    def _learn(self) -> tuple[Skill, list[Result]]:
        robot = str(self.recipe.env.robot)
        self.narrator.stage(f"A {robot} learns {self.name}: {len(SEEDS)} seeds, one Ray actor each")
        results = train(
            self.recipe,
            SEEDS,
            run_dir=self.folder / "runs" / "learn",
            on_progress=lambda seed, p: self.narrator.progress(f"{robot}, seed {seed}", p),
        )
        best = best_of(results)
        assert best.validation is not None
        self.narrator.say(
            f"seed {best.seed} is better on the validation seeds: {_said(best.validation.score)}"
        )
        path = self.folder / "skill"
        if path.exists():
            return Skill.open(path), results
        settings = self.recipe.eval
        self.narrator.stage(f"Scored on {settings.episodes} seeds that training never saw")
        scored = evaluate(
            best.policy, self.recipe.env, settings.episodes, settings.seed_first, num_envs=settings.num_envs
        )
        self.narrator.say(_said(scored.score))
        private = self._keys(robot).private_key_path("default")
        with contextlib.closing(make_env(self.recipe.env, 1)) as env:
            skill = seal(best, self.recipe, scored, path, env=env, key=private, runs=results)
        return skill, results

    def _publish(self, skill: Skill, ready: list[Any]) -> None:
        for ref in ready:
            get(ref, check=self.check)  # every cell is set up and watches
        with Client(self.url, home=self._home(str(self.recipe.env.robot))) as client:
            client.publish(skill.path)
        self.narrator.stage(f"Signed and published: {skill.ref}, {skill.digest[:19]}…")

    # Three robots that receive.

    def _receive(self, cells: dict[str, Any], listening: dict[str, Any]) -> list[Taken]:
        taken = []
        for robot, ref in listening.items():
            found: AdoptionReport = get(ref, check=self.check)
            entry = Taken(
                robot=robot,
                verified=bool(found.verified),
                outside=found.outside,
                notified_s=found.notified_s,
                zero_shot=found.zero_shot,
                decision=found.decision,
                reason=found.reason,
                after=found.zero_shot if found.decision == "use" else None,
                probe_steps=found.probe_steps,
                seconds=found.seconds,
            )
            taken.append(entry)
            self.narrator.say(f"{robot}: {found.decision}: {found.reason}")
            for sentence in found.outside:
                self.narrator.say(f"{robot}: outside the ranges of training: {sentence}")
            if found.decision == "fine-tune":
                self._improve(cells[robot], found, entry)
        return taken

    def _improve(self, cell: Any, found: AdoptionReport, entry: Taken) -> None:
        """Fine-tune for one robot, beside a run from nothing on the same body; publish the child."""
        began = time.monotonic()
        robot = entry.robot
        if found.path is None:
            raise TrainingError(f"{robot} has no copy of {found.ref}")
        parent = Skill.open(found.path)
        self.narrator.stage(f"{robot} fine-tunes it; beside it, the same body learns from nothing")
        overrides = [
            f"validation.every={CHILD_EVERY}",
            f"skill.name={robot}-cell/{self.name.partition('/')[2]}",
        ]
        recipe = child_recipe(parent, overrides=overrides, robot=robot, randomise={}, target=TARGET)
        child, scratch = self._race(parent, recipe, found)
        entry.steps = child.env_steps
        entry.scratch_limit = scratch.env_steps
        entry.scratch_steps = scratch.env_steps if scratch.reached else None
        start = {"env_steps": 0.0, "validation": None if found.zero_shot is None else found.zero_shot.rate}
        self.curves[f"{robot}, fine-tuned"] = [start, *child.curve]
        self.curves[f"{robot}, from nothing"] = scratch.curve

        settings = recipe.eval
        self.narrator.stage(f"Parent and child on {robot}, {settings.episodes} new seeds each")
        before, after = (
            evaluate(policy, recipe.env, settings.episodes, settings.seed_first, num_envs=settings.num_envs)
            for policy in (policy_of(parent), child.policy)
        )
        entry.after = after.score
        resolved = get(
            cell.publish_child.remote(
                child, recipe, parent=parent.digest, evaluation=after, parent_evaluation=before
            )
        )
        entry.published, entry.digest = f"{resolved.name}@{resolved.version}", resolved.digest
        entry.seconds += time.monotonic() - began
        self.narrator.say(
            f"{_said(before.score)} before, {_said(after.score)} after; published {entry.published}"
        )

    def _race(self, parent: Skill, recipe: Recipe, found: AdoptionReport) -> tuple[Result, Result]:
        """Fine-tuning, and scratch up to twice its steps, at the same time."""
        robot = found.robot
        runs = self.folder / "runs"
        tuning = fine_tune_job(
            parent,
            run_dir=runs / "fine-tune",
            name=f"{robot}, fine-tuned",
            recipe=recipe,
            zero_shot=found.probe,
        )
        # The learner of the source, on this body, with the same bar, looked at as often.
        from_nothing = dataclasses.replace(self.recipe, env=recipe.env, validation=recipe.validation)
        limit = 2 * recipe.ppo.total_steps
        scratch = train_job(
            from_nothing, run_dir=runs / "scratch", name=f"{robot}, from nothing", total_steps=limit
        )
        spent = {"steps": limit // 2}

        def watch(name: str, progress: Progress) -> bool:
            self.narrator.progress(name, progress)
            if name == tuning.name:
                done = progress.validation is not None and progress.validation.lower >= TARGET
                if done:
                    spent["steps"] = progress.env_steps
                return True
            return progress.env_steps < 2 * spent["steps"]

        child, other = run([tuning, scratch], on_progress=watch)
        return child, other

    # Pictures.

    def _pictures(self, skill: Skill, report: Report) -> dict[str, str]:
        self.narrator.stage("Pictures")
        made = {}
        curve, weld = self.folder / "curves.png", self.folder / "weld.gif"
        best = next((t for t in report.robots if t.published), None)
        shown = "ur5e" if best is None else best.robot
        path = (
            skill.path
            if best is None
            else self._home(shown) / "skills" / str(best.published).replace("/", "-")
        )
        drawings: tuple[tuple[Path, Callable[[], None]], ...] = (
            (curve, lambda: pictures.curves(curve, self.curves, TARGET)),
            (weld, lambda: pictures.film(weld, Skill.open(path), self._cell_env(shown))),
        )
        for target, draw in drawings:
            try:
                draw()
                made[target.stem] = str(target)
                self.narrator.say(str(target))
            except NeuraverseError as err:  # the story is whole without a picture; say what is missing
                self.narrator.say(f"no {target.name}: {err}")
        return made


@contextlib.contextmanager
def _registry(data: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A registry in a process of its own, on a free port of loopback.

    Yields:
        Its URL, and a check that raises if it has died.
    """
    ready, log = data.with_suffix(".ready.json"), data.with_suffix(".log")
    ready.unlink(missing_ok=True)
    with log.open("ab") as output:
        # Its own process group: Ctrl-C at the terminal ends the story first, and the registry after it.
        process = subprocess.Popen(
            [sys.executable, "-m", "neuraverse.demo.host", str(data), str(ready)],
            stdin=subprocess.PIPE,  # never written to: its end tells the registry that the story is over
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def check() -> None:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "it said nothing"
            raise NetworkError(f"the registry has ended: {reason}", remedy=f"see {log}")

    try:
        deadline = time.monotonic() + _START_S
        while not ready.exists():
            check()
            if time.monotonic() > deadline:
                raise NetworkError(f"the registry did not start within {_START_S:.0f} s", remedy=f"see {log}")
            time.sleep(0.05)
        yield str(json.loads(ready.read_text())["url"]), check
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _move_finished(folder: Path) -> Path | None:
    """Move a finished story aside, with all that was published to its registry; where to, if there was one.

    Raises:
        StorageError: A server is using its registry, or the folder cannot be moved.
    """
    if not (folder / _MARK).is_file():
        return None
    aside = next(p for k in itertools.count(1) if not (p := folder.with_name(f"{folder.name}-{k}")).exists())
    with claimed(folder / "registry"):
        pass
    try:
        return folder.rename(aside)
    except OSError as err:
        raise StorageError(
            f"{folder} cannot be moved aside: {err.strerror}", remedy="choose another --dir"
        ) from err


def _said(score: Any) -> str:
    return (
        "no score"
        if score is None
        else f"success {score.rate:.1%} (at least {score.lower:.1%}, n = {score.n})"
    )
