"""Roll-outs: a version goes to a share of an organisation's robots first, and on or back by how it does.

Robots in the share get the target, the others the baseline: what the reference meant when the roll-out began.
Taken back, all get the baseline. That holds until the roll-out ends; then the reference means what it says.

A stage decides by itself once enough episodes were reported in it: the target goes on if the lower bound of
its success reaches the threshold, back if the upper one does not, and else waits for more reports. Whoever
refuses the target, or rolls it back, is one failed episode, so that a version that cannot even start goes
back. Every step begins to count anew. Writers take turns, so that two reports at once decide once.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, select, update

from neuraverse.manifest import VERSION_PATTERN, wilson_lower
from neuraverse.registry.config import Settings
from neuraverse.registry.events import now_us
from neuraverse.registry.fleet.followers import announce, for_fleet, for_people, reference
from neuraverse.registry.fleet.steering import BACK, DONE, ENDED, HELD, RUNNING, in_force, in_share, share_of
from neuraverse.registry.index import ALIAS_PATTERN, field_score, find_version
from neuraverse.registry.limits import MAX_PAGE
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    ACTIVE,
    accounts,
    installs,
    members,
    now,
    rollouts,
    skills,
    versions,
)
from neuraverse.registry.tenants.access import Caller, needs, note
from neuraverse.registry.tenants.quotas import Limits, event_allowed
from neuraverse.versions import parse_range

FAILED = ("refused", "rolled-back")
"""What robots say of a version that failed before its first episode."""
_FROM = {
    "next": (RUNNING, HELD),
    "back": (RUNNING, HELD, DONE),
    "hold": (RUNNING,),
    "resume": (HELD,),
    "end": (RUNNING, HELD, DONE, BACK),
}
"""States from which each step can be taken."""
_FIELD_EPISODES = 100  # of the baseline, so that its success in the field is what the target must reach
_MARGIN = 0.05  # that the field may stay behind simulation
_target, _baseline = versions.alias("target"), versions.alias("baseline")
_ROLLOUTS = (
    select(
        rollouts,
        skills.c.name,
        *(t.c[k].label(f"{t.name}_{k}") for t in (_target, _baseline) for k in ("version", "digest")),
    )
    .join(skills, skills.c.id == rollouts.c.skill_id)
    .join(_target, _target.c.id == rollouts.c.target_id)
    .join(_baseline, _baseline.c.id == rollouts.c.baseline_id)
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a version shall go to a fleet.

    Attributes:
        follows: ``org/skill@which``: whose followers it is for.
        version: The target.
        stages: Shares in percent, each larger than the one before.
        episodes: Reported in a stage before it decides by itself; 0 leaves it to people.
        threshold: Success that the field must show; None is what the baseline shows there, if that is known
            from enough episodes, else a little less than the target's bound in simulation.
    """

    follows: str
    version: str
    stages: Sequence[float]
    episodes: int
    threshold: float | None


def start(db: Connection, caller: Caller, settings: Settings, org: str, plan: Plan) -> dict[str, Any]:
    """Begin to send a version to a fleet; its first share gets it now.

    A roll-out that has reached everybody ends by it, and its target is the baseline of the new one.

    Raises:
        Problem: 401, 403, 404 no such organisation, skill or version, 409 another roll-out is under way or
            the version cannot be it, 422 a malformed reference, 429.
    """
    row = needs(db, caller, org, "fleet", "roll versions out")
    name, which = reference(plan.follows)
    skill = for_fleet(db, caller, row, name)
    _, target = find_version(db, caller, name, plan.version, exact=True)
    _must_fit(name, which, target)
    event_allowed(db, row, Limits.of(settings, row), now_us())
    number = secrets.token_hex(8)
    before = in_force(db, row.id, skill.id, which)
    baseline = _superseded(db, before, number) if before is not None else None
    if baseline is None:
        _, baseline = find_version(db, caller, name, which)
    if baseline.id == target.id:
        raise Problem(
            409,
            "no-change",
            f"{name}@{which} means {target.version} for the robots of {org} already",
            remedy="roll another version out, or let the robots follow another alias",
            field="version",
        )
    values = {
        "id": number,
        "org_id": row.id,
        "skill_id": skill.id,
        "which": which,
        "target_id": target.id,
        "baseline_id": baseline.id,
        "stages": list(plan.stages),
        "stage": 0,
        "state": RUNNING,
        "threshold": _threshold(baseline, target) if plan.threshold is None else plan.threshold,
        "episodes": plan.episodes,
        "reason": f"begun by {caller.name}",
        "created_at": now(),
        "changed_at": now(),
    }
    db.execute(insert(rollouts).values(values))
    said = {"rollout": number, "version": target.version, "baseline": baseline.version}
    note(
        db,
        caller,
        row.id,
        "rollout.start",
        f"{name}@{which}",
        **said,
        stages=values["stages"],
        episodes=plan.episodes,
        threshold=values["threshold"],
    )
    made = db.execute(_ROLLOUTS.where(rollouts.c.id == number)).one()
    _tell_step(db, made, "start")
    return _plain(db, made, org)


def take(
    db: Connection, caller: Caller, settings: Settings, org: str, number: str, step: str
) -> dict[str, Any]:
    """Take a step by hand: ``next``, ``back``, ``hold``, ``resume`` or ``end``.

    Raises:
        Problem: 401, 403, 404, 409 that step cannot follow, 429.
    """
    row = needs(db, caller, org, "fleet", "roll versions out")
    rollout = _one(db, row, number)
    if rollout.state not in _FROM[step]:
        possible = [each for each, states in _FROM.items() if rollout.state in states]
        raise Problem(
            409,
            "rollout-state",
            f"the roll-out {number} is {rollout.state}; {step} cannot follow",
            remedy=f"possible is {', '.join(possible)}" if possible else "start another one",
            field="to",
        )
    event_allowed(db, row, Limits.of(settings, row), now_us())
    _move(db, rollout, step, f"{step} by {caller.name}")
    note(db, caller, row.id, f"rollout.{step}", f"{rollout.name}@{rollout.which}", rollout=number)
    return _plain(db, _one(db, row, number), org)


def listed(db: Connection, caller: Caller, org: str) -> list[dict[str, Any]]:
    """An organisation's roll-outs, the newest first.

    Raises:
        Problem: 401, 403 a robot asks, 404.
    """
    row = for_people(db, caller, org)
    query = _ROLLOUTS.where(rollouts.c.org_id == row.id).order_by(rollouts.c.created_at.desc())
    return [_plain(db, each, org) for each in db.execute(query.limit(MAX_PAGE)).all()]


def shown(db: Connection, caller: Caller, org: str, number: str) -> dict[str, Any]:
    """One roll-out.

    Raises:
        Problem: 401, 403 a robot asks, 404.
    """
    row = for_people(db, caller, org)
    return _plain(db, _one(db, row, number), org)


def under_way(db: Connection, org_id: int) -> dict[tuple[int, str], Row[Any]]:
    """Roll-outs of an organisation that are in force, by skill and what is followed of it."""
    query = select(rollouts).where(rollouts.c.org_id == org_id, rollouts.c.state != ENDED)
    return {(each.skill_id, each.which): each for each in db.execute(query)}


def count(
    db: Connection,
    org_id: int,
    skill_id: int,
    version_id: int,
    followed: Collection[str],
    episodes: int,
    successes: int,
    *,
    behind: str = "",
) -> None:
    """Count what a robot reports of a version, in the roll-outs that gave it to it, and let them decide.

    Args:
        db: A transaction that writes.
        org_id: The robot's organisation.
        skill_id: Whose version it is.
        version_id: The version.
        followed: What the robot follows of the skill: aliases, ranges, ``latest``.
        episodes: How many.
        successes: Of these.
        behind: Only in stages that began after this moment.
    """
    mine = and_(rollouts.c.org_id == org_id, rollouts.c.skill_id == skill_id)
    mine = and_(mine, rollouts.c.which.in_(followed), rollouts.c.target_id == version_id)
    open_now = and_(mine, rollouts.c.state.in_((RUNNING, HELD)), rollouts.c.changed_at > behind)
    for rollout in db.execute(_ROLLOUTS.where(open_now)).all():
        n, k = rollout.field_n + episodes, rollout.field_successes + successes
        at = rollouts.c.id == rollout.id
        db.execute(update(rollouts).where(at).values(field_n=n, field_successes=k))
        if rollout.state != RUNNING or not rollout.episodes or n < rollout.episodes:
            continue
        lower, upper = wilson_lower(k, n), 1.0 - wilson_lower(n - k, n)
        seen = f"{k} of {n} episodes at {share_of(rollout):g} %"
        if lower >= rollout.threshold:
            _move(db, rollout, "next", f"{seen}: at least {lower:.3f}, {rollout.threshold:.3f} is enough")
        elif upper < rollout.threshold:
            _move(db, rollout, "back", f"{seen}: at most {upper:.3f}, {rollout.threshold:.3f} is needed")


def _move(db: Connection, rollout: Row[Any], step: str, reason: str) -> None:
    """Carry out a step, and tell it."""
    stage, state = rollout.stage, {"back": BACK, "hold": HELD, "end": ENDED}.get(step, RUNNING)
    if step == "next":
        stage, state = (stage + 1, RUNNING) if stage + 1 < len(rollout.stages) else (stage, DONE)
    at = rollouts.c.id == rollout.id
    values = {"stage": stage, "state": state, "reason": reason[:300], "changed_at": now()}
    db.execute(update(rollouts).where(at).values(**values, field_n=0, field_successes=0))
    _tell_step(db, db.execute(_ROLLOUTS.where(at)).one(), step)


def _tell_step(db: Connection, rollout: Row[Any], step: str) -> None:
    data = {
        "change": "rollout",
        "rollout": rollout.id,
        "step": step,
        "state": rollout.state,
        "share": share_of(rollout),
        "follows": f"{rollout.name}@{rollout.which}",
    }
    version, digest = rollout.target_version, rollout.target_digest
    announce(db, rollout.org_id, rollout.skill_id, rollout.name, version, digest, data)


def _must_fit(name: str, which: str, target: Row[Any]) -> None:
    """Whether robots that follow the reference can be given the version."""
    if target.state != ACTIVE:
        raise Problem(
            409,
            "not-active",
            f"{name}@{target.version} is {target.state}",
            remedy="roll another version out",
            field="version",
        )
    if re.fullmatch(VERSION_PATTERN, which):
        raise Problem(
            422,
            "reference",
            f"{name}@{which} is one version, which robots that ask for it always get",
            remedy="roll out to those that follow an alias, a range or latest",
            field="follows",
        )
    if not re.fullmatch(ALIAS_PATTERN, which) and not parse_range(which).allows(target.version):
        raise Problem(
            422,
            "out-of-range",
            f"robots that follow {name}@{which} do not take {target.version}",
            remedy="roll out a version within the range",
            field="version",
        )


def _superseded(db: Connection, before: Row[Any], by: str) -> Row[Any] | None:
    """End a roll-out that has reached everybody; its target, which all have now, if it is still to be had."""
    if before.state != DONE or share_of(before) < 100.0:
        raise Problem(
            409,
            "rollout-active",
            f"the roll-out {before.id} of the same reference is {before.state}",
            remedy="let it reach everybody, or end it",
            extra={"rollout": before.id},
        )
    at = rollouts.c.id == before.id
    db.execute(update(rollouts).where(at).values(state=ENDED, reason=f"{by} followed", changed_at=now()))
    row = db.execute(select(versions).where(versions.c.id == before.target_id)).one()
    return row if row.state == ACTIVE else None


def _threshold(baseline: Row[Any], target: Row[Any]) -> float:
    if baseline.field_n >= _FIELD_EPISODES:
        return wilson_lower(baseline.field_successes, baseline.field_n)
    return max(0.0, float(target.lower) - _MARGIN)


def _one(db: Connection, org: Row[Any], number: str) -> Row[Any]:
    mine = and_(rollouts.c.org_id == org.id, rollouts.c.id == number)
    row = db.execute(_ROLLOUTS.where(mine)).one_or_none()
    if row is None:
        raise Problem(
            404,
            "no-such-rollout",
            f"{org.name} has no roll-out {number}",
            remedy="`neuraverse fleet rollout show` lists them",
        )
    return row


def _plain(db: Connection, rollout: Row[Any], org: str) -> dict[str, Any]:
    n, k = rollout.field_n, rollout.field_successes
    return {
        "id": rollout.id,
        "org": org,
        "follows": f"{rollout.name}@{rollout.which}",
        "target": {"version": rollout.target_version, "digest": rollout.target_digest},
        "baseline": {"version": rollout.baseline_version, "digest": rollout.baseline_digest},
        "stages": rollout.stages,
        "stage": rollout.stage,
        "share": share_of(rollout),
        "state": rollout.state,
        "episodes": rollout.episodes,
        "threshold": rollout.threshold,
        "field": {**field_score(k, n), "upper": 1.0 - wilson_lower(n - k, n)},
        "robots": None if rollout.state == ENDED else _robots(db, rollout),
        "reason": rollout.reason,
        "created": rollout.created_at,
        "changed": rollout.changed_at,
    }


def _robots(db: Connection, rollout: Row[Any]) -> dict[str, int]:
    """How many robots follow the reference, and what has become of them."""
    i, share = installs.c, share_of(rollout)
    query = select(accounts.c.name, i.version_id, i.failed_id, i.state).select_from(installs)
    query = query.join(accounts, accounts.c.id == i.robot_id)
    query = query.join(
        members, and_(members.c.account_id == accounts.c.id, members.c.org_id == rollout.org_id)
    )
    mine = and_(i.skill_id == rollout.skill_id, i.follows == f"{rollout.name}@{rollout.which}")
    rows = db.execute(query.where(mine)).all()
    return {
        "following": len(rows),
        "in_share": sum(in_share(rollout.id, row.name, share) for row in rows),
        "run_target": sum(row.version_id == rollout.target_id for row in rows),
        "run_baseline": sum(row.version_id == rollout.baseline_id for row in rows),
        "refused": sum(row.failed_id == rollout.target_id and row.state in FAILED for row in rows),
    }
