"""Skills installed on a robot for others to run: a link for each, kept at what a reference means.

    DIR/<org>/<skill>           → the folder of the skill that runs, in the cache
    DIR/<org>/.<skill>.before   → the one before, while the health of the new one is checked
    DIR/<org>/.<skill>.lock       held by whoever keeps the link

    ask → pull and verify → dry run → probe → swap of the link → health check → said to the registry

The link is swapped in one step: at every instant it points to the old skill or to the new one, either of them
whole. If the health check fails it goes back; if this process dies before that is known, it goes back when
the next one starts, which tries again. What a link points to is not pruned from the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from neuraverse.client import Client, Ref
from neuraverse.client.cache import Cache
from neuraverse.errors import (
    IncompatibleError,
    NetworkError,
    NeuraverseError,
    RegistryError,
    RevokedError,
    StorageError,
    UsageError,
)
from neuraverse.runtime.agent import Refusal, RobotAgent
from neuraverse.runtime.checking import check
from neuraverse.storage import disk_errors, put_link, remove_link

if TYPE_CHECKING:
    from neuraverse.client.reports import State
    from neuraverse.interface import Offer
    from neuraverse.skill import Skill

log = logging.getLogger("neuraverse.runtime")
_CLAIM_S = 1.0  # what a process that died had just started may hold its lock for a moment
_NOTHING = "nothing"  # where there was no skill before
_MOST_WAITING = 1000  # changes that the registry was not told yet
_MAX_PAUSE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of an installed skill.

    Attributes:
        at: When, by this machine's clock; UTC, ISO 8601.
        follows: The reference.
        state: ``running`` this version, ``refused`` it, ``left`` it as it was revoked, ``rolled-back`` from
            it as its health check failed; or ``stopped``: it runs, and is not kept up to date any more.
        version: The version; empty if there is none.
        digest: Its digest.
        path: What the link points to then; empty if there is no link.
        reason: Why.
    """

    at: str
    follows: str
    state: State
    version: str
    digest: str
    path: str
    reason: str


class Installer:
    """Keeps one link at what a reference means. Use it as a context manager.

    Args:
        client: The registry; several installers may share it.
        follow: ``org/skill``, ``org/skill@alias`` or a range.
        into: The folder of links.
        offer: What the robot can supply; None skips the question whether a skill fits.
        probe: Command that must approve of a skill before it is swapped in; see `checking.check`.
        health: Command that must approve of it afterwards, or the link goes back.
        timeout_s: How long either may take.
        tell: Called with each change, from the installer's thread.

    Raises:
        UsageError: `follow` cannot be followed.
    """

    def __init__(
        self,
        client: Client,
        follow: str,
        into: Path,
        *,
        offer: Offer | None = None,
        probe: Sequence[str] = (),
        health: Sequence[str] = (),
        timeout_s: float = 30.0,
        tell: Callable[[Change], None] = lambda _: None,
    ) -> None:
        self.agent = RobotAgent(
            client,
            None,
            offer,
            follow=follow,
            on_skill=self._install,
            on_refusal=self._refused,
            on_kept=self._kept,
        )
        self._client = client
        self._ref = Ref.parse(follow)
        org, _, name = self._ref.name.partition("/")
        self.link: Path = into.absolute() / org / name
        self._before = self.link.with_name(f".{name}.before")
        self._lock: IO[bytes] | None = None
        self._probe, self._health, self._timeout_s = probe, health, timeout_s
        self._tell_others = tell
        self._said: Change | None = None  # the last change
        self._refusal = ("", "")  # digest and reason of the last refusal, not to be said again

    def start(self) -> None:
        """Go on with what is linked, and follow in a thread of its own.

        Raises:
            UsageError: Something else is in the link's place, or another process keeps it.
            StorageError: The folder cannot be used.
        """
        self._claim()
        try:
            self._go_on()
        except BaseException:
            self._release()
            raise
        self.agent.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Stop following; what is linked stays. A swap whose health is being checked is taken back.

        Args:
            timeout_s: How long to wait for what is on its way; without end if None.
        """
        self.agent.stop(timeout_s)
        held = self.agent.skill
        if held is not None:
            self._tell("stopped", held.version, held.digest, "")
        self._release()

    def __enter__(self) -> Installer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _claim(self) -> None:
        path = self.link.with_name(f".{self.link.name}.lock")
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(path, "wb")  # noqa: SIM115 - held until stop
            deadline = time.monotonic() + _CLAIM_S
            while not _locked(self._lock):
                if time.monotonic() > deadline:
                    self._release()
                    raise UsageError(
                        f"another process keeps {self.link}", remedy="end it, or choose another folder"
                    )
                time.sleep(_CLAIM_S / 20)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _go_on(self) -> None:
        for link in (self.link, self._before):
            for path in link.parent.glob(f".{link.name}.*.tmp"):  # of a process that died
                remove_link(path)
        if os.path.lexists(self.link) and not self.link.is_symlink():
            raise UsageError(f"{self.link} is no link", remedy="move it away, or choose another folder")
        for link in (self.link, self._before):
            self._client.keep_linked(link)
        if self._before.is_symlink():
            log.warning("%s goes back: the health of what it points to was not checked to the end", self.link)
            self._go_back()
        target, digest = self._target(), self._digest()
        if not target:
            return
        if target != str(Cache(self._client.home).skill(digest).absolute()):
            raise UsageError(
                f"{self.link} points into another cache, to {target}",
                remedy="set NEURAVERSE_HOME as it was, or remove the link",
            )
        try:
            skill = self.agent.resume(digest)
        except StorageError:
            raise
        except NeuraverseError as error:
            remove_link(self.link)
            self._tell("left" if isinstance(error, RevokedError) else "refused", "", "", str(error))
        else:
            self._tell("running", skill.version, skill.digest, "")

    def _install(self, skill: Skill) -> None:
        """Swap a skill in that passed every check of the agent's; what this raises refuses the skill."""
        before, new = self._target(), skill.path.absolute()
        if before != str(new):
            if self._probe:
                check("the probe", self._probe, new, self._timeout_s, self.agent.ending)
            self._client.flush(skill, self._ref)  # before the link, which must not survive a power cut alone
            if self._health:
                put_link(self._before, before or _NOTHING)
            put_link(self.link, new)
            if self._health:
                self._confirm(skill)
        self._kept(skill)

    def _confirm(self, skill: Skill) -> None:
        try:
            folder = skill.path.absolute()
            check("the health check", self._health, folder, self._timeout_s, self.agent.ending)
        except IncompatibleError as error:
            self._go_back()
            if not self.agent.ending.is_set():
                self._tell("rolled-back", skill.version, skill.digest, str(error))
            raise
        remove_link(self._before)

    def _go_back(self) -> None:
        before = os.readlink(self._before)
        if before == _NOTHING:
            remove_link(self.link)
        else:
            put_link(self.link, before)
        remove_link(self._before)

    def _kept(self, skill: Skill) -> None:
        """It is linked now, or was already."""
        if skill.digest == self.agent.meant:  # and is no stopgap for what was refused
            self._refusal = ("", "")
        self._tell("running", skill.version, skill.digest, "")

    def _refused(self, refusal: Refusal) -> None:
        said, reason = self._said, refusal.reason
        if said is not None and (said.state, said.digest) == ("rolled-back", refusal.digest):
            return
        version = refusal.ref.rpartition("@")[2] if refusal.digest else ""
        left = isinstance(refusal.error, RevokedError) and refusal.digest and refusal.digest == self._digest()
        if self.agent.skill is None:  # it has left what it had, perhaps before this disk let the link go
            remove_link(self.link)
        if left:
            self._tell("left", version, refusal.digest, reason)
        elif (refusal.digest, reason) != self._refusal:
            self._refusal = (refusal.digest, reason)
            self._tell("refused", version, refusal.digest, reason)

    def _target(self) -> str:
        with disk_errors("read", self.link), contextlib.suppress(FileNotFoundError):
            return os.readlink(self.link)
        return ""

    def _digest(self) -> str:
        """Digest of what is linked; empty if nothing of ours is."""
        name = Path(self._target()).name
        return f"sha256:{name}" if re.fullmatch("[0-9a-f]{64}", name) else ""

    def _tell(self, state: State, version: str, digest: str, reason: str) -> None:
        said = self._said
        if said is not None and (said.state, said.digest, said.reason) == (state, digest, reason):
            return
        self._said = Change(
            at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            follows=str(self._ref),
            state=state,
            version=version,
            digest=digest,
            path=self._target(),
            reason=reason,
        )
        self._tell_others(self._said)


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Reporter:
    """Tells the registry of changes, in order and from a thread of its own, as well as it can be reached.

    Args:
        client: The registry, with a robot's token; with another one, or none, nothing is told.
        wanted: Whether to warn if the token is no robot's.
    """

    def __init__(self, client: Client, *, wanted: bool = False) -> None:
        self._client = client
        self._wanted = wanted
        self._waiting: deque[Change] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._robot = False
        self._warned = ""
        self._thread = threading.Thread(target=self._work, name="neuraverse-reporter", daemon=True)
        self._thread.start()

    def tell(self, change: Change) -> None:
        """Tell the registry, now or later; returns at once."""
        with self._lock:
            self._waiting.append(change)
            if len(self._waiting) > _MOST_WAITING:
                self._waiting.popleft()
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Tell what is waiting, if that can be done in time."""
        self._ending = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        failures = 0
        while True:
            self._wake.wait(
                random.uniform(0.0, min(_MAX_PAUSE_S, 2.0 ** min(failures, 10))) if failures else None
            )
            self._wake.clear()
            ending = self._ending
            try:
                if not self._may_tell():
                    return
                self._tell_all()
                failures = 0
            except NetworkError as error:
                log.info("the registry will be told later: %s", error)
                failures += 1
            if ending:
                return

    def _may_tell(self) -> bool:
        try:
            self._robot = self._robot or self._client.is_robot()
        except RegistryError as error:
            self._warn(error)
        else:
            if self._wanted and not self._robot:
                log.warning("the registry is not told what runs here - it needs the token of a robot")
        return self._robot

    def _tell_all(self) -> None:
        while self._waiting:
            change = self._waiting[0]
            try:
                self._client.installed(
                    change.follows,
                    change.state,
                    version=change.version,
                    digest=change.digest,
                    reason=change.reason,
                )
            except RegistryError as error:
                self._warn(error)
            with self._lock:
                if self._waiting and self._waiting[0] is change:
                    self._waiting.popleft()

    def _warn(self, error: RegistryError) -> None:
        if str(error) != self._warned:
            self._warned = str(error)
            log.warning("the registry was not told what runs here: %s", error)
