"""Who holds which blobs, and how much an organisation may have.

Each organisation counts what it holds as if nobody else were there: what another one has uploaded before has
to be sent, and counts, all the same. So an upload tells nobody what others have. On the disk it lies once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, exists, func, insert, or_, select, update

from neuraverse.registry.config import Settings
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    REVOKED,
    events,
    holdings,
    now,
    orgs,
    skills,
    version_files,
    versions,
)
from neuraverse.registry.tenants.access import Caller, forbidden

ANYBODY = ""
"""Holds what is uploaded to an open registry without saying for whom."""
_HELD = select(holdings.c.sha256, holdings.c.until).where(
    holdings.c.holder == bindparam("holder"), holdings.c.sha256.in_(bindparam("digests", expanding=True))
)
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an organisation may have. Zero is without limit.

    Attributes:
        bytes: Of blobs.
        versions: Of all its skills.
        requests: A minute, by its members and robots.
        events: An hour.
    """

    bytes: int
    versions: int
    requests: int
    events: int

    @classmethod
    def of(cls, settings: Settings, org: Row[Any] | None) -> Limits:
        """Those of an organisation, or what any has that was given none of its own."""

        def one(name: str) -> int:
            own = None if org is None else getattr(org, f"quota_{name}")
            return int(getattr(settings, f"quota_{name}") if own is None else own)

        return cls(**{name: one(name) for name in ("bytes", "versions", "requests", "events")})


def holder(db: Connection, caller: Caller, org: str, settings: Settings, size: int = 0) -> str:
    """The name under which a caller may upload, if so many bytes are within its quota.

    Raises:
        Problem: 401, 403 the caller may not publish there, 413 the quota is reached.
    """
    row = None if org == ANYBODY else db.execute(select(orgs).where(orgs.c.name == org)).one_or_none()
    allowed = caller.open if row is None else caller.acts("publish", row)
    if not allowed:
        what = f"upload for {org}" if org else "upload without naming an organisation (?org=NAME)"
        raise forbidden(caller, what, "publish")
    if row is not None:
        room_for(row, Limits.of(settings, row), size)
    return org


def room_for(org: Row[Any], limits: Limits, size: int, versions: int = 0) -> None:
    """Whether an organisation may have so much more.

    Raises:
        Problem: 413.
    """
    for name, used, more, unit in (
        ("bytes", org.used_bytes, size, " bytes"),
        ("versions", org.used_versions, versions, " versions"),
    ):
        limit = getattr(limits, name)
        if more and limit and used + more > limit:
            raise Problem(
                413,
                "quota",
                f"{org.name} has {used} of {limit}{unit}; {more} more are too many",
                remedy="ask the operator of the registry for a larger quota",
                headers={"Neuraverse-Quota": f"{name}; used={used}, limit={limit}"},
                extra={"quota": name, "used": used, "limit": limit},
            )


def event_allowed(db: Connection, org: Row[Any], limits: Limits, now_us: int) -> None:
    """Whether an organisation may make one more event.

    Raises:
        Problem: 429.
    """
    if not limits.events:
        return
    recent = and_(events.c.org_id == org.id, events.c.id > now_us - _HOUR_US)
    ids = select(events.c.id).where(recent).order_by(events.c.id.desc()).limit(limits.events)
    found = db.execute(select(func.count(), func.min(ids.subquery().c.id))).one()
    if found[0] >= limits.events:
        wait_s = max(1, round((int(found[1]) + _HOUR_US - now_us) / 1e6))
        raise Problem(
            429,
            "quota",
            f"{org.name} has made {limits.events} events within an hour, which is its limit",
            remedy=f"try again in {wait_s} s, or ask the operator of the registry for a larger quota",
            headers={"Retry-After": str(wait_s), "Neuraverse-Quota": f"events; limit={limits.events}"},
            extra={"quota": "events", "limit": limits.events},
        )


def usable(db: Connection, caller: Caller, name: str, digests: Iterable[str]) -> set[str]:
    """Those of the blobs that exist for an uploader: held under the name, or by a skill that they see."""
    wanted = list(dict.fromkeys(digests))
    found = {row.sha256 for row in db.execute(_HELD, {"holder": name, "digests": wanted})}
    if caller.open and name != ANYBODY:
        found |= {row.sha256 for row in db.execute(_HELD, {"holder": ANYBODY, "digests": wanted})}
    rest = [each for each in wanted if each not in found]
    if rest:
        shown = select(version_files.c.sha256).select_from(version_files.join(versions).join(skills))
        shown = shown.where(version_files.c.sha256.in_(rest), versions.c.state != REVOKED, caller.seen())
        found.update(db.scalars(shown.distinct()))
    return found


def hold(db: Connection, name: str, sizes: Mapping[str, int], until: str | None) -> int:
    """Let blobs be held under a name, at least until then (None: for good); how many bytes are new to it."""
    known = {row.sha256: row.until for row in db.execute(_HELD, {"holder": name, "digests": list(sizes)})}
    new = {sha256: size for sha256, size in sizes.items() if sha256 not in known}
    if new:
        rows = [{"holder": name, "sha256": k, "size": size, "until": until} for k, size in new.items()]
        db.execute(insert(holdings), rows)
    later = [k for k, held in known.items() if held is not None and (until is None or until > held)]
    if later:
        at = and_(holdings.c.holder == name, holdings.c.sha256.in_(later))
        db.execute(update(holdings).where(at).values(until=until))
    size = sum(new.values())
    if size and name != ANYBODY:
        db.execute(update(orgs).where(orgs.c.name == name).values(used_bytes=orgs.c.used_bytes + size))
    return size


def held_before(db: Connection, name: str) -> int:
    """Bytes that are held under a name."""
    return int(
        db.scalar(select(func.coalesce(func.sum(holdings.c.size), 0)).where(holdings.c.holder == name)) or 0
    )


def let_go(db: Connection) -> int:
    """Forget what was uploaded and not published in time; how many."""
    past = and_(holdings.c.until.is_not(None), holdings.c.until <= now())
    sums = select(holdings.c.holder, func.sum(holdings.c.size).label("size")).where(past)
    for row in db.execute(sums.group_by(holdings.c.holder)).all():
        at = orgs.c.name == row.holder
        db.execute(update(orgs).where(at).values(used_bytes=orgs.c.used_bytes - int(row.size)))
    return int(db.execute(delete(holdings).where(past)).rowcount)


def visible(caller: Caller, sha256: str) -> Any:
    """For a query: whether a blob exists for a reader, in a version that they see or as their own upload."""
    shown = (
        select(version_files.c.sha256)
        .select_from(version_files.join(versions).join(skills))
        .where(version_files.c.sha256 == sha256, caller.seen())
    )
    names = [*caller.orgs.values(), *([ANYBODY] if caller.open else [])]
    mine = select(holdings.c.sha256).where(
        holdings.c.sha256 == sha256, holdings.c.holder.in_(names), holdings.c.until.is_not(None)
    )
    return or_(exists(shown), exists(mine))
