"""The registry server: an append-only index, content-addressed blobs and an event feed, in one process.

neuraverse.registry.serve("data")                 # until Ctrl-C
app = neuraverse.registry.create_app("data")      # as an ASGI application
"""

from __future__ import annotations

from neuraverse.errors import MissingExtraError

try:
    from neuraverse.registry.app import create_app
    from neuraverse.registry.config import Settings
    from neuraverse.registry.server import background, serve
except ModuleNotFoundError as error:
    _missing = (error.name or "").partition(".")[0]
    if _missing in ("", "neuraverse"):
        raise
    raise MissingExtraError(_missing, "registry", "the registry server") from error

__all__ = ["Settings", "background", "create_app", "serve"]
