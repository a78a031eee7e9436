"""Field reports: how a version does on real robots, as sums. Nothing raw is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, select, update

from neuraverse.registry.finding.listing import relist
from neuraverse.registry.fleet import rollouts
from neuraverse.registry.fleet.followers import as_robot, for_people, seen
from neuraverse.registry.index import field_score, find_skill
from neuraverse.registry.limits import MAX_ERRORS, MAX_FIELD_BODIES, MAX_LISTED, MAX_REPORTS
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import accounts, field, installs, now, robots, runs, skills, versions
from neuraverse.registry.tenants.access import Caller

_HOUR_S = 3600


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a robot saw of a version in the field since its last report.

    Attributes:
        digest: Of the version.
        episodes: How many.
        successes: Of these.
        aborts: Of these; neither they nor what is left succeeded.
        errors: Physical errors by name: ``unit``, ``n``, ``mean`` and ``max``.
        body: Digest of the body that it ran on.
        software: Versions by name.
        key: What its sender calls it, to send it again if no answer came; empty if it is not sent again.
    """

    digest: str
    episodes: int
    successes: int
    aborts: int
    errors: Mapping[str, Mapping[str, Any]]
    body: str
    software: Mapping[str, str]
    key: str = ""


def take(db: Connection, caller: Caller, report: Report) -> dict[str, Any]:
    """Add a report to the sums of a version, and let the roll-outs that sent it there decide.

    A report that has a key and equals the one before, of this robot, version and body, is that one, sent
    again: it counts once.

    Raises:
        Problem: 401, 403, 404 no such version, 409 the robot never ran it or has too many bodies, 422 errors
            that do not fit those of before, 429 too many reports.
    """
    robot, org = as_robot(caller)
    query = select(versions, skills.c.name, skills.c.visibility, skills.c.org_id).join(skills)
    version = db.execute(query.where(versions.c.digest == report.digest)).one_or_none()
    if version is None or not caller.sees(version):
        raise Problem(
            404,
            "no-such-skill",
            f"there is no skill with the digest {report.digest}",
            remedy="report on what was pulled from this registry",
            field="digest",
        )
    ran = and_(runs.c.robot_id == robot, runs.c.version_id == version.id)
    if db.scalar(select(runs.c.first_at).where(ran)) is None:
        raise Problem(
            409,
            "never-ran",
            f"{caller.name} has never said that it runs {version.name}@{version.version}",
            remedy="say so first: PUT /v1/fleet/installs",
            field="digest",
        )
    seen(db, robot)
    _one_more(db, robot)
    n, k = version.field_n, version.field_successes
    if _add(db, robot, version.id, report):
        n, k = n + report.episodes, k + report.successes
        db.execute(update(versions).where(versions.c.id == version.id).values(field_n=n, field_successes=k))
        relist(db, version.skill_id)
        mine = and_(installs.c.robot_id == robot, installs.c.skill_id == version.skill_id)
        followed = [each.partition("@")[2] for each in db.scalars(select(installs.c.follows).where(mine))]
        rollouts.count(db, org, version.skill_id, version.id, followed, report.episodes, report.successes)
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "field": field_score(k, n),
    }


def listed(db: Connection, caller: Caller, org: str, name: str) -> list[dict[str, Any]]:
    """What an organisation's robots reported of a skill, those that reported last first; removed ones, too.

    Raises:
        Problem: 401, 403 a robot asks, 404.
    """
    for_people(db, caller, org)
    skill = find_skill(db, caller, name)
    query = (
        select(field, versions.c.version, accounts.c.name.label("robot"))
        .select_from(field.join(versions).join(accounts))
        .where(versions.c.skill_id == skill.id, accounts.c.name.startswith(f"{org}/", autoescape=True))
        .order_by(field.c.last_at.desc(), accounts.c.name, field.c.body)
    )
    return [
        {
            "robot": row.robot,
            "version": row.version,
            "body": row.body,
            "field": field_score(row.successes, row.episodes),
            "aborts": row.aborts,
            "errors": {
                error: {"unit": e["unit"], "n": e["n"], "mean": e["sum"] / e["n"], "max": e["max"]}
                for error, e in row.errors.items()
            },
            "software": row.software,
            "reports": row.reports,
            "first": row.first_at,
            "last": row.last_at,
        }
        for row in db.execute(query.limit(MAX_LISTED))
    ]


def _one_more(db: Connection, robot: int) -> None:
    """Count a report of a robot that has been seen.

    Raises:
        Problem: 429 it has sent as many as it may within an hour.
    """
    at = robots.c.robot_id == robot
    row = db.execute(select(robots.c.reports_from, robots.c.reports).where(at)).one()
    if not now(-1.0) < row.reports_from <= now():  # an hour has passed, or the clock was put back
        db.execute(update(robots).where(at).values(reports_from=now(), reports=1))
        return
    if row.reports >= MAX_REPORTS:
        passed = datetime.now(UTC) - datetime.fromisoformat(row.reports_from)
        wait_s = min(_HOUR_S, max(1, _HOUR_S - int(passed.total_seconds())))
        raise Problem(
            429,
            "quota",
            f"this robot has sent {MAX_REPORTS} reports within an hour, which is the most",
            remedy=f"try again in {wait_s} s, and put more episodes into each report",
            headers={"Retry-After": str(wait_s)},
            extra={"quota": "reports", "limit": MAX_REPORTS},
        )
    db.execute(update(robots).where(at).values(reports=row.reports + 1))


def _add(db: Connection, robot: int, version: int, report: Report) -> bool:
    """Add to the sums of a version, a robot and a body; False if this report was added before."""
    mine = and_(field.c.version_id == version, field.c.robot_id == robot)
    at = and_(mine, field.c.body == report.body)
    old = db.execute(select(field).where(at)).one_or_none()
    mark = _mark(report)
    if old is not None and mark and mark == old.last_mark:
        return False
    values: dict[str, Any] = {
        "episodes": report.episodes + (old.episodes if old is not None else 0),
        "successes": report.successes + (old.successes if old is not None else 0),
        "aborts": report.aborts + (old.aborts if old is not None else 0),
        "errors": _summed(old, report.errors),
        "software": dict(report.software),
        "reports": 1 + (old.reports if old is not None else 0),
        "last_at": now(),
        "last_mark": mark,
    }
    if old is not None:
        db.execute(update(field).where(at).values(values))
        return True
    if (db.scalar(select(func.count()).select_from(field).where(mine)) or 0) >= MAX_FIELD_BODIES:
        raise Problem(
            409,
            "too-many",
            f"this robot has reported on this version with {MAX_FIELD_BODIES} bodies, which is the most",
            remedy="report on one of these, or as another robot",
            field="body",
        )
    db.execute(
        insert(field).values(
            version_id=version, robot_id=robot, body=report.body, first_at=values["last_at"], **values
        )
    )
    return True


def _mark(report: Report) -> str:
    """What tells a report from any other, its key included; empty if it has none, and is not sent again."""
    if not report.key:
        return ""
    return hashlib.sha256(json.dumps(asdict(report), sort_keys=True).encode()).hexdigest()


def _summed(old: Row[Any] | None, new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of errors, by name: ``unit``, ``n``, ``sum`` and ``max``."""
    found: dict[str, Any] = dict(old.errors) if old is not None else {}
    for name, each in new.items():
        known = found.get(name, {"unit": each["unit"], "n": 0, "sum": 0.0, "max": 0.0})
        if known["unit"] != each["unit"]:
            raise Problem(
                422,
                "unit",
                f"{name} is in {each['unit']}; it was in {known['unit']} before",
                remedy="report each error in one unit, or under another name",
                field=f"errors.{name}.unit",
            )
        found[name] = {
            "unit": each["unit"],
            "n": known["n"] + each["n"],
            "sum": known["sum"] + each["n"] * each["mean"],
            "max": max(known["max"], each["max"]),
        }
    if len(found) > MAX_ERRORS:
        raise Problem(
            422,
            "too-many",
            f"with these, {len(found)} errors have been reported; {MAX_ERRORS} are the most",
            remedy="report fewer of them, under the same names each time",
            field="errors",
        )
    return found
