"""Robots: accounts that belong to one organisation, each with a token of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, select, update

from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import accounts, members, now, tokens
from neuraverse.registry.tenants.access import ROLES, Caller, needs, note, rights_changed
from neuraverse.registry.tenants.accounts import chosen_scopes, new_account, new_token, set_role

ROBOT_HOURS = 365 * 24.0


def add_robot(
    db: Connection, caller: Caller, org: str, robot: str, scopes: Sequence[str], hours: float
) -> dict[str, Any]:
    """A robot and its token.

    Raises:
        Problem: 401, 403, 404, 409 the name is taken, 422 scopes that robots do not have.
    """
    row = needs(db, caller, org, "fleet", "add robots")
    name = f"{org}/{robot}"
    account = new_account(db, "robot", name)
    set_role(db, row.id, account, "robot")
    note(db, caller, row.id, "robot.add", name)
    token = new_token(db, account, name, row.id, chosen_scopes(scopes, ROLES["robot"]), hours)
    return {"robot": name, **token}


def new_robot_token(
    db: Connection, caller: Caller, org: str, robot: str, scopes: Sequence[str], hours: float
) -> dict[str, Any]:
    """Another token for a robot; the others of it end.

    Raises:
        Problem: 401, 403, 404, 422.
    """
    row = needs(db, caller, org, "fleet", "give robots tokens")
    account = find_robot(db, row, robot)
    mine = and_(tokens.c.account_id == account.id, tokens.c.revoked_at.is_(None))
    db.execute(update(tokens).where(mine).values(revoked_at=now()))
    rights_changed(db)
    note(db, caller, row.id, "robot.token", account.name)
    token = new_token(db, account.id, account.name, row.id, chosen_scopes(scopes, ROLES["robot"]), hours)
    return {"robot": account.name, **token}


def remove_robot(db: Connection, caller: Caller, org: str, robot: str) -> None:
    """End a robot's account; what it reported stays, and its name is not given out again.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "fleet", "remove robots")
    account = find_robot(db, row, robot)
    db.execute(update(accounts).where(accounts.c.id == account.id).values(disabled_at=now()))
    at = and_(members.c.org_id == row.id, members.c.account_id == account.id)
    db.execute(delete(members).where(at))
    rights_changed(db)
    note(db, caller, row.id, "robot.remove", account.name)


def find_robot(db: Connection, org: Row[Any], robot: str) -> Row[Any]:
    """The account of an organisation's robot.

    Raises:
        Problem: 404.
    """
    name = f"{org.name}/{robot}"
    known = and_(accounts.c.name == name, accounts.c.kind == "robot", accounts.c.disabled_at.is_(None))
    row = db.execute(select(accounts).where(known)).one_or_none()
    if row is None:
        raise Problem(
            404, "no-such-robot", f"there is no robot {name}", remedy="`neuraverse robot list` shows them"
        )
    return row
