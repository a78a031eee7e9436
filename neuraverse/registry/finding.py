"""Finding skills: by words and facets, and those that a robot can run; the best proven first.

What is read and why so is told in `listing`. A cursor is the feed's mark, as in `events`, and the rank of the
last skill of a page. Ranks that change meanwhile move a skill, so that it may be met twice or not at all; no
other change makes a page repeat or leave out one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, bindparam, select

from neuraverse.interface import Offer
from neuraverse.registry import events
from neuraverse.registry.access import Caller
from neuraverse.registry.fitting import Fitting
from neuraverse.registry.index import field_score
from neuraverse.registry.limits import MAX_COUNTED, MAX_FACET_VALUES
from neuraverse.registry.listing import (
    BLOCK,
    EVERYBODY,
    LAST_TIE,
    SHELF,
    SIGNED_IN,
    STANDING,
    Evidence,
    bits,
    rank_of,
    term,
    words,
)
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import listings, postings, skills, standings, versions

CURSOR_PATTERN = "^([0-9a-f]{8}-[0-9]{1,19})?$"
COUNTED = ("task", "interface", "robot", "tag", "license", "org")
_FEW_SHELVES = 32  # up to so many are asked for one by one, else all of their scopes
_LAST = 2**63 - 1
_POSTINGS = select(postings).where(
    postings.c.scope.in_(bindparam("scopes", expanding=True)),
    postings.c.term.in_(bindparam("terms", expanding=True)),
)
_STANDINGS = select(standings).where(standings.c.scope.in_(bindparam("scopes", expanding=True)))
_STANDINGS = _STANDINGS.order_by(standings.c.scope, standings.c.shelf)
_SOME_STANDINGS = _STANDINGS.where(standings.c.shelf.in_(bindparam("shelves", expanding=True)))
_V = versions.c
_ENTRIES = (
    select(
        *(listings.c.rank, skills.c.name, skills.c.visibility, skills.c.org_id),
        *(_V.version, _V.digest, _V.title, _V.description, _V.robot, _V.interface, _V.facets),
        *(_V.rate, _V.lower, _V.n, _V.field_n, _V.field_successes, _V.created_at),
    )
    .select_from(listings)
    .join(versions)
    .join(skills, skills.c.id == listings.c.skill_id)
    .where(listings.c.skill_id.in_(bindparam("skills", expanding=True)))
    .order_by(listings.c.rank)
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a search is for; what is empty lets everything pass.

    Attributes:
        q: Words, all of which must occur in name, title, description, tags, robot or task.
        task: Environment id.
        interface: ``sha256:<hex>``.
        robot: Name of the body that it was trained on.
        tags: All of which it must have.
        license: SPDX expression.
        org: Organisation.
        parent: ``sha256:<hex>`` of a skill that it descends from directly.
        success: The least bound.
    """

    q: str = ""
    task: str = ""
    interface: str = ""
    robot: str = ""
    tags: tuple[str, ...] = ()
    license: str = ""
    org: str = ""
    parent: str = ""
    success: float = 0.0

    def terms(self) -> list[int] | None:
        """What a skill must have; None if nothing can: there are characters, but no word."""
        found = list(words(self.q))
        if self.q.strip() and not found:
            return None
        single = ("task", "interface", "robot", "license", "org", "parent")
        pairs = [(name, getattr(self, name)) for name in single] + [("tag", tag) for tag in self.tags]
        found += [f"{name}={value}" for name, value in pairs if value]
        return list(dict.fromkeys(map(term, found)))


def search(
    db: Connection, caller: Caller, asked: Asked, cursor: str, limit: int, *, facets: bool = False
) -> dict[str, Any]:
    """Skills that match, the best proven first, each with its latest active version.

    Args:
        db: A transaction.
        caller: Who asks.
        asked: What for.
        cursor: Where the page before ended, or empty.
        limit: At most so many.
        facets: Whether to count the values of facets, too.

    Returns:
        ``skills``; ``next``, the cursor of the next page or None; and ``facets`` if asked for.

    Raises:
        Problem: 400 the cursor is of another registry.
    """
    found = _matching(db, caller, asked)
    answer = _page(db, caller, found, cursor, limit)
    if facets:
        answer["facets"] = _count(db, caller, found)
    return answer


def runnable(
    db: Connection, caller: Caller, fitting: Fitting, offer: Offer, asked: Asked, cursor: str, limit: int
) -> dict[str, Any]:
    """Of the skills that match, those that a robot can run; else as `search`."""
    met = fitting.met(db, offer)
    found = _matching(db, caller, asked)
    return _page(db, caller, found[np.isin(found["interface"], met)], cursor, limit)


def _matching(db: Connection, caller: Caller, asked: Asked) -> npt.NDArray[np.void]:
    """What stands of all skills that match, in no order; shape (n,), of `STANDING`."""
    terms = asked.terms()
    scopes = [EVERYBODY, *([] if caller.account is None else [SIGNED_IN]), *caller.reads]
    if terms is None:
        return np.zeros(0, STANDING)
    found = _with_terms(db, scopes, terms) if terms else _standings(db, scopes)
    return found[found["rank"] <= rank_of(asked.success, LAST_TIE)]


def _with_terms(db: Connection, scopes: Sequence[int], terms: Sequence[int]) -> npt.NDArray[np.void]:
    """What stands of the skills that have all terms: bits are intersected, then their shelves are read."""
    held: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for row in db.execute(_POSTINGS, {"scopes": _padded(scopes), "terms": _padded(terms)}):
        held[row.scope, row.block].append(row.places)
    places: dict[int, list[npt.NDArray[np.intp]]] = defaultdict(list)
    for (scope, block), each in sorted(held.items()):
        if len(each) == len(terms):
            common = np.flatnonzero(np.unpackbits(reduce(np.bitwise_and, map(bits, each))))
            if len(common):
                places[scope].append(common + block * BLOCK)
    return _standings(db, list(places), {scope: np.concatenate(each) for scope, each in places.items()})


def _standings(
    db: Connection, scopes: Sequence[int], places: Mapping[int, npt.NDArray[np.intp]] | None = None
) -> npt.NDArray[np.void]:
    """What stands at places of scopes; at all of them, if `places` is not given."""
    if not scopes:
        return np.zeros(0, STANDING)
    asked: dict[str, Sequence[int]] = {"scopes": _padded(scopes)}
    query = _STANDINGS
    if places is not None:
        shelves = sorted({int(shelf) for each in places.values() for shelf in np.unique(each // SHELF)})
        if len(shelves) <= _FEW_SHELVES:
            query, asked["shelves"] = _SOME_STANDINGS, _padded(shelves)
    rows: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in db.execute(query, asked):
        rows[row.scope].append(row)
    found = []
    for scope, held in rows.items():
        standing = np.frombuffer(b"".join([row.places for row in held]), STANDING)
        if places is not None:
            wanted = places[scope]
            # Only the last shelf of a scope is not full, so each of those that were read begins at a
            # multiple of their size.
            at = np.searchsorted([row.shelf for row in held], wanted // SHELF)
            standing = standing[at * SHELF + wanted % SHELF]
        found.append(standing)
    return np.concatenate(found) if found else np.zeros(0, STANDING)


def _page(
    db: Connection, caller: Caller, found: npt.NDArray[np.void], cursor: str, limit: int
) -> dict[str, Any]:
    after = _after(db, cursor)
    best = _best(found[found["rank"] > after], limit + 1)
    page = best[:limit]
    more = len(best) > limit
    return {
        "skills": [_entry(row) for row in _entries(db, caller, page)],
        "next": events.cursor(events.mark(db), int(page[-1]["rank"])) if more else None,
    }


def _after(db: Connection, cursor: str) -> int:
    """The rank that a cursor stands behind; -1 without one."""
    if not cursor:
        return -1
    mark, _, rank = cursor.partition("-")
    if mark != events.mark(db):
        raise Problem(
            400,
            "cursor",
            "the cursor is of another registry, or of this one before it was restored",
            remedy="search anew, without a cursor",
            field="cursor",
        )
    return min(int(rank), _LAST)


def _best(found: npt.NDArray[np.void], count: int) -> npt.NDArray[np.void]:
    """Those with the best ranks, in their order."""
    if len(found) > count:
        found = found[np.argpartition(found["rank"], count - 1)[:count]]
    return found[np.argsort(found["rank"])]


def _entries(db: Connection, caller: Caller, best: npt.NDArray[np.void]) -> list[Any]:
    """Rows of skills, the best first."""
    if not len(best):
        return []
    rows = db.execute(_ENTRIES, {"skills": _padded(best["skill"].tolist())})
    return [row for row in rows if caller.sees(row)]  # which the index has seen to; should it ever fail


def _entry(row: Any) -> dict[str, Any]:
    """A skill as a search tells it."""
    plain = ("name", "version", "digest", "title", "description", "robot", "rate", "lower", "n")
    return {
        **{name: getattr(row, name) for name in plain},
        "created": row.created_at,
        "interface": row.interface,
        "task": row.facets["task"],
        "license": row.facets["license"],
        "tags": row.facets["tags"],
        "visibility": row.visibility,
        "evidence": asdict(Evidence.of(row)),
        "field": field_score(row.field_successes, row.field_n) if row.field_n else None,
    }


def _count(db: Connection, caller: Caller, found: npt.NDArray[np.void]) -> dict[str, Any]:
    """How many of the best skills have each value of a facet."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    counted = 0
    for row in _entries(db, caller, _best(found, MAX_COUNTED)):
        counted += 1
        for name in ("robot", "interface"):
            counts[name][getattr(row, name)] += 1
        for name in ("task", "license"):
            counts[name][row.facets[name]] += 1
        counts["tag"].update(set(row.facets["tags"]))
        counts["org"][row.name.partition("/")[0]] += 1
    values = {name: dict(each.most_common(MAX_FACET_VALUES)) for name, each in counts.items()}
    return {"counted": counted, "cut": len(found) > counted, "values": values}


def _padded(values: Sequence[int]) -> list[int]:
    """As many as the next power of two, the last repeated: so there are few statements to prepare."""
    return [*values, *[values[-1]] * ((1 << (len(values) - 1).bit_length()) - len(values))]
