"""Finding skills: by words and facets, and those that a robot can run; the best proven first.

What is read and why so is told in `listing`. A cursor is the feed's mark, as in `events`, and the rank of the
last skill of a page. A skill whose rank changes between two pages may be on both or on neither; all others
are on one, whatever is published meanwhile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Select, bindparam, select

from neuraverse.interface import Offer
from neuraverse.registry import events
from neuraverse.registry.finding.fitting import Fitting
from neuraverse.registry.finding.listing import (
    BLOCK,
    EVERYBODY,
    LAST_TIE,
    SIGNED_IN,
    STANDING,
    Evidence,
    bits,
    rank_of,
    term,
    words,
)
from neuraverse.registry.finding.ranking import Flags, Ranking, Rankings
from neuraverse.registry.index import field_score
from neuraverse.registry.limits import MAX_COUNTED, MAX_FACET_VALUES
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import listings, postings, skills, versions
from neuraverse.registry.tenants.access import Caller

CURSOR_PATTERN = "^([0-9a-f]{8}-[0-9]{1,19})?$"
COUNTED = ("task", "interface", "robot", "tag", "license", "org")
_LAST = 2**63 - 1
_P, _V = postings.c, versions.c
_POSTINGS = select(_P.scope, _P.block, _P.places).where(
    _P.scope.in_(bindparam("scopes", expanding=True)),
    _P.term.in_(bindparam("terms", expanding=True)),
)
_SHOWN = (skills.c.name, skills.c.visibility, skills.c.org_id, _V.robot, _V.interface, _V.facets)
_FACETS = (
    select(*_SHOWN)
    .select_from(listings)
    .join(versions)
    .join(skills, skills.c.id == listings.c.skill_id)
    .where(listings.c.skill_id.in_(bindparam("skills", expanding=True)))
)
_ENTRIES = _FACETS.add_columns(
    *(_V.version, _V.digest, _V.title, _V.description, _V.rate, _V.lower, _V.n),
    *(_V.field_n, _V.field_successes, _V.created_at),
).order_by(listings.c.rank)


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
    db: Connection,
    caller: Caller,
    rankings: Rankings,
    asked: Asked,
    cursor: str,
    limit: int,
    *,
    facets: bool = False,
) -> dict[str, Any]:
    """Skills that match, the best proven first, each with its latest active version.

    Args:
        db: A transaction.
        caller: Who asks.
        rankings: Of the registry.
        asked: What for.
        cursor: Where the page before ended, or empty.
        limit: At most so many.
        facets: Whether to count the values of facets, too.

    Returns:
        ``skills``; ``next``, the cursor of the next page or None; and ``facets`` if asked for.

    Raises:
        Problem: 400 the cursor is of another registry.
    """
    found = _find(db, caller, rankings, asked)
    answer = _page(db, caller, found, cursor, limit)
    if facets:
        answer["facets"] = _count(db, caller, found)
    return answer


def runnable(
    db: Connection,
    caller: Caller,
    rankings: Rankings,
    fitting: Fitting,
    offer: Offer,
    asked: Asked,
    cursor: str,
    limit: int,
) -> dict[str, Any]:
    """Of the skills that match, those that a robot can run; else as `search`."""
    found = _find(db, caller, rankings, asked, fitting.met(db, offer))
    return _page(db, caller, found, cursor, limit)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Which skills match.

    Attributes:
        rankings: Of the scopes that the caller may see, by scope; and which places of each have all terms, as
            flags, or None if all have.
        met: What `Fitting.met` gives; None if any interface will do.
        worst: Only ranks up to this one.
    """

    rankings: list[tuple[Ranking, Flags | None]]
    met: Flags | None
    worst: int

    def best(self, after: int, count: int) -> npt.NDArray[np.void]:
        """What stands of the best behind a rank, at most `count`, in their order; of `STANDING`."""
        each = [r.best(having, self.met, after, self.worst, count) for r, having in self.rankings]
        found = np.concatenate([np.zeros(0, STANDING), *each])
        return found[np.argsort(found["rank"])][:count]


def _find(
    db: Connection, caller: Caller, rankings: Rankings, asked: Asked, met: Flags | None = None
) -> _Found:
    terms, scopes = asked.terms(), [EVERYBODY, *caller.reads]
    if caller.account is not None:
        scopes.append(SIGNED_IN)
    found: list[tuple[Ranking, Flags | None]] = []
    if terms:
        having = _having(db, scopes, terms)
        for scope, ranking in rankings.of(db, _padded(list(having))).items() if having else ():
            flags = np.zeros(len(ranking.order), np.bool_)  # the last blocks have none of these perhaps
            flags[: len(having[scope])] = having[scope][: len(flags)]
            found.append((ranking, flags))
    elif terms is not None:
        found = [(ranking, None) for ranking in rankings.of(db, _padded(scopes)).values()]
    return _Found(rankings=found, met=met, worst=rank_of(asked.success, LAST_TIE))


def _having(db: Connection, scopes: Sequence[int], terms: Sequence[int]) -> dict[int, Flags]:
    """Scopes in which some skill has all terms, and the places of these; shape (blocks * BLOCK,)."""
    held: dict[int, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for scope, block, places in db.execute(_POSTINGS, {"scopes": _padded(scopes), "terms": _padded(terms)}):
        held[scope][block].append(places)
    found = {}
    for scope, blocks in held.items():
        whole = [(block, each) for block, each in blocks.items() if len(each) == len(terms)]
        flags = np.zeros((max(blocks) + 1, BLOCK), np.bool_)
        for block, each in whole:
            flags[block] = np.unpackbits(reduce(np.bitwise_and, map(bits, each)))
        if whole and flags.any():
            found[scope] = flags.ravel()
    return found


def _page(db: Connection, caller: Caller, found: _Found, cursor: str, limit: int) -> dict[str, Any]:
    best = found.best(_after(db, cursor), limit + 1)
    page = best[:limit]
    more = len(best) > limit
    return {
        "skills": [_entry(row) for row in _rows(db, caller, _ENTRIES, page)],
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


def _rows(db: Connection, caller: Caller, query: Select[Any], best: npt.NDArray[np.void]) -> list[Any]:
    """Rows of skills that were found."""
    if not len(best):
        return []
    rows = db.execute(query, {"skills": _padded(best["skill"].tolist())})
    return [row for row in rows if caller.sees(row)]  # which the index has seen to; should it ever fail


def _entry(row: Any) -> dict[str, Any]:
    """A skill as a search tells it."""
    proven = Evidence.of(row)
    return {
        "name": row.name,
        "version": row.version,
        "digest": row.digest,
        "title": row.title,
        "description": row.description,
        "robot": row.robot,
        "rate": row.rate,
        "lower": row.lower,
        "n": row.n,
        "created": row.created_at,
        "interface": row.interface,
        "task": row.facets["task"],
        "license": row.facets["license"],
        "tags": row.facets["tags"],
        "visibility": row.visibility,
        "evidence": {"bound": proven.bound, "n": proven.n, "source": proven.source},
        "field": field_score(row.field_successes, row.field_n) if row.field_n else None,
    }


def _count(db: Connection, caller: Caller, found: _Found) -> dict[str, Any]:
    """How many of the best skills have each value of a facet."""
    best = found.best(-1, MAX_COUNTED + 1)
    counted = best[:MAX_COUNTED]
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    for name, _, _, robot, interface, facets in _rows(db, caller, _FACETS, counted):
        counts["org"][name.partition("/")[0]] += 1
        counts["robot"][robot] += 1
        counts["interface"][interface] += 1
        counts["task"][facets["task"]] += 1
        counts["license"][facets["license"]] += 1
        counts["tag"].update(set(facets["tags"]))
    values = {name: dict(each.most_common(MAX_FACET_VALUES)) for name, each in counts.items()}
    return {"counted": len(counted), "cut": len(best) > len(counted), "values": values}


def _padded(values: Sequence[int]) -> list[int]:
    """As many as the next power of two, the last repeated: so there are few statements to prepare."""
    return [*values, *[values[-1]] * ((1 << (len(values) - 1).bit_length()) - len(values))]
