"""The process on one robot that keeps its skill up to date and never lets go of a good one for a bad one.

    event (a hint) → resolve → pull (digest, signature, trust, interface) → stage (dry run) → on_skill → swap

A swap replaces one reference, so that it falls between two ticks; a tick never sees half of it. Whatever is
refused, and why, is logged and told to `on_refusal`; the robot goes on with what it has. Only what its
publisher revoked it leaves: for the last good one in the cache, else it stops acting. Without a network it
begins with what it had. No decision is made by the clock.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from neuraverse.client import Client, Ref, Resolved
from neuraverse.errors import (
    ConflictError,
    NetworkError,
    NeuraverseError,
    NotFoundError,
    RevokedError,
    StorageError,
    UsageError,
)
from neuraverse.runtime.stage import stage

if TYPE_CHECKING:
    from neuraverse.client import Kept
    from neuraverse.interface import Offer
    from neuraverse.policy import Policy
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

log = logging.getLogger("neuraverse.runtime")
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A skill that was not taken.

    Attributes:
        ref: ``org/skill@version``, or what is followed if it did not come so far.
        digest: ``sha256:<hex>``, or empty.
        error: Why.
    """

    ref: str
    digest: str
    error: Exception

    @property
    def reason(self) -> str:
        """Why, as a sentence."""
        return str(self.error)


@dataclass(frozen=True, kw_only=True)
class _Running:
    skill: Skill
    policy: Policy


class RobotAgent:
    """Follows one skill for one robot. Use it as a context manager, or call `start` and `stop`.

    Args:
        client: The registry. The agent uses it from its own thread.
        store: Keys that this robot trusts; those of the client's home if None.
        offer: What this robot can supply.
        follow: ``org/skill`` for the latest version, or ``org/skill@alias``.
        on_skill: Called with each skill that passed every check, before it is swapped in. If it raises, the
            skill is refused; so this is also the place to probe it.
        on_refusal: Called with each refusal.

    Raises:
        UsageError: `follow` is malformed or a digest, which never changes.
    """

    def __init__(
        self,
        client: Client,
        store: KeyStore | None,
        offer: Offer,
        *,
        follow: str,
        on_skill: Callable[[Skill], None] | None = None,
        on_refusal: Callable[[Refusal], None] | None = None,
    ) -> None:
        self._ref = Ref.parse(follow)
        if self._ref.digest:
            raise UsageError(
                f"{follow} never changes", remedy="follow org/skill or org/skill@alias; or pull it"
            )
        self._client = client
        self._store = store
        self._offer = offer
        self._on_skill = on_skill
        self._on_refusal = on_refusal
        self._running: _Running | None = None
        self._left = ""  # why the last skill does not act any more
        self._tried = ""  # digest of the last skill that the reference meant
        self._behind = False  # whether the reference may mean something else by now
        self._first = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def skill(self) -> Skill | None:
        """The skill that acts now; None before the first."""
        running = self._running
        return running.skill if running else None

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        """The action of the skill that acts now.

        A skill that its publisher revoked acts no more, even if there is none to take its place.

        Args:
            observation: One array per signal that the robot offers, by name, in SI units; those that
                the skill does not read are left out.

        Raises:
            UsageError: There is no skill yet.
            ObservationError: A signal is missing, misshapen or not finite.
        """
        running = self._running
        if running is None:
            raise UsageError(
                self._left or "the agent has no skill yet", remedy="wait for one with agent.wait()"
            )
        wanted = (signal.name for signal in running.skill.interface.observation)
        return running.policy({name: observation[name] for name in wanted if name in observation})

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether there is a skill, within `timeout_s` seconds."""
        return self._first.wait(timeout_s)

    def update(self) -> bool:
        """Take what the followed reference means now, if it is new and good.

        A skill that was revoked is left. Whoever has none then, or begins without a network, falls back to
        the last good one in the cache.

        Returns:
            True if the skill was swapped.

        Raises:
            NetworkError: The registry could not be asked.
            NeuraverseError: The skill was refused; the one before goes on.
        """
        try:
            return self._take_new()
        except Exception as error:
            self._behind = isinstance(error, (NetworkError, StorageError))
            if not self._behind:  # else nobody said anything of the old one
                self._leave_if_revoked()
            if self._running is None and self._fall_back():
                return True
            raise

    def _take_new(self) -> bool:
        ref, self._tried = str(self._ref), ""
        try:
            found = self._client.resolve(self._ref)
            self._behind = not found.fresh
            held = self.skill
            if held is not None and held.digest == found.digest:
                return False
            self._leave_if_revoked()  # now: the new one may take long to come
            ref, self._tried = found.ref, found.digest
            self._take(found)
        except (NetworkError, StorageError):
            raise
        except Exception as error:
            if self._tried or not isinstance(error, NotFoundError):  # that there is nothing yet is no refusal
                self._refuse(Refusal(ref=ref, digest=self._tried, error=error))
            raise
        return True

    def _take(self, found: Resolved) -> None:
        """Swap a skill in, if it is good."""
        skill = self._client.pull(found, offer=self._offer, trust=self._store)
        policy = stage(skill)
        if self._on_skill is not None:
            self._on_skill(skill)
        self._running, self._left = _Running(skill=skill, policy=policy), ""
        self._first.set()
        log.info("%s runs %s (%s)", self._offer.robot, skill.ref, skill.digest)
        try:
            self._client.flush(skill, self._ref)  # to start again with after a power cut, without a network
        except StorageError as error:
            log.warning("%s", error)

    def _leave_if_revoked(self) -> None:
        """Stop acting on a skill that the registry says is revoked; a registry that is down says nothing."""
        held = self.skill
        if held is None:
            return
        try:
            self._client.resolve(held.ref)
        except RevokedError as error:
            self._running, self._left = None, error.message
            self._first.clear()
            self._refuse(Refusal(ref=held.ref, digest=held.digest, error=error))
        except NeuraverseError:
            pass

    def _fall_back(self) -> bool:
        """Take the skill in the cache that was used last and is still good; True if there is one."""
        from neuraverse.versions import parse_range

        for each in self._client.cached(self._ref.name):
            if each.digest == self._tried or self._ref.is_exact:
                continue
            try:
                if self._ref.is_range and not parse_range(self._ref.which).allows(each.version):
                    continue
                self._take(self._still(each))
            except Exception as error:
                log.debug("%s: not %s either: %s", self._offer.robot, each.ref, error)
            else:
                log.warning("%s falls back to %s", self._offer.robot, each.ref)
                return True
        return False

    def _still(self, held: Kept) -> Resolved:
        """A skill in the cache, unless its publisher took it back; a registry that is down says nothing."""
        try:
            found = self._client.resolve(held.ref)
        except (NetworkError, NotFoundError):
            return Resolved(name=held.name, version=held.version, digest=held.digest)
        if found.digest != held.digest or found.state != "active":
            raise ConflictError(f"{held.ref} is {found.state}")
        return found

    def start(self) -> None:
        """Follow in a thread of its own.

        Raises:
            UsageError: It was started before.
        """
        if self._thread is not None:
            raise UsageError("the agent was started before", remedy="make a new one")
        self._thread = threading.Thread(target=self._follow, name="neuraverse-agent", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following; the skill goes on acting."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                cursor = self._client.cursor()  # before looking, so that nothing falls in between
                self._settle()
                failures = 0
                for _ in self._client.watch(cursor, self._ref.name, self._stop):
                    self._settle()
            except Exception as error:  # whatever it is: a robot that stops listening misses all that follows
                log.warning("%s: %s", self._offer.robot, error)
                failures += 1
                if failures == 1 and self._running is None:  # begin with what is here
                    with contextlib.suppress(Exception):
                        self.update()
            self._pause(failures)

    def _settle(self) -> None:
        """Update until that is settled, for good or bad."""
        failures = 0
        while not self._stop.is_set():
            try:
                self.update()
                if not self._behind:
                    return
            except NotFoundError as error:
                log.info("%s waits: %s", self._offer.robot, error)
                return
            except (NetworkError, StorageError) as error:
                log.warning("%s: %s", self._offer.robot, error)
            except Exception:  # told in update; a robot goes on with what it has
                log.debug("refused", exc_info=True)
                return
            failures += 1
            self._pause(failures)

    def _refuse(self, refusal: Refusal) -> None:
        log.warning("%s refuses %s: %s", self._offer.robot, refusal.ref, refusal.reason)
        if self._on_refusal is not None:
            self._on_refusal(refusal)

    def _pause(self, failures: int) -> None:
        longest = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0**failures)
        self._stop.wait(random.uniform(0.0, longest))
