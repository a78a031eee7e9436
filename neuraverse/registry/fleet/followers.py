"""What pins, roll-outs and field reports have in common: robots, what they follow, and who runs them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, update

from neuraverse.errors import UsageError
from neuraverse.manifest import VERSION_PATTERN
from neuraverse.registry.database import notify
from neuraverse.registry.events import FLEET, tell
from neuraverse.registry.index import ALIAS_PATTERN, LATEST, find_skill
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import PRIVATE, now, robots
from neuraverse.registry.tenants.access import Caller, forbidden, needs
from neuraverse.versions import parse_range


def as_robot(caller: Caller) -> tuple[int, int]:
    """Ids of the robot that asks, and of its organisation.

    Raises:
        Problem: 401, 403 it is none, or may not report.
    """
    org = next((each for each in caller.orgs if caller.may("report", each)), None)
    if caller.account is None or org is None:  # the right is for robots alone
        raise forbidden(caller, "report as a robot", "report")
    return caller.account, org


def seen(db: Connection, robot: int) -> None:
    """Remember that a robot said something."""
    at = robots.c.robot_id == robot
    if not db.execute(update(robots).where(at).values(seen_at=now())).rowcount:
        db.execute(insert(robots).values(robot_id=robot, seen_at=now()))


def reference(text: str) -> tuple[str, str]:
    """``org/skill`` and what is followed of it: a range, an alias, a version; ``latest`` if not said.

    Raises:
        Problem: 422 it is none of these.
    """
    name, _, which = text.partition("@")
    which = which or LATEST
    if not re.fullmatch(f"{VERSION_PATTERN}|{ALIAS_PATTERN}", which):
        try:
            parse_range(which)
        except UsageError as error:
            raise Problem(
                422,
                "reference",
                f"{which!r} is no version, range or alias of {name}",
                remedy="follow org/skill@alias, org/skill@^1.2 or org/skill@latest",
                field="follows",
            ) from error
    return name, which


def for_fleet(db: Connection, caller: Caller, org: Row[Any], name: str) -> Row[Any]:
    """The row of a skill that an organisation's robots see.

    Raises:
        Problem: 404 it does not exist for the caller, 409 it does not for the robots.
    """
    skill = find_skill(db, caller, name)
    if skill.visibility == PRIVATE and skill.org_id != org.id:
        raise Problem(
            409,
            "not-theirs",
            f"the robots of {org.name} do not see {name}, which is private",
            remedy="ask its owners to show it to whoever signs in",
        )
    return skill


def for_people(db: Connection, caller: Caller, org: str) -> Row[Any]:
    """An organisation, for its members who are people: a robot learns nothing of the others.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "read", "see the fleet")
    if caller.kind == "robot":
        raise forbidden(caller, f"see the fleet of {org}", "fleet")
    return row


def announce(
    db: Connection, org_id: int, skill_id: int, name: str, version: str, digest: str, data: Mapping[str, Any]
) -> None:
    """Let an organisation's robots look anew at what they follow of a skill."""
    tell(db, org_id, skill_id, FLEET, name, version, digest, "", data)
    notify(db)


def line(text: str) -> str:
    """The beginning of what somebody wrote, as one line without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:300])
