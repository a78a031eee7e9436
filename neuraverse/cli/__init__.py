"""The command ``neuraverse``. What needs more than the base install is loaded by the commands that use it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit: 0, 1 (a refusal or failed check), 2 (wrong usage) or 130 (interrupted)."""
    try:
        from neuraverse.cli.app import app

        app()
    except KeyboardInterrupt:  # so early that nothing was under way
        sys.exit(130)
