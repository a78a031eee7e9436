"""Robots: what each says that it runs, what it is pinned or held at, and what operators see of all that."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from neuraverse.registry.config import Settings
from neuraverse.registry.events import now_us
from neuraverse.registry.fleet import rollouts, steering
from neuraverse.registry.fleet.followers import (
    announce,
    as_robot,
    for_fleet,
    for_people,
    line,
    reference,
    seen,
)
from neuraverse.registry.index import find_skill, find_version, revoked
from neuraverse.registry.limits import MAX_FOLLOWS, MAX_RUNS
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    REVOKED,
    accounts,
    installs,
    members,
    now,
    pins,
    robots,
    runs,
    skills,
    versions,
)
from neuraverse.registry.tenants.access import Caller, needs, note
from neuraverse.registry.tenants.quotas import Limits, event_allowed
from neuraverse.registry.tenants.robots import find_robot


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a robot says of one reference that it follows.

    Attributes:
        follows: ``org/skill@which``.
        version: The one that it runs, has refused, has rolled back from, or has left.
        digest: Of that version.
        state: ``running``, ``refused``, ``rolled-back``, ``left`` or ``stopped``.
        reason: Why.
    """

    follows: str
    version: str | None
    digest: str | None
    state: str
    reason: str


def say(db: Connection, caller: Caller, said: Said) -> None:
    """Take down what a robot runs.

    A robot that refuses a version keeps what it ran; one that rolls back runs what it ran before.

    Raises:
        Problem: 401, 403, 404 no such skill, 409 it follows too much, 422 the reference is malformed, or
            version and digest do not belong together.
    """
    robot, org = as_robot(caller)
    name, which = reference(said.follows)
    follows = f"{name}@{which}"
    skill = find_skill(db, caller, name)
    about = _about(db, skill, said)
    old = db.execute(select(installs).where(_install(robot, follows))).one_or_none()
    if old is None:
        _room_for_one_more(db, robot, installs)
    runs_id = _runs_now(db, robot, skill.id, said.state, about, old)
    same = old is not None and (old.state, old.version_id) == (said.state, runs_id)
    values: dict[str, Any] = {
        "skill_id": skill.id,
        "version_id": runs_id,
        "state": said.state,
        "reason": line(said.reason),
        "since": old.since if old is not None and same else now(),
        "reported_at": now(),
    }
    failed = about is not None and said.state in rollouts.FAILED
    if failed:
        values |= {"failed_id": about, "failed_at": now()}
    if old is None:
        db.execute(insert(installs).values(robot_id=robot, follows=follows, **values))
    else:
        db.execute(update(installs).where(_install(robot, follows)).values(values))
    seen(db, robot)
    if said.state == "running" and about is not None:
        _ran(db, robot, about)
    if failed and about is not None:
        known = old.failed_at if old is not None and old.failed_id == about else ""
        rollouts.count(db, org, skill.id, about, [which], 1, 0, behind=known)


def unsay(db: Connection, caller: Caller, follows: str) -> None:
    """A robot follows a reference no more.

    Raises:
        Problem: 401, 403, 422 the reference is malformed.
    """
    robot, _ = as_robot(caller)
    name, which = reference(follows)
    db.execute(delete(installs).where(_install(robot, f"{name}@{which}")))
    seen(db, robot)


def pin(
    db: Connection,
    caller: Caller,
    settings: Settings,
    org: str,
    robot: str,
    name: str,
    version: str | None,
    reason: str,
) -> None:
    """Keep a robot at a version of a skill, whatever it follows means; None keeps it at what it runs.

    Raises:
        Problem: 401, 403, 404, 409 the robots do not see the skill or it has too many pins, 410 the version
            was revoked, 429.
    """
    row = needs(db, caller, org, "fleet", "pin robots")
    account = find_robot(db, row, robot)
    skill = for_fleet(db, caller, row, name)
    target = None
    if version is not None:
        _, target = find_version(db, caller, name, version, exact=True)
        if target.state == REVOKED:
            raise revoked(f"{name}@{target.version}", target.reason)
    event_allowed(db, row, Limits.of(settings, row), now_us())
    at = and_(pins.c.robot_id == account.id, pins.c.skill_id == skill.id)
    values = {"version_id": target.id if target is not None else None, "reason": line(reason)}
    if not db.execute(update(pins).where(at).values(**values, created_at=now())).rowcount:
        _room_for_one_more(db, account.id, pins)
        db.execute(insert(pins).values(robot_id=account.id, skill_id=skill.id, created_at=now(), **values))
    change = "hold" if version is None else "pin"
    note(
        db, caller, row.id, f"robot.{change}", account.name, skill=name, version=version, reason=line(reason)
    )
    told: tuple[str, str] = (target.version, target.digest) if target is not None else ("", "")
    announce(db, row.id, skill.id, name, *told, {"change": change})


def unpin(db: Connection, caller: Caller, settings: Settings, org: str, robot: str, name: str) -> None:
    """Let a robot follow again.

    Raises:
        Problem: 401, 403, 404, 429.
    """
    row = needs(db, caller, org, "fleet", "free robots")
    account = find_robot(db, row, robot)
    skill = find_skill(db, caller, name)
    event_allowed(db, row, Limits.of(settings, row), now_us())
    at = and_(pins.c.robot_id == account.id, pins.c.skill_id == skill.id)
    if not db.execute(delete(pins).where(at)).rowcount:
        raise Problem(
            404,
            "no-such-pin",
            f"{account.name} is neither pinned nor held at {name}",
            remedy=f"`neuraverse fleet status {org}` shows which are",
        )
    note(db, caller, row.id, "robot.free", account.name, skill=name)
    announce(db, row.id, skill.id, name, "", "", {"change": "free"})


def listed(
    db: Connection, caller: Caller, org: str, after: str, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """An organisation's robots by name: what each follows, runs, is pinned or held at, or gets by a roll-out.

    Args:
        db: A transaction.
        caller: Who asks.
        org: Whose robots.
        after: Names, ``org/robot``, up to this one are left out.
        limit: At most this many.

    Returns:
        The robots, and the cursor of the next page or None.

    Raises:
        Problem: 401, 403 a robot asks, 404.
    """
    row = for_people(db, caller, org)
    query = select(accounts.c.id, accounts.c.name, accounts.c.created_at, robots.c.seen_at)
    query = query.select_from(accounts.join(members).outerjoin(robots, robots.c.robot_id == accounts.c.id))
    query = query.where(members.c.org_id == row.id, accounts.c.kind == "robot", accounts.c.name > after)
    page = db.execute(query.order_by(accounts.c.name).limit(limit + 1)).all()
    ids = [each.id for each in page[:limit]]
    kept, follows = _pins(db, ids), _follows(db, ids)
    moving = rollouts.under_way(db, row.id)
    found = [
        {
            "robot": robot.name,
            "since": robot.created_at,
            "last_seen": robot.seen_at,
            "follows": [
                _plain(each, kept[robot.id].get(each.skill_id), moving, robot.name)
                for each in follows[robot.id]
            ],
            "pins": [
                {"skill": p.name, "version": p.version, "reason": p.reason, "since": p.created_at}
                for p in kept[robot.id].values()
            ],
        }
        for robot in page[:limit]
    ]
    return found, page[limit - 1].name if len(page) > limit else None


def _plain(
    each: Row[Any], pinned: Row[Any] | None, moving: dict[Any, Row[Any]], robot: str
) -> dict[str, Any]:
    rollout = moving.get((each.skill_id, each.follows.partition("@")[2]))
    kept = None if pinned is None else "hold" if pinned.version_id is None else "pin"
    return {
        "follows": each.follows,
        "runs": None if each.version is None else {"version": each.version, "digest": each.digest},
        "state": each.state,
        "failed": each.failed if each.state in rollouts.FAILED else None,
        "reason": each.reason,
        "since": each.since,
        "reported": each.reported_at,
        "kept": kept or ("rollout" if rollout is not None else None),
        "rollout": None
        if rollout is None
        else {
            "id": rollout.id,
            "in_share": steering.in_share(rollout.id, robot, steering.share_of(rollout)),
        },
    }


def _follows(db: Connection, ids: list[int]) -> dict[int, list[Row[Any]]]:
    """Rows of what robots said, by robot and in order of the references."""
    current, failed = versions.alias(), versions.alias()
    query = (
        select(installs, current.c.version, current.c.digest, failed.c.version.label("failed"))
        .outerjoin(current, current.c.id == installs.c.version_id)
        .outerjoin(failed, failed.c.id == installs.c.failed_id)
        .where(installs.c.robot_id.in_(ids))
        .order_by(installs.c.follows)
    )
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for each in db.execute(query):
        found[each.robot_id].append(each)
    return found


def _pins(db: Connection, ids: list[int]) -> dict[int, dict[int, Row[Any]]]:
    """Rows of pins, by robot and by skill."""
    query = select(pins, skills.c.name, versions.c.version).select_from(pins)
    query = query.join(skills, skills.c.id == pins.c.skill_id)
    query = query.outerjoin(versions, versions.c.id == pins.c.version_id).order_by(skills.c.name)
    found: dict[int, dict[int, Row[Any]]] = defaultdict(dict)
    for each in db.execute(query.where(pins.c.robot_id.in_(ids))):
        found[each.robot_id][each.skill_id] = each
    return found


def _about(db: Connection, skill: Row[Any], said: Said) -> int | None:
    """Id of the version that a robot speaks of."""
    if said.version is None and said.digest is None:
        if said.state == "running":
            raise Problem(
                422, "no-version", "a robot that runs runs a version", remedy="name it", field="version"
            )
        return None
    v = versions.c
    which = and_(v.skill_id == skill.id, v.version == said.version, v.digest == said.digest)
    found = db.scalar(select(v.id).where(which))
    if found is None:
        raise Problem(
            422,
            "other-digest",
            f"{skill.name}@{said.version} has not the digest {said.digest}",
            remedy="say both, or neither, as the registry gave them",
            field="digest",
        )
    return int(found)


def _runs_now(
    db: Connection, robot: int, skill: int, state: str, about: int | None, old: Row[Any] | None
) -> int | None:
    """Id of the version that a robot runs, by what it says."""
    before: int | None = old.version_id if old is not None else None
    if state in ("running", "stopped"):
        return about or before
    if state == "left":
        return None
    if state == "rolled-back" and before == about:
        query = select(runs.c.version_id).join(versions).where(versions.c.skill_id == skill)
        query = query.where(runs.c.robot_id == robot, runs.c.version_id != about)
        return db.scalar(query.order_by(runs.c.last_at.desc()).limit(1))
    return before


def _ran(db: Connection, robot: int, version: int) -> None:
    """Remember that a robot runs a version; what it ran longest ago is forgotten when there are many."""
    mine = runs.c.robot_id == robot
    at = and_(mine, runs.c.version_id == version)
    if db.execute(update(runs).where(at).values(last_at=now())).rowcount:
        return
    db.execute(insert(runs).values(robot_id=robot, version_id=version, first_at=now(), last_at=now()))
    late = select(runs.c.version_id).where(mine).order_by(runs.c.last_at.desc(), runs.c.version_id.desc())
    db.execute(delete(runs).where(mine, runs.c.version_id.in_(late.offset(MAX_RUNS))))


def _room_for_one_more(db: Connection, robot: int, table: Any) -> None:
    count = db.scalar(select(func.count()).select_from(table).where(table.c.robot_id == robot)) or 0
    if count >= MAX_FOLLOWS:
        what = "follows" if table is installs else "is pinned or held at"
        raise Problem(
            409,
            "too-many",
            f"the robot {what} {count} skills, which is the most",
            remedy="let it follow fewer: DELETE /v1/fleet/installs" if table is installs else "free it first",
        )


def _install(robot: int, follows: str) -> Any:
    return and_(installs.c.robot_id == robot, installs.c.follows == follows)
