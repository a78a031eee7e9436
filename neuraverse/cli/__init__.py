"""The command ``neuraverse``. What needs more than the base install is loaded by the commands that use it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit: 0; 1 refused or failed a check; 2 wrong usage; 130 interrupted."""
    # Torch's threads would spin while they wait; on a machine that others use too, that costs tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from neuraverse.cli.app import app

        app()
    except KeyboardInterrupt:  # so early that nothing was under way
        sys.exit(130)
