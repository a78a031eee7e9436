"""``python -m neuraverse.cli``, the same as ``neuraverse``."""

from neuraverse.cli import main

main()
