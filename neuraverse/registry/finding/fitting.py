"""Which interfaces a robot's offer meets: each is held against it once, however many skills have it.

What decides is kept in memory, as arrays, since an interface never changes: its figures, and its signals as
hashes. `Interface.problems` tells the same of one interface, with reasons; a test holds both equal.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from sqlalchemy import Connection, bindparam, select

from neuraverse.interface import FIGURES, Interface, Offer, Signal, least
from neuraverse.registry.limits import MAX_SIGNALS_HELD
from neuraverse.registry.tables import interfaces

_PART = 1000
_INTERFACE = TypeAdapter(Interface)
_BEHIND = select(interfaces.c.id, interfaces.c.document).where(interfaces.c.id > bindparam("after"))
_BEHIND = _BEHIND.order_by(interfaces.c.id).limit(_PART)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Some interfaces.

    Attributes:
        ids: Ascending; shape (n,).
        needs: The least of each of `FIGURES` that will do; shape (n, 5).
        wrench: Whether a wrench sensor is needed; shape (n,).
        signals: Hashes of all signals of the first, then of the second and so on; shape (m,).
        first: Where those of each begin; shape (n,).
    """

    ids: npt.NDArray[np.int64]
    needs: npt.NDArray[np.float64]
    wrench: npt.NDArray[np.bool_]
    signals: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Any]) -> _Known:
        """Those in rows of `interfaces`."""
        read = [_INTERFACE.validate_python(row.document) for row in rows]
        signals = [_signals(each.observation, each.action) for each in read]
        return cls(
            ids=np.array([row.id for row in rows], np.int64),
            needs=np.array([least(np.array(each.figures)) for each in read]).reshape(-1, len(FIGURES)),
            wrench=np.array([each.requires.wrench_sensor for each in read], np.bool_),
            signals=np.array([each for some in signals for each in some], np.int64),
            first=np.cumsum([0, *map(len, signals)])[:-1],
        )

    def __add__(self, more: _Known) -> _Known:
        return _Known(
            ids=np.concatenate((self.ids, more.ids)),
            needs=np.concatenate((self.needs, more.needs)),
            wrench=np.concatenate((self.wrench, more.wrench)),
            signals=np.concatenate((self.signals, more.signals)),
            first=np.concatenate((self.first, more.first + len(self.signals))),
        )

    def met(self, offer: Offer) -> npt.NDArray[np.int64]:
        """Ids of those that a robot can supply."""
        if not len(self.ids):
            return self.ids
        there = np.isin(self.signals, np.array(_signals(offer.observation, offer.action), np.int64))
        whole = np.logical_and.reduceat(there, self.first)
        enough = (np.array(offer.figures) >= self.needs).all(axis=1)
        return self.ids[whole & enough & (offer.wrench_sensor | ~self.wrench)]


class Fitting:
    """The interfaces of a registry, as far as `MAX_SIGNALS_HELD` allows; the others are read each time."""

    def __init__(self) -> None:
        self._known = _Known.of(())

    def met(self, db: Connection, offer: Offer) -> npt.NDArray[np.bool_]:
        """Whether a robot can supply each interface, by its id; the last is False, for all others."""
        ids = np.concatenate([part.met(offer) for part in self._parts(db)])
        found = np.zeros(ids.max(initial=0) + 2, np.bool_)
        found[ids] = True
        return found

    def load(self, db: Connection) -> None:
        """Read those that are not in memory yet."""
        for _ in self._parts(db):
            pass

    def _parts(self, db: Connection) -> Iterator[_Known]:
        known = self._known  # another thread may put more in its place, never others
        yield known
        after, room = int(known.ids[-1]) if len(known.ids) else 0, True
        while rows := db.execute(_BEHIND, {"after": after}).all():
            part, after = _Known.of(rows), rows[-1].id
            room = room and len(known.signals) + len(part.signals) <= MAX_SIGNALS_HELD
            if room:
                known = self._known = known + part
            yield part


def _signals(observation: Iterable[Signal], action: Iterable[Signal]) -> list[int]:
    """A hash of each signal, by what a skill and a robot must agree on."""
    by_name = {(role, s.name): s for role, each in (("o", observation), ("a", action)) for s in each}
    return [_hash(role, *signal.kind) for (role, _), signal in by_name.items()]


@functools.lru_cache(maxsize=10_000)
def _hash(*what: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "little", signed=True)
