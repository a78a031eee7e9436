"""The process on one robot that keeps its skill up to date and never lets go of a good one for a bad one.

    event (a hint) → ask → pull (digest, signature, trust, interface) → stage (dry run) → on_skill → swap

The registry is asked what the reference means, and sends that, in one request.

Whatever is refused, and why, is logged and told to `on_refusal`; the robot goes on with what it has, and does
not try that again before the reference has meant something else. Only what its publisher revoked it leaves:
for the last good one in the cache, else it stops acting. Without a network it begins with what it had. No
decision is made by the clock.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from neuraverse.runtime.holder import Holder, Running
from neuraverse.runtime.stage import stage

if TYPE_CHECKING:
    from neuraverse.client import Kept
    from neuraverse.interface import Offer
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

log = logging.getLogger("neuraverse.runtime")
_FIRST_PAUSE_S = 0.5
_DOUBLINGS = 10  # of a pause; beyond the longest one, and no number overflows
_MAX_PAUSE_S = 30.0
_MOST_FAILED = 1000  # skills that are remembered as refused
_LONGEST_WAIT_S = 5.0
_turns = threading.BoundedSemaphore(2)  # one computes while the other waits for the registry


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


class RobotAgent(Holder):
    """Follows one skill for one robot. Use it as a context manager, or call `start` and `stop`.

    Args:
        client: The registry. The agent uses it from its own thread.
        store: Keys that this robot trusts; those of the client's home if None.
        offer: What this robot can supply; None skips the question whether a skill fits.
        follow: ``org/skill`` for the latest version, or ``org/skill@alias``.
        on_skill: Called with each skill that passed every check, before it is swapped in. If it raises, the
            skill is refused; so this is also the place to probe it.
        on_refusal: Called with each refusal.
        on_kept: Called with the skill that acts, when it is what the reference means already.

    Raises:
        UsageError: `follow` is malformed or a digest, which never changes.
    """

    def __init__(
        self,
        client: Client,
        store: KeyStore | None,
        offer: Offer | None,
        *,
        follow: str,
        on_skill: Callable[[Skill], None] | None = None,
        on_refusal: Callable[[Refusal], None] | None = None,
        on_kept: Callable[[Skill], None] | None = None,
    ) -> None:
        super().__init__()
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
        self._on_kept = on_kept
        self._robot = "this robot" if offer is None else offer.robot
        self._meant: Resolved | None = None  # what the reference meant when the registry was last asked
        self._tried: Resolved | None = None  # the same, if it was tried now
        self._before: Resolved | None = None  # what acted before: who goes back need not load it again
        self._failed: dict[str, Exception] = {}  # why skills were refused, by digest
        self._behind = False  # whether the reference may mean something else by now

    @property
    def meant(self) -> str:
        """Digest of what the reference meant when the registry was last asked; empty before that."""
        return "" if self._meant is None else self._meant.digest

    def resume(self, digest: str) -> Skill:
        """Go on with a skill that was taken before, by another agent perhaps, without asking the registry.

        Raises:
            RevokedError: It was revoked when the registry was last asked.
            NetworkError: It is not in the cache any more, whole and signed by a trusted key.
            NeuraverseError: It does not fit the robot, or does not run.
        """
        skill = self._client.pull(digest, offer=self._offer, trust=self._store, offline=True)
        self._swap(Running(skill=skill, policy=stage(skill)))
        return skill

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
        self._tried, held = None, self.skill
        try:
            new = self._asked(held)
            if new is None:
                assert self._meant is not None
                if held is not None and held.digest == self._meant.digest:
                    if self._on_kept is not None:
                        self._on_kept(held)
                    return False
                new = self._decided(self._meant)
            self._put(new)
        except (NetworkError, StorageError):
            raise
        except Exception as error:
            tried = self._tried
            if self._stop.is_set():  # whatever fails then is nobody's fault
                raise
            if tried is not None and tried.digest not in self._failed:
                self._fail(tried.digest, error)
                self._refuse(Refusal(ref=tried.ref, digest=tried.digest, error=error))
            elif tried is None and not isinstance(error, NotFoundError):  # nothing there yet is no refusal
                self._refuse(Refusal(ref=str(self._ref), digest="", error=error))
            raise
        return True

    def _asked(self, held: Skill | None) -> Running | None:
        """Ask what the reference means, and get that in the same request if nothing speaks against it."""
        known = [] if self._before is None else [self._before]
        if self._meant is not None and self._meant.digest in self._failed:
            known.append(self._meant)

        def wants(found: Resolved) -> bool:
            self._note(found)
            is_new = (held is None or held.digest != found.digest) and found.digest not in self._failed
            if not is_new or (held is not None and found.gone is not False):
                return False
            self._tried = found
            return True

        with _turn():
            try:
                skill = self._client.pull_if(
                    self._ref,
                    wants,
                    held=None if held is None else Resolved.of(held),
                    known=known,
                    offer=self._offer,
                    trust=self._store,
                )
            except NotFoundError:
                if self._tried is not None:
                    raise
                self._note(self._client.resolve(self._ref))  # or is only a file of it missing there?
                return None
            return None if skill is None else Running(skill=skill, policy=stage(skill))

    def _decided(self, found: Resolved) -> Running:
        """What the reference means, unless it was refused before; what is held is left first if revoked."""
        if found.gone is not False:
            self._leave_if_revoked()  # now: the new one may take long to come
        self._tried = found
        if found.digest in self._failed:
            raise self._failed[found.digest].with_traceback(None)
        return self._got(found)

    def _note(self, found: Resolved) -> None:
        self._behind = not found.fresh
        if found.digest != self.meant:
            self._failed.pop(found.digest, None)
        self._meant = found

    def _got(self, found: Resolved) -> Running:
        with _turn():
            skill = self._client.pull(found, offer=self._offer, trust=self._store)
            return Running(skill=skill, policy=stage(skill))

    def _fail(self, digest: str, error: Exception) -> None:
        if len(self._failed) >= _MOST_FAILED:
            self._failed.clear()
        self._failed[digest] = error

    def _put(self, new: Running) -> None:
        """Swap a skill in that passed every check, if nobody minds."""
        skill, before = new.skill, self.skill
        if self._on_skill is not None:
            self._on_skill(skill)
        self._swap(new)
        if before is not None:
            self._before = Resolved.of(before)
        log.info("%s runs %s (%s)", self._robot, skill.ref, skill.digest)
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
            self._leave(error.message)
            self._refuse(Refusal(ref=held.ref, digest=held.digest, error=error))
        except NeuraverseError:
            pass

    def _fall_back(self) -> bool:
        """Take the skill in the cache that was used last and is still good; True if there is one."""
        for each in self._client.cached(self._ref.name):
            just_tried = self._tried is not None and each.digest == self._tried.digest
            if just_tried or each.digest in self._failed or self._ref.is_exact:
                continue
            found: Resolved | None = None
            try:
                if not self._ref.admits(each.version):
                    continue
                found = self._still(each)
                self._put(self._got(found))
            except Exception as error:
                log.debug("%s: not %s either: %s", self._robot, each.ref, error)
                if found is not None and not isinstance(error, (NetworkError, StorageError)):
                    self._fail(each.digest, error)
            else:
                log.warning("%s falls back to %s", self._robot, each.ref)
                return True
        return False

    def _still(self, held: Kept) -> Resolved:
        """A skill in the cache, unless its publisher took it back; a registry that is down says nothing."""
        try:
            found = self._client.resolve(held.ref)
        except (NetworkError, NotFoundError):
            return Resolved.of(held)
        if found.digest != held.digest or found.state != "active":
            raise ConflictError(f"{held.ref} is {found.state}")
        return found

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                cursor = self._client.cursor()  # before looking, so that nothing falls in between
                self._settle()
                failures = 0
                for event in self._client.watch(cursor, self._ref.name, self._stop):
                    if event.type == "revoked":
                        self._leave_if_revoked()  # now, whoever else's turn it is
                    self._settle()
            except Exception as error:  # whatever it is: a robot that stops listening misses all that follows
                log.warning("%s: %s", self._robot, error)
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
                log.info("%s waits: %s", self._robot, error)
                return
            except (NetworkError, StorageError) as error:
                log.warning("%s: %s", self._robot, error)
            except Exception:  # told in update; a robot goes on with what it has
                log.debug("refused", exc_info=True)
                return
            failures += 1
            self._pause(failures)

    def _refuse(self, refusal: Refusal) -> None:
        level = logging.WARNING if self._on_refusal is None else logging.INFO
        log.log(level, "%s refuses %s: %s", self._robot, refusal.ref, refusal.reason)
        if self._on_refusal is not None:
            self._on_refusal(refusal)

    def _pause(self, failures: int) -> None:
        longest = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, _DOUBLINGS))
        self._stop.wait(random.uniform(0.0, longest))


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """One of the agents of this process whose turn it is; a slow one holds the others up for seconds at most.

    Threads that all wait for the same interpreter spend more on waiting than on skills: 50 agents of one
    process took half as long again (`docs/decisions/telling-a-fleet-at-once.md`).
    """
    mine = _turns.acquire(timeout=_LONGEST_WAIT_S)
    try:
        yield
    finally:
        if mine:
            _turns.release()
