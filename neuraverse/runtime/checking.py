"""A command of the operator's that judges a skill: a probe before it is swapped in, a health check after."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from neuraverse.client.refs import printable
from neuraverse.errors import IncompatibleError

_LOOK_S = 0.05
_TAIL_BYTES = 4096  # of what it says, as much is kept
_SHOWN = 200  # characters of its last line


def check(what: str, command: Sequence[str], folder: Path, timeout_s: float, stop: threading.Event) -> None:
    """Run a command on a skill's folder; without a shell, and without the registry's token.

    The folder is its last argument and in ``$NEURAVERSE_SKILL``. Whatever it started ends with it.

    Args:
        what: What the command is for people, such as ``"the health check"``.
        command: Program and arguments.
        folder: The skill's.
        timeout_s: How long it may take.
        stop: Ends it early.

    Raises:
        IncompatibleError: It did not end with 0 in time, or cannot be started; its last line says why.
    """
    env = {name: value for name, value in os.environ.items() if name != "NEURAVERSE_TOKEN"}
    try:
        process = subprocess.Popen(
            [*command, str(folder)],
            env=env | {"NEURAVERSE_SKILL": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise IncompatibleError(f"{what} cannot be started: {error}", remedy="check the command") from error
    said = _Tail(process)
    ended = _wait(process, timeout_s, stop)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    line = said.last_line()
    why = f": {line}" if line else ""
    if stop.is_set() and not ended:
        raise IncompatibleError(f"{what} was interrupted")
    if not ended:
        raise IncompatibleError(f"{what} did not end within {timeout_s:g} s{why}")
    if process.returncode:
        code = process.returncode
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        raise IncompatibleError(f"{what} failed ({how}){why}")


def _wait(process: subprocess.Popen[bytes], timeout_s: float, stop: threading.Event) -> bool:
    """Whether it ended by itself in time."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if time.monotonic() > deadline or stop.wait(_LOOK_S):
            return False
    return True


class _Tail:
    """The end of what a process says, read as it comes, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._kept = b""
        self._thread = threading.Thread(target=self._read, name="neuraverse-check", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while data := self._stream.read1(_TAIL_BYTES):  # type: ignore[attr-defined]
                self._kept = (self._kept + data)[-_TAIL_BYTES:]

    def last_line(self) -> str:
        """Its last line that is not blank, once the process has ended."""
        self._thread.join(1.0)  # whoever it left behind may keep the stream open
        lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines()]
        return printable(next((line for line in reversed(lines) if line), ""))[:_SHOWN]
