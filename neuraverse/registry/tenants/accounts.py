"""Accounts: signing in with a code, and tokens; each a function of a transaction.

A secret is given out once, when it is made; only its SHA-256 is kept. Every change is in the audit log.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from neuraverse.errors import UnknownNameError
from neuraverse.registry.limits import MAX_LISTED
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    accounts,
    add_row,
    invitations,
    members,
    now,
    orgs,
    tokens,
)
from neuraverse.registry.tenants.access import (
    INVITATION,
    RIGHTS,
    ROLES,
    TOKEN,
    Caller,
    Role,
    digest,
    forbidden,
    needs,
    new_secret,
    note,
    rights_changed,
)

INVITATION_HOURS = 7 * 24.0
LOGIN_HOURS = 90 * 24.0
CODE_HOURS = 24.0
OPERATOR = "operator"


def first_operator(db: Connection) -> str | None:
    """A code that makes its bearer the operator of a registry that has none; older ones end. Else None."""
    if db.scalar(select(accounts.c.id).where(accounts.c.operator, accounts.c.disabled_at.is_(None)).limit(1)):
        return None
    return new_operator(db)


def new_operator(db: Connection) -> str:
    """A code that makes its bearer an operator; those that were not used end."""
    i = invitations.c
    unused = and_(i.org_id.is_(None), i.account_id.is_(None), i.used_at.is_(None))
    db.execute(update(invitations).where(unused).values(expires_at=now()))
    code = new_invitation(db, Caller(), None, OPERATOR, CODE_HOURS)["code"]
    return str(code)


def recover(db: Connection, name: str) -> str:
    """A code that signs in a person whose tokens are lost or over; for who has the server's machine.

    Raises:
        UnknownNameError: There is no such person.
    """
    people = and_(accounts.c.kind == "person", accounts.c.disabled_at.is_(None))
    account = db.scalar(select(accounts.c.id).where(people, accounts.c.name == name))
    if account is None:
        raise UnknownNameError("account", name, db.scalars(select(accounts.c.name).where(people)))
    code = new_invitation(db, Caller(), None, "account", CODE_HOURS, account)["code"]
    return str(code)


def log_in(db: Connection, caller: Caller, code: str, name: str) -> dict[str, Any]:
    """Use an invitation: it makes its bearer an account, or adds to the one they have, and gives a token.

    Args:
        db: A transaction that writes.
        caller: Who asks; somebody who signed in keeps their account.
        code: The invitation, or what `recover` gave.
        name: Of the new account.

    Raises:
        Problem: 401 the code is none, was used or has expired, 403 a robot or a limited token asks, 409 the
            name is taken, 422 there is no name.
    """
    row = db.execute(select(invitations).where(invitations.c.hash == digest(code))).one_or_none()
    if row is None:
        raise _no_code("the code is none of this registry", "look whether it is whole, and for this registry")
    if row.used_at is not None:
        raise _no_code(f"the code was used at {row.used_at}", "it works once; ask for another one")
    if row.expires_at <= now():
        raise _no_code(f"the code has expired at {row.expires_at}", "ask for another one")
    if caller.account is not None:  # the answer has a token for all that the account may
        _whole(db, caller, "join an organisation")
    account = caller.account
    if row.account_id is not None:
        account, name = row.account_id, _whose(db, row.account_id, name)
    elif account is None:
        account = new_account(db, "person", name)
    else:
        name = caller.name
    db.execute(update(invitations).where(invitations.c.id == row.id).values(used_at=now(), used_by=account))
    if row.org_id is not None:
        _raise_role(db, row.org_id, account, row.role)
    elif row.account_id is None:
        db.execute(update(accounts).where(accounts.c.id == account).values(operator=True))
    rights_changed(db)
    who = Caller(account=account, name=name)
    note(db, who, row.org_id, "login", name, role=row.role, invitation=row.id)
    return {"account": name, **new_token(db, account, "login", None, list(RIGHTS), LOGIN_HOURS)}


def whoami(db: Connection, caller: Caller) -> dict[str, Any]:
    """The caller's account, organisations with roles, and what the token allows."""
    query = select(orgs.c.name, members.c.role).join(members).where(members.c.account_id == caller.account)
    roles = {row.name: row.role for row in db.execute(query.order_by(orgs.c.name))}
    return {
        "account": caller.name,
        "kind": caller.kind,
        "operator": caller.host,
        "orgs": [
            {"name": name, "role": roles[name], "rights": sorted(caller.rights[org])}
            for org, name in caller.orgs.items()
            if name in roles
        ],
        "token": {"id": caller.token, "expires": caller.expires_at},
    }


def make_token(
    db: Connection, caller: Caller, label: str, scopes: Sequence[str], org: str | None, hours: float
) -> dict[str, Any]:
    """A token of the caller's own, limited to scopes and, if given, to one organisation.

    Raises:
        Problem: 401, 403 a robot or a limited token asks, 404 the organisation is not the caller's, 422
            unknown scopes.
    """
    _whole(db, caller, "make tokens")
    org_id = None if org is None else needs(db, caller, org, "read", "make tokens").id
    may = chosen_scopes(scopes, frozenset(RIGHTS))
    made = new_token(db, caller.account or 0, label, org_id, may, hours)
    note(db, caller, org_id, "token.make", made["id"], scopes=may)
    return made


def list_tokens(db: Connection, caller: Caller) -> list[dict[str, Any]]:
    """The caller's tokens, without what they are, the newest first.

    Raises:
        Problem: 401.
    """
    _person(caller, "list tokens")
    columns = [tokens.c[k] for k in ("id", "label", "scopes", "created_at", "expires_at", "revoked_at")]
    query = select(*columns, orgs.c.name.label("org")).select_from(tokens).outerjoin(orgs)
    query = query.where(tokens.c.account_id == caller.account).order_by(tokens.c.created_at.desc())
    return [dict(each._mapping) for each in db.execute(query.limit(MAX_LISTED))]


def revoke_token(db: Connection, caller: Caller, token: str) -> None:
    """End one of the caller's tokens; the one that asks, too. A limited one ends only itself.

    Raises:
        Problem: 401, 403, 404.
    """
    if caller.account is None:
        raise forbidden(caller, "revoke tokens", "read")
    if token != caller.token:
        _whole(db, caller, "revoke others")
    mine = and_(tokens.c.id == token, tokens.c.account_id == caller.account)
    if not db.scalar(select(tokens.c.id).where(mine)):
        raise Problem(404, "no-such-token", f"you have no token {token}")
    db.execute(update(tokens).where(mine, tokens.c.revoked_at.is_(None)).values(revoked_at=now()))
    rights_changed(db)
    note(db, caller, None, "token.revoke", token)


def _person(caller: Caller, what: str) -> None:
    if caller.kind != "person":
        raise forbidden(caller, what, "admin")


def _whole(db: Connection, caller: Caller, what: str) -> None:
    """Whether it is a person with a token for all that they may: a limited one gets nobody another one."""
    _person(caller, what)
    own = db.execute(select(tokens).where(tokens.c.id == caller.token)).one()
    if own.org_id is not None or set(own.scopes) != set(RIGHTS):
        raise Problem(
            403,
            "forbidden",
            f"a token that is limited does not {what}",
            remedy="use the one that `neuraverse login` got",
        )


def chosen_scopes(wanted: Sequence[str], allowed: frozenset[Any]) -> list[str]:
    """Scopes for a token.

    Raises:
        Problem: 422 there is none, or one that is not to be had.
    """
    unknown = sorted(set(wanted) - allowed)
    if unknown or not wanted:
        raise Problem(
            422,
            "scopes",
            f"the scope {unknown[0]!r} is not to be had" if unknown else "a token needs a scope",
            remedy=f"choose of {', '.join(sorted(allowed))}",
            field="scopes",
        )
    return sorted(set(wanted))


def _no_code(detail: str, remedy: str) -> Problem:
    return Problem(401, "code", detail, remedy=remedy, headers={"WWW-Authenticate": "Bearer"}, field="code")


def _whose(db: Connection, account: int, name: str) -> str:
    """The name of the account that a code gives back, if whoever has the code does not name another one."""
    row = db.execute(select(accounts).where(accounts.c.id == account)).one()
    if row.disabled_at is not None or name not in ("", row.name):
        raise _no_code(
            f"the code does not sign in {name or row.name}", "name the account that it was made for"
        )
    return str(row.name)


def new_account(db: Connection, kind: str, name: str) -> int:
    """A ``person`` or a ``robot``; its id.

    Raises:
        Problem: 409 the name is taken, 422 there is none.
    """
    if not name:
        raise Problem(
            422,
            "no-name",
            "a new account needs a name",
            remedy="`neuraverse login --name NAME`",
            field="name",
        )
    if db.scalar(select(accounts.c.id).where(accounts.c.name == name)):
        raise Problem(
            409, "name-taken", f"the name {name!r} is taken", remedy="choose another one", field="name"
        )
    return add_row(db, accounts, kind=kind, name=name, created_at=now())


def new_token(
    db: Connection, account: int, label: str, org_id: int | None, scopes: Sequence[str], hours: float
) -> dict[str, Any]:
    """A token, which is shown in the answer and kept nowhere."""
    token = new_secret(TOKEN)
    row = {
        "id": secrets.token_hex(8),
        "account_id": account,
        "org_id": org_id,
        "scopes": list(scopes),
        "label": label,
        "created_at": now(),
        "expires_at": now(hours),
    }
    db.execute(insert(tokens).values(**row, hash=digest(token)))
    return {"token": token, "id": row["id"], "scopes": row["scopes"], "expires": row["expires_at"]}


def new_invitation(
    db: Connection, caller: Caller, org_id: int | None, role: str, hours: float, account: int | None = None
) -> dict[str, Any]:
    """A code that works once, which is shown in the answer and kept nowhere."""
    code = new_secret(INVITATION)
    row = {
        "id": secrets.token_hex(8),
        "org_id": org_id,
        "account_id": account,
        "role": role,
        "created_by": caller.account,
        "created_at": now(),
        "expires_at": now(hours),
    }
    db.execute(insert(invitations).values(**row, hash=digest(code)))
    note(db, caller, org_id, "invite", str(row["id"]), role=role)
    return {"code": code, "id": row["id"], "role": role, "expires": row["expires_at"]}


def _raise_role(db: Connection, org_id: int, account: int, role: Role) -> None:
    """Give a role to who has none or one with less rights: nobody loses any by an invitation."""
    at = and_(members.c.org_id == org_id, members.c.account_id == account)
    now_has = db.scalar(select(members.c.role).where(at))
    if now_has is None or ROLES[now_has] < ROLES[role]:
        set_role(db, org_id, account, role)


def set_role(db: Connection, org_id: int, account: int, role: str) -> None:
    """Give an account a role in an organisation, whatever it had before."""
    at = and_(members.c.org_id == org_id, members.c.account_id == account)
    if db.scalar(select(members.c.role).where(at)):
        db.execute(update(members).where(at).values(role=role))
    else:
        db.execute(insert(members).values(org_id=org_id, account_id=account, role=role, created_at=now()))
