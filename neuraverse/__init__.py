"""Robots that teach each other skills.

Learn in simulation, publish signed, pull, verify, run or fine-tune. The names below are loaded when they
are first used, so that ``import neuraverse`` stays light on a robot without torch.

    skill = neuraverse.pull("acme/weld-seam@1.0.0")     # download, verify, check
    action = skill.policy()(observation)                # named arrays in, named arrays out
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from neuraverse.errors import MissingExtraError

if TYPE_CHECKING:
    from neuraverse.client import publish, pull, watch
    from neuraverse.learn import Trainer, fine_tune
    from neuraverse.skill import Skill

    __version__: str

__all__ = ["Skill", "Trainer", "__version__", "fine_tune", "publish", "pull", "watch"]

_HOME = {
    "Skill": "neuraverse.skill",
    "Trainer": "neuraverse.learn",
    "fine_tune": "neuraverse.learn",
    "publish": "neuraverse.client",
    "pull": "neuraverse.client",
    "watch": "neuraverse.client",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        try:
            value = getattr(importlib.import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "neuraverse"):
                raise
            raise MissingExtraError(missing, "train", f"neuraverse.{name}") from error
    else:
        raise AttributeError(f"module 'neuraverse' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("neuraverse")
    except metadata.PackageNotFoundError:
        return "0+source"
