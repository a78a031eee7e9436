"""The demo's registry: ``python -m neuraverse.demo.host DATA READY_FILE``, until its standard input ends.

However the story ends, killed without notice too, the system closes that pipe and the registry goes with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from neuraverse.errors import NeuraverseError
from neuraverse.registry import Settings, serve


def main(data: str, ready_file: str) -> int:
    """Serve on a free port of loopback; 0 when told to end, 1 with one line on stderr if it cannot."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        serve(Settings.load(data=data, port=0, open=True), ready_file=ready_file)
    except NeuraverseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
