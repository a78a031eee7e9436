"""The event feed: what is told, to whom, and where a reader stands in it.

Ids of events are those of `tables.next_id`: they only grow, and gaps between them tell nothing.

A cursor is the feed's mark and an id. A registry that was restored has another mark, so that its readers look
anew, instead of waiting behind an id that it may give out a second time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select

from neuraverse.registry.tables import events, next_id, now, registry, skills, versions
from neuraverse.registry.tenants.access import Caller

Event = dict[str, Any]
TYPES = (
    *("published", "alias", "unalias", "yanked", "unyanked", "revoked"),
    *("deprecated", "undeprecated", "visibility", "fleet"),
)
FLEET = "fleet"
"""Events of this type are about an organisation's robots, and nobody else's business."""
CURSOR_PATTERN = "^(0|[0-9a-f]{8}-[0-9]{1,16})$"
_FIELDS = ("id", "type", "name", "version", "digest", "at", "by")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which events a reader asks for; what is empty lets everything pass.

    Attributes:
        org: Of this organisation's skills.
        name: Of this skill, ``org/skill``.
        interface: Of versions with this interface, ``sha256:<hex>``.
        types: Of one of these types.
    """

    org: str = ""
    name: str = ""
    interface: str = ""
    types: tuple[str, ...] = ()

    def passes(self, row: Row[Any]) -> bool:
        """Whether a row of `behind` is wanted."""
        return (
            (not self.org or row.name.startswith(f"{self.org}/"))
            and (not self.name or row.name == self.name)
            and (not self.interface or row.interface == self.interface)
            and (not self.types or row.type in self.types)
        )


ALL = Wanted()


def seen(caller: Caller) -> ColumnElement[bool]:
    """Which events the caller sees, for a query that joins `skills`."""
    return and_(caller.seen(), or_(events.c.type != FLEET, events.c.org_id.in_(caller.reads)))


def sees(caller: Caller, row: Any) -> bool:
    """The same for one event, in whose row ``owner`` is the skill's organisation."""
    if row.type == FLEET and not caller.may("read", row.org_id):
        return False
    return caller.shows(row.visibility, row.owner)


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def tell(
    db: Connection,
    org_id: int,
    skill_id: int,
    kind: str,
    name: str,
    version: str,
    digest: str,
    by: str,
    data: Mapping[str, Any],
) -> int:
    """Add an event; its id. The transaction writes, so that nobody else takes the same."""
    number = next_id(db, events)
    row = {"id": number, "org_id": org_id, "skill_id": skill_id, "type": kind, "name": name}
    row |= {"version": version, "digest": digest, "at": now(), "by": by, "data": dict(data)}
    db.execute(insert(events), row)
    return number


def head(db: Connection) -> int:
    """Id of the newest event."""
    return int(db.scalar(select(func.max(events.c.id))) or 0)


def newest(db: Connection, caller: Caller) -> int:
    """Id of the newest event that the caller sees: the newest of all would tell when others were busy."""
    query = select(events.c.id).join(skills, skills.c.id == events.c.skill_id).where(seen(caller))
    return int(db.scalar(query.order_by(events.c.id.desc()).limit(1)) or 0)


def mark(db: Connection) -> str:
    """The feed's mark, which cursors carry."""
    return str(db.scalar(select(registry.c.feed)))


def cursor(feed: str, number: int) -> str:
    """The cursor behind an event."""
    return f"{feed}-{number}"


def position(feed: str, given: str) -> int | None:
    """The id that a cursor stands behind; None if it is not one of this feed."""
    if given == "0":
        return 0
    if not re.fullmatch(CURSOR_PATTERN, given):
        return None
    its, _, number = given.partition("-")
    return int(number) if its == feed else None


def behind(db: Connection, caller: Caller, after: int, limit: int, wanted: Wanted = ALL) -> list[Row[Any]]:
    """Rows of events behind an id, in order: those that the caller may see, as things stand now."""
    query = (
        select(events, skills.c.visibility, versions.c.interface)
        .join(skills, skills.c.id == events.c.skill_id)
        .outerjoin(versions, versions.c.digest == events.c.digest)
        .where(events.c.id > after, seen(caller))
        .order_by(events.c.id)
        .limit(limit)
    )
    if wanted.name:
        query = query.where(skills.c.name == wanted.name)
    if wanted.org:
        query = query.where(skills.c.name.startswith(f"{wanted.org}/", autoescape=True))
    if wanted.interface:
        query = query.where(versions.c.interface == wanted.interface)
    if wanted.types:
        query = query.where(events.c.type.in_(wanted.types))
    return list(db.execute(query))


def told(db: Connection, after: int, limit: int) -> list[Row[Any]]:
    """Rows of events behind an id, whoever may see them; who may, `sees` tells of each."""
    query = (
        select(events, skills.c.visibility, skills.c.org_id.label("owner"), versions.c.interface)
        .join(skills, skills.c.id == events.c.skill_id)
        .outerjoin(versions, versions.c.digest == events.c.digest)
        .where(events.c.id > after)
        .order_by(events.c.id)
    )
    return list(db.execute(query.limit(limit)))


def plain(row: Row[Any], feed: str) -> Event:
    """An event as it is sent, with the cursor behind it."""
    return {**{k: getattr(row, k) for k in _FIELDS}, "cursor": cursor(feed, row.id), **row.data}
