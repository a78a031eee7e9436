"""What commands print: words and tables for people, JSON for programs.

Results go to stdout, progress to stderr. With ``--json -`` stdout is the JSON alone; the words go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraverse.cli.failures import printable
from neuraverse.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from neuraverse.manifest import Score

STDOUT = "-"
_PIPE_WIDTH = 200  # columns where there is no terminal


class Out:
    """Where one command's results go.

    Args:
        json_to: A file for the JSON, ``-`` for stdout, or None for no JSON.

    Raises:
        UsageError: The file's folder does not exist.
    """

    def __init__(self, json_to: str | None = None) -> None:
        self._json_to = json_to
        if json_to is not None and json_to != STDOUT and not Path(json_to).absolute().parent.is_dir():
            raise UsageError(f"--json {json_to}: there is no such folder", remedy="make it first")
        self._console = console_on(stderr=json_to == STDOUT)

    def line(self, text: str = "") -> None:
        """One line for people; without markup, and stripped of control characters."""
        self._console.print(printable(text), soft_wrap=True)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table for people."""
        from rich.table import Table

        table = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(printable(cell) for cell in row))
        self._console.print(table)

    def fields(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one pair a line; pairs without a value are left out."""
        kept = [(name, value) for name, value in pairs if value]
        width = max((len(name) for name, _ in kept), default=0)
        for name, value in kept:
            self.line(f"{name:<{width}}  {value}")

    def secret(self, text: str) -> None:
        """A secret, alone on stdout, so that it can be piped; where the JSON goes there, it is in that."""
        if self._json_to != STDOUT:
            print(printable(text), flush=True)

    def json(self, value: Mapping[str, Any] | Sequence[Any], *, secret: bool = False) -> None:
        """The JSON, if it was asked for.

        Args:
            value: What to write.
            secret: Whether nobody else may read it, where it goes to a file.

        Raises:
            StorageError: The disk is full, read-only or gone; nothing half-written was left.
        """
        if self._json_to == STDOUT:
            sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()
        elif self._json_to is not None:
            from neuraverse.storage import write_atomic

            text = json.dumps(value, indent=2, allow_nan=False) + "\n"
            write_atomic(Path(self._json_to), text.encode(), mode=0o600 if secret else 0o644)


def console_on(*, stderr: bool) -> Console:
    """A console that prints text as it is, on stdout or stderr."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def note(text: str) -> None:
    """A line on stderr, about what goes on."""
    print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """Say on stderr what takes a moment, with a spinner where there is a terminal."""
    console = console_on(stderr=True)
    if not console.is_terminal:
        note(f"{text} …")
        yield
        return
    with console.status(printable(f"{text} …")):
        yield


@contextlib.contextmanager
def transfer(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for bytes; yields what is called with bytes done and bytes in total."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = console_on(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def steps(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for things that are counted; yields what is called with those done and in total."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = console_on(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def score_words(score: Score | None) -> str:
    """A success rate, its lower bound and the number of episodes; empty without a score."""
    if score is None:
        return ""
    return f"{score.rate:.1%} of {score.n} episodes (95 % lower bound {score.lower:.1%})"


def score_json(score: Score | None) -> dict[str, float] | None:
    """The same for programs."""
    return None if score is None else {"rate": score.rate, "lower": score.lower, "n": score.n}
