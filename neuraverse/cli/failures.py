"""From whatever went wrong to one line on stderr and an exit code. No traceback reaches a user."""

from __future__ import annotations

import errno
import os

from neuraverse.errors import MissingExtraError, NeuraverseError, StorageError

INTERRUPTED = 130
_EXTRAS = {
    "registry": ("fastapi", "sqlalchemy", "starlette", "uvicorn"),
    "sim": ("mjbatch", "mujoco"),
    "train": ("PIL", "gymnasium", "matplotlib", "onnx", "onnxscript", "ray", "tensorboard", "torch"),
}
EXTRA_OF = {package: extra for extra, packages in _EXTRAS.items() for package in packages}
"""Which extra installs a package."""


def told(error: Exception, command: str) -> NeuraverseError:
    """`error` as one of ours.

    Args:
        error: What a command ended with.
        command: The command, such as ``"neuraverse train"``.
    """
    if isinstance(error, NeuraverseError):
        return error
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRA_OF:
            return MissingExtraError(package, EXTRA_OF[package], command)
        if package and package != "neuraverse":
            return NeuraverseError(
                f"{command} needs the package {package!r}, which cannot be imported: {error}",
                remedy="install it, or install neuraverse again",
            )
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        reason = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and try again" if full else "check the path and the disk"
        return StorageError(f"cannot use{where or ' a file'}: {reason}", remedy=remedy)
    return NeuraverseError(
        f"{command} failed unexpectedly: {type(error).__name__}: {error}",
        remedy="this is a fault of ours; run it again with --debug and report what it prints",
    )


def printable(text: str) -> str:
    """`text` in one line without control characters: what comes from a network must not steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
