"""The skill that a link points to, as `neuraverse watch --apply` keeps it: for fast control loops.

Whoever pulls, checks and tries a skill does it in another process. What is left to do here takes no more than
a fraction of a millisecond of the interpreter: see docs/decisions/swap-at-one-kilohertz.md.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from neuraverse.errors import IntegrityError, NeuraverseError
from neuraverse.manifest import MAX_MANIFEST_BYTES
from neuraverse.runtime.holder import Holder, Running
from neuraverse.storage import disk_errors, read_regular

log = logging.getLogger("neuraverse.runtime")
_LOOK_S = 0.02
_AGAIN_S = 1.0  # after what is there could not be loaded


class Linked(Holder):
    """Runs the skill that a link points to; when the link changes, the next one.

    Args:
        link: ``DIR/<org>/<skill>`` of `neuraverse watch --apply --into DIR`.
    """

    def __init__(self, link: Path | str) -> None:
        super().__init__()
        self._link = Path(link)

    def _follow(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            pause_s = _LOOK_S
            try:
                target = self._target()
                held = self.skill
                if target == (held.path if held else None):
                    continue
                if target is None:
                    self._leave(f"{self._link} points to no skill any more")
                    log.warning("%s", self._left)
                else:
                    self._swap(load(target))
                    log.info("%s is %s now", self._link, target)
            except NeuraverseError as error:
                log.warning("%s: %s", self._link, error)
                pause_s = _AGAIN_S

    def _target(self) -> Path | None:
        with disk_errors("read", self._link):
            try:
                return Path(os.readlink(self._link))
            except FileNotFoundError:
                return None


def load(path: Path) -> Running:
    """A skill that was checked whole before, by whoever linked to it.

    Its folder's name says which manifest was checked, and that which policy. Weights are not read.

    Raises:
        IntegrityError: Either has changed since.
        StorageError: The disk failed.
    """
    from neuraverse.skill import MANIFEST, Skill

    skill = Skill(path, read_regular(path / MANIFEST, MAX_MANIFEST_BYTES))
    if skill.digest != f"sha256:{path.name}":
        raise IntegrityError(
            f"{path} holds {skill.digest}", remedy="`neuraverse cache verify` and pull it again"
        )
    return Running(skill=skill, policy=skill.policy())
