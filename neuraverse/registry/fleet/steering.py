"""What a robot is given instead of what its reference means: a pin comes first, then a hold, then a roll-out.

A robot is in a roll-out's share by a hash of the roll-out and its name: always the same robots, another set
for each roll-out, and a larger share keeps those that are in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from neuraverse.registry.tables import ACTIVE, installs, pins, rollouts, runs, versions
from neuraverse.registry.tenants.access import Caller

RUNNING, HELD, DONE, BACK, ENDED = "running", "held", "done", "back", "ended"
"""States of a roll-out. It moves while it runs; held, the share stays; all but the last are in force."""

# Statements of each look-up by a robot, made once: making one takes as long as carrying it out.
_PIN = select(pins.c.version_id, pins.c.reason).where(
    pins.c.robot_id == bindparam("robot"), pins.c.skill_id == bindparam("skill")
)
_ROLLOUT = select(rollouts).where(
    rollouts.c.org_id == bindparam("org"),
    rollouts.c.skill_id == bindparam("skill"),
    rollouts.c.which == bindparam("which"),
    rollouts.c.state != ENDED,
)
_INSTALLED = select(installs.c.version_id).where(
    installs.c.robot_id == bindparam("robot"), installs.c.follows == bindparam("follows")
)
_RAN = select(runs.c.version_id).join(versions).where(runs.c.robot_id == bindparam("robot"))
_RAN = _RAN.where(versions.c.skill_id == bindparam("skill")).order_by(runs.c.last_at.desc()).limit(1)
_VERSION = select(versions).where(versions.c.id == bindparam("id"))


def chosen(db: Connection, caller: Caller, skill: Row[Any], which: str) -> tuple[Row[Any], str] | None:
    """The version that a robot is to have, and why; None if that is what the reference means.

    Neither a hold nor a roll-out ever chooses a version that was yanked or revoked.

    Args:
        db: A transaction.
        caller: The robot.
        skill: A skill that it sees.
        which: A range, an alias or ``latest``.
    """
    pin = db.execute(_PIN, {"robot": caller.account, "skill": skill.id}).one_or_none()
    if pin is not None:
        why = f": {pin.reason}" if pin.reason else ""
        if pin.version_id is not None:
            return _version(db, pin.version_id), f"pinned{why}"
        held = _held_at(db, caller, skill, which)
        if held is not None:
            return held, f"held{why}"
    for org_id, org in caller.orgs.items():  # a robot has one
        rollout = in_force(db, org_id, skill.id, which)
        if rollout is not None:
            return _of_rollout(db, rollout, caller.name, org)
    return None


def in_force(db: Connection, org_id: int, skill_id: int, which: str) -> Row[Any] | None:
    """The roll-out that decides what an organisation's robots get for a reference."""
    found = db.execute(_ROLLOUT, {"org": org_id, "skill": skill_id, "which": which})
    return found.one_or_none()


def share_of(rollout: Row[Any] | Mapping[str, Any]) -> float:
    """How much of the fleet a roll-out's target goes to, in percent."""
    row = rollout if isinstance(rollout, Mapping) else rollout._mapping
    return 0.0 if row["state"] == BACK else float(row["stages"][row["stage"]])


def in_share(rollout: str, robot: str, percent: float) -> bool:
    """Whether a robot, ``org/robot``, is in so large a share of a roll-out."""
    drawn = hashlib.sha256(f"{rollout}:{robot}".encode()).digest()[:8]
    return int.from_bytes(drawn) / 2**64 * 100.0 < percent


def _held_at(db: Connection, caller: Caller, skill: Row[Any], which: str) -> Row[Any] | None:
    """What a robot runs, or ran last; None if it never ran anything that is still to be had."""
    follows = f"{skill.name}@{which}"
    found = db.scalar(_INSTALLED, {"robot": caller.account, "follows": follows})
    if found is None:
        found = db.scalar(_RAN, {"robot": caller.account, "skill": skill.id})
    if found is None:
        return None
    row = _version(db, found)
    return row if row.state == ACTIVE else None


def _of_rollout(db: Connection, rollout: Row[Any], robot: str, org: str) -> tuple[Row[Any], str] | None:
    share = share_of(rollout)
    mine = in_share(rollout.id, robot, share)
    target, baseline = _version(db, rollout.target_id), _version(db, rollout.baseline_id)
    if mine and target.state == ACTIVE:
        return target, f"rollout {rollout.id}: {share:g} % of {org}'s robots"
    if baseline.state == ACTIVE:
        return baseline, f"rollout {rollout.id}: not one of {share:g} % of {org}'s robots"
    return None


def _version(db: Connection, number: int) -> Row[Any]:
    return db.execute(_VERSION, {"id": number}).one()
