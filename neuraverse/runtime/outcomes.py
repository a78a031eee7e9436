"""How episodes end, counted in a control loop and told to the registry when there is time for it."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuraverse.client.reports import MAX_EPISODES, Measured
from neuraverse.errors import NetworkError, RegistryError, UsageError

if TYPE_CHECKING:
    from neuraverse.client import Client
    from neuraverse.interface import Offer
    from neuraverse.skill import Skill

log = logging.getLogger("neuraverse.runtime")


@dataclass(frozen=True, kw_only=True)
class _Episode:
    skill: Skill
    success: bool
    aborted: bool
    errors: Mapping[str, float]


class Outcomes:
    """Episodes of one robot that the registry was not told of yet: the last 10,000, and what is on its way.

    Args:
        client: The registry, with the robot's token.
        offer: What the robot supplies to its skills.
        units: SI unit of each physical error that is measured, by its name.
    """

    def __init__(self, client: Client, offer: Offer, units: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._offer = offer
        self._units = dict(units or {})
        self._ended: deque[_Episode] = deque(maxlen=MAX_EPISODES)
        self._unanswered: tuple[str, list[_Episode]] | None = None  # sent as a report of that key

    def add(self, skill: Skill, *, success: bool, aborted: bool = False, **errors: float) -> None:
        """An episode has ended. Takes about a microsecond, and never waits: for the control loop's thread.

        Args:
            skill: What ran.
            success: Whether it succeeded.
            aborted: Whether it was broken off.
            errors: Physical errors over the episode, by name.

        Raises:
            UsageError: An error has no unit, or the episode both succeeded and was aborted.
        """
        if success and aborted:
            raise UsageError("an episode that was aborted is no success", remedy="say one of them")
        if not errors.keys() <= self._units.keys():
            name = min(errors.keys() - self._units.keys())
            raise UsageError(
                f"error {name} has no unit", remedy=f"give it: Outcomes(…, units={{{name!r}: …}})"
            )
        self._ended.append(_Episode(skill=skill, success=success, aborted=aborted, errors=errors))

    def send(self) -> int:
        """Tell the registry; for another thread, or for while the robot stands still.

        What it refuses is dropped, and logged as a warning; what it could not be told is kept. A report that
        was not answered may have been counted: it is sent again as it was, and counts once.

        Returns:
            How many episodes it took.

        Raises:
            NetworkError: It could not be asked.
        """
        taken = 0
        if self._unanswered is not None:
            taken += self._report(*self._unanswered)
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        batches: dict[str, list[_Episode]] = {}
        for each in ended:
            batches.setdefault(each.skill.digest, []).append(each)
        for digest in list(batches):
            try:
                taken += self._report(uuid.uuid4().hex, batches.pop(digest))
            except NetworkError:
                later = [each for each in ended if each.skill.digest in batches]
                self._ended.extendleft(reversed(later))
                raise
        return taken

    def _report(self, key: str, batch: list[_Episode]) -> int:
        """Tell of episodes with one skill; how many were taken."""
        self._unanswered = key, batch
        try:
            self._client.report(
                batch[0].skill,
                self._offer,
                episodes=len(batch),
                successes=sum(each.success for each in batch),
                aborts=sum(each.aborted for each in batch),
                errors=self._measured(batch),
                key=key,
            )
        except (RegistryError, UsageError) as error:
            log.warning("%d episodes of %s are not told: %s", len(batch), batch[0].skill.ref, error)
            batch = []
        self._unanswered = None
        return len(batch)

    def _measured(self, batch: list[_Episode]) -> dict[str, Measured]:
        found = {}
        for name, unit in self._units.items():
            values = [each.errors[name] for each in batch if name in each.errors]
            if values:
                found[name] = Measured.of(values, unit)
        return found
