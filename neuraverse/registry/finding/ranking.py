"""What stands in each scope, in memory and in the order of rank, so that it is not read for each search.

The database says in one row whether a scope has changed since, and by a stamp which of its shelves have; only
those are read again, and what is in them put into the order anew: 1 ms among 100,000 skills. A transaction
that sees an older state than the one that is held reads all of the scope.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, bindparam, select

from neuraverse.registry.finding import listing
from neuraverse.registry.finding.listing import EVERYBODY, SIGNED_IN, STANDING
from neuraverse.registry.limits import MAX_STANDINGS_HELD
from neuraverse.registry.tables import rankings, standings

Flags = npt.NDArray[np.bool_]
_FEW = 2000  # skills that are sorted; of more, the best are sought in the order of all
_FIRST = 256  # that are looked at in that order; then twice as many, and so on
_SCOPES = select(rankings.c.scope, rankings.c.size, rankings.c.stamp).where(
    rankings.c.scope.in_(bindparam("scopes", expanding=True))
)
_CHANGED = select(standings.c.shelf, standings.c.places).where(
    standings.c.scope == bindparam("scope"), standings.c.stamp > bindparam("stamp")
)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What stands in one scope.

    Attributes:
        stamp: Of the last change of it.
        standing: By place; of `STANDING`, shape (n,).
        order: Places, the best ranks first; shape (n,).
    """

    stamp: int
    standing: npt.NDArray[np.void]
    order: npt.NDArray[np.uint32]

    @classmethod
    def empty(cls) -> Ranking:
        """That of a scope of which nothing has been read."""
        return cls(stamp=-1, standing=np.zeros(0, STANDING), order=np.zeros(0, np.uint32))

    def changed(self, stamp: int, size: int, shelves: Iterable[tuple[int, bytes]]) -> Ranking:
        """The same after a change.

        Args:
            stamp: Of the change.
            size: How many skills the scope has now.
            shelves: Number and content of each shelf that is another one now.
        """
        standing = np.zeros(size, STANDING)
        standing[: len(self.standing)] = self.standing[:size]
        is_new = np.zeros(size, np.bool_)
        for shelf, places in shelves:
            content, first = np.frombuffer(places, STANDING), shelf * listing.SHELF
            standing[first : first + len(content)] = content
            is_new[first : first + len(content)] = True
        ranks = standing["rank"]
        kept = self.order[self.order < size]
        kept = kept[~is_new[kept]]
        new = np.flatnonzero(is_new).astype(np.uint32)
        new = new[np.argsort(ranks[new])]
        order = np.insert(kept, np.searchsorted(ranks[kept], ranks[new]), new)
        return Ranking(stamp=stamp, standing=standing, order=order)

    def best(
        self, having: Flags | None, met: Flags | None, after: int, worst: int, count: int
    ) -> npt.NDArray[np.void]:
        """What stands of the best behind a rank, in their order; of `STANDING`.

        Args:
            having: Whether each place will do; None if all will.
            met: Whether each interface will, by its id; the last is for all others. None if all will.
            after: Only ranks behind this one,
            worst: and up to this one.
            count: At most so many.
        """
        if having is not None:
            places = np.flatnonzero(having)
            if len(places) <= _FEW:
                some = self.standing[places]
                some = some[(some["rank"] > after) & (some["rank"] <= worst) & _meets(some, met)]
                return some[np.argsort(some["rank"])][:count]
        first, end = (bisect_right(self.order, rank, key=self._rank) for rank in (after, worst))
        found, missing, width = [np.zeros(0, STANDING)], count, _FIRST
        while first < end and missing > 0:
            at = self.order[first : min(first + width, end)]
            some = self.standing[at]
            good = _meets(some, met)
            if having is not None:
                good &= having[at]
            found.append(some[good])
            missing -= len(found[-1])
            first, width = first + width, 2 * width
        return np.concatenate(found)[:count]

    def _rank(self, place: int) -> int:
        return int(self.standing["rank"][place])


class Rankings:
    """The scopes of a registry, as far as `MAX_STANDINGS_HELD` allows; the others are read each time."""

    def __init__(self) -> None:
        self._held: dict[int, Ranking] = {}

    def load(self, db: Connection) -> None:
        """Read the scopes that nearly everybody asks for; in a transaction that only reads, as `of`."""
        self.of(db, (EVERYBODY, SIGNED_IN))

    def of(self, db: Connection, wanted: Sequence[int]) -> dict[int, Ranking]:
        """Those of some scopes in which there is anything.

        Args:
            db: A transaction that only reads: what would be rolled back must not be held.
            wanted: The scopes.
        """
        found = {}
        for scope, size, stamp in db.execute(_SCOPES, {"scopes": wanted}).all():
            held = self._held.get(scope)
            if held is None or held.stamp != stamp:
                before = Ranking.empty() if held is None or held.stamp > stamp else held
                rows = db.execute(_CHANGED, {"scope": scope, "stamp": before.stamp})
                now = before.changed(stamp, size, ((shelf, places) for shelf, places in rows))
                self._hold(scope, now)
                held = now
            if size:
                found[scope] = held
        return found

    def _hold(self, scope: int, now: Ranking) -> None:
        """Any state that a transaction saw is right to go on from, also one before that which is held."""
        held = {**self._held, scope: now}
        if _count(held) > MAX_STANDINGS_HELD:
            held = {scope: each for scope, each in held.items() if scope in (EVERYBODY, SIGNED_IN)}
        if _count(held) > MAX_STANDINGS_HELD:
            held.pop(scope, None)
        self._held = held


def _count(held: dict[int, Ranking]) -> int:
    return sum(len(each.order) for each in held.values())


def _meets(some: npt.NDArray[np.void], met: Flags | None) -> Flags:
    if met is None:
        return np.ones(len(some), np.bool_)
    found: Flags = met[np.minimum(some["interface"], len(met) - 1)]
    return found
