"""``neuraverse demo``: the whole story, shown while it happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.display import progress_words
from neuraverse.cli.output import Out, console_on, note, score_words

if TYPE_CHECKING:
    from neuraverse.demo.report import Report, Taken
    from neuraverse.learn import Progress

_LINE_EVERY_S = 10.0  # where there is no terminal


def demo(
    overrides: options.Overrides = None,
    folder: Annotated[
        Path,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Registry, homes, runs, pictures; a run cut there goes on, a finished one is moved aside.",
        ),
    ] = Path("runs/demo"),
    json: options.Json = None,
) -> None:
    """See the whole story: a robot learns to weld a seam and three others take the skill over.

    Starts a registry and Ray on this machine (or joins RAY_ADDRESS), trains, scores, signs and publishes a
    skill; three robots with other bodies are told, verify it, try it, and use it or improve it. It takes a
    few minutes on two cores.
    """
    from neuraverse.demo.story import tell

    out = Out(json)
    with _narrator() as narrator:
        report = tell(folder, narrator, overrides=overrides or ())
    _print(report, out)
    out.json(report.to_dict())


class _Narrator:
    """Lines for what happened, and a bar for each run that goes on."""

    def __init__(self, console: Any, bars: Any) -> None:
        self._console, self._bars = console, bars
        self._began = time.monotonic()
        self._tasks: dict[str, Any] = {}
        self._due: dict[str, float] = {}

    def stage(self, text: str) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._line(text, "bold")

    def say(self, text: str) -> None:
        self._line(f"  {text}", "")

    def progress(self, run: str, progress: Progress) -> None:
        words = progress_words(progress)
        if progress.validation is not None:
            self.say(
                f"{run}: {progress.env_steps:,} steps, {score_words(progress.validation)} on validation seeds"
            )
        if self._bars is None:
            if time.monotonic() >= self._due.get(run, 0.0):
                self._due[run] = time.monotonic() + _LINE_EVERY_S
                self.say(f"{run}: {progress.env_steps:,} of {progress.total_steps:,} steps, {words}")
            return
        if run not in self._tasks:
            self._tasks[run] = self._bars.add_task(run, total=progress.total_steps, words="")
        self._bars.update(
            self._tasks[run], completed=progress.env_steps, total=progress.total_steps, words=words
        )

    def _line(self, text: str, style: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        line = f"{minutes}:{seconds:02d}  {text}"
        if self._console is None:
            note(line)
        else:
            self._console.print(line, style=style, soft_wrap=True)


@contextlib.contextmanager
def _narrator() -> Iterator[_Narrator]:
    console = console_on(stderr=True)
    if not console.is_terminal:
        yield _Narrator(None, None)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("      {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Narrator(console, bars)


def _print(report: Report, out: Out) -> None:
    out.line()
    out.line(f"{report.skill}  {score_words(report.success)}, learned in {report.train_seconds:.0f} s")
    out.line()
    out.table(
        (
            "robot",
            "verified",
            "as it is",
            "decision",
            "at the end",
            "steps learned",
            "seconds",
            "from nothing",
        ),
        [_row(taken) for taken in report.robots],
    )
    out.line()
    out.line("Lineage")
    out.line(f"  {report.skill}  {report.digest}")
    for taken in report.robots:
        if taken.published:
            out.line(f"  └─ {taken.published}  {taken.digest}  fine-tuned by {taken.robot}")
    out.line()
    for path in report.pictures.values():
        out.line(f"picture  {path}")
    out.line(f"seconds  {report.seconds:.0f}")
    out.line()
    out.line(f"The registry was at {report.registry}; its data are kept. What to type next:")
    data = Path(report.registry_data)
    out.line(f"  neuraverse serve --data {data}                         # the registry again, on port 8420")
    name = report.skill.partition("@")[0]
    out.line(f"  neuraverse keys trust {report.author_key} --org {name.partition('/')[0]}")
    out.line(f"  neuraverse pull {name} && neuraverse eval {name} --robot iiwa14")


def _row(taken: Taken) -> tuple[str, ...]:
    def short(score: Any) -> str:
        return "-" if score is None else f"{score.rate:.1%} (≥ {score.lower:.1%}, n {score.n})"

    if not taken.scratch_limit:
        scratch = "-"
    elif taken.scratch_steps is None:
        scratch = f"not within {taken.scratch_limit:,} steps"
    else:
        scratch = f"{taken.scratch_steps:,} steps"
    return (
        taken.robot,
        "yes" if taken.verified else "no",
        short(taken.zero_shot),
        taken.decision,
        short(taken.after),
        f"{taken.steps:,}",
        f"{taken.seconds:.0f}",
        scratch,
    )
