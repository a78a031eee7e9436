"""What training shows while it goes on, and how Ctrl-C ends it in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from neuraverse.cli.output import console_on, note

if TYPE_CHECKING:
    from neuraverse.learn import Progress

_LINE_EVERY_S = 10.0  # where there is no terminal


@contextlib.contextmanager
def training(titles: Mapping[int, str]) -> Iterator[Callable[[int, Progress], bool]]:
    """A live line on stderr for each run.

    The first Ctrl-C lets the iteration end and its checkpoint be written, the second one is immediate.

    Args:
        titles: What to call each run, by its seed.

    Yields:
        What to call with seed and progress after each iteration; it returns whether to go on.

    Raises:
        KeyboardInterrupt: At the end, if the run was interrupted.
    """
    stop = threading.Event()
    with _stoppable(stop), _shown(titles) as show:

        def go_on(seed: int, progress: Progress) -> bool:
            show(seed, progress)
            return not stop.is_set()

        yield go_on
    if stop.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _stoppable(stop: threading.Event) -> Iterator[None]:
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by nohup, or a shell's &
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)
        note("stopping after this iteration; Ctrl-C again stops at once")

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _shown(titles: Mapping[int, str]) -> Iterator[Callable[[int, Progress], None]]:
    console = console_on(stderr=True)
    if not console.is_terminal:
        lines = {seed: _lines(title) for seed, title in titles.items()}
        yield lambda seed, progress: lines[seed](progress)
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TextColumn("{task.fields[words]}"),
    )
    with rich.Progress(*columns, console=console) as bar:
        tasks: dict[int, Any] = {
            seed: bar.add_task(title, total=None, words="begins") for seed, title in titles.items()
        }

        def show(seed: int, progress: Progress) -> None:
            bar.update(
                tasks[seed],
                completed=progress.env_steps,
                total=progress.total_steps,
                words=progress_words(progress),
            )

        yield show


def _lines(title: str) -> Callable[[Progress], None]:
    due = 0.0

    def show(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due or progress.env_steps >= progress.total_steps:
            due = time.monotonic() + _LINE_EVERY_S
            share = min(1.0, progress.env_steps / progress.total_steps)
            note(f"{title}: {share:.0%}, {progress_words(progress)}")

    return show


def progress_words(progress: Progress) -> str:
    """Steps a second, success, return and time left."""
    words = [f"{progress.steps_per_s:,.0f} steps/s"]
    if progress.success is not None:
        words.append(f"success {progress.success:.1%}")
    if progress.ep_return is not None:
        words.append(f"return {progress.ep_return:.1f}")
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    words.append(f"at most {minutes}:{seconds:02d} left")
    return ", ".join(words)
