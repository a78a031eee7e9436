"""Organisations, their members, robots, invitations and tokens; each a function of a transaction.

A secret is given out once, when it is made; only its SHA-256 is kept. Every change is in the audit log.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from neuraverse.errors import UnknownNameError
from neuraverse.keys import PublicKey
from neuraverse.registry.access import (
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
from neuraverse.registry.limits import MAX_LISTED
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    accounts,
    audit,
    invitations,
    members,
    now,
    orgs,
    publisher_keys,
    tokens,
)

INVITATION_HOURS = 7 * 24.0
LOGIN_HOURS = 90 * 24.0
ROBOT_HOURS = 365 * 24.0
CODE_HOURS = 24.0
OPERATOR = "operator"
_ORG_FIELDS = ("visibility", "protected")
_QUOTAS = ("quota_bytes", "quota_versions", "quota_requests", "quota_events")


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
    code = _invite(db, Caller(), None, OPERATOR, CODE_HOURS)["code"]
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
    code = _invite(db, Caller(), None, "account", CODE_HOURS, account)["code"]
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
        account = _new_account(db, "person", name)
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
    return {"account": name, **_new_token(db, account, "login", None, list(RIGHTS), LOGIN_HOURS)}


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


def make_org(db: Connection, caller: Caller, name: str, visibility: str) -> dict[str, Any]:
    """An organisation with the caller as its owner; one without members is taken over.

    Raises:
        Problem: 401, 403 the caller may not host, 409 the name is taken.
    """
    if not caller.host:
        raise forbidden(caller, "make an organisation", "host")
    row = db.execute(select(orgs).where(orgs.c.name == name)).one_or_none()
    if row is not None and row.managed:
        raise Problem(
            409,
            "org-taken",
            f"there is an organisation {name!r}",
            remedy="choose another name, or ask its owner for an invitation",
            field="name",
        )
    values = {"managed": True, "visibility": visibility}
    if row is None:
        org_id = _id(db.execute(insert(orgs).values(name=name, created_at=now(), **values)))
    else:
        org_id = row.id
        db.execute(update(orgs).where(orgs.c.id == org_id).values(**values))
    _set_role(db, org_id, caller.account or 0, "owner")
    rights_changed(db)
    note(db, caller, org_id, "org.make", name, visibility=visibility)
    return {"name": name, "visibility": visibility}


def describe_org(db: Connection, caller: Caller, name: str) -> dict[str, Any]:
    """An organisation, its limits and what it uses of them; for its members and operators.

    Raises:
        Problem: 401, 404.
    """
    row = _one_of(db, caller, name)
    count = select(func.count()).select_from(members).where(members.c.org_id == row.id)
    return {
        "name": row.name,
        "visibility": row.visibility,
        "protected": row.protected,
        "members": db.scalar(count),
        "used": {"bytes": row.used_bytes, "versions": row.used_versions},
        "quota": {each.removeprefix("quota_"): getattr(row, each) for each in _QUOTAS},
    }


def change_org(db: Connection, caller: Caller, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set visibility of new skills, protected aliases (owners), or quotas (operators).

    Raises:
        Problem: 401, 403, 404.
    """
    row = _one_of(db, caller, name)
    for each in changes:
        right: Any = "host" if each in _QUOTAS else "admin"
        if not (caller.host if right == "host" else caller.may("admin", row.id)):
            raise forbidden(caller, f"change {each} of {name}", right)
    if changes:
        db.execute(update(orgs).where(orgs.c.id == row.id).values(dict(changes)))
        rights_changed(db)
        note(db, caller, row.id, "org.change", name, **changes)
    return describe_org(db, caller, name)


def list_members(db: Connection, caller: Caller, org: str) -> list[dict[str, Any]]:
    """Members and their roles, by name; robots are listed by themselves.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "read", "see the members")
    query = select(accounts.c.name, members.c.role, members.c.created_at.label("since")).join(members)
    query = query.where(members.c.org_id == row.id, accounts.c.kind == "person").order_by(accounts.c.name)
    return [dict(each._mapping) for each in db.execute(query.limit(MAX_LISTED))]


def set_member(db: Connection, caller: Caller, org: str, account: str, role: str) -> None:
    """Change the role of a member; whoever is not yet one is invited instead.

    Raises:
        Problem: 401, 403, 404, 409 it is the last owner.
    """
    row = needs(db, caller, org, "admin", "change roles")
    member = _member(db, row, account)
    if role != "owner":
        _keep_an_owner(db, row, member)
    _set_role(db, row.id, member.account_id, role)
    rights_changed(db)
    note(db, caller, row.id, "member.role", account, role=role, before=member.role)


def remove_member(db: Connection, caller: Caller, org: str, account: str) -> None:
    """Take a member out; everybody may leave by themselves.

    Raises:
        Problem: 401, 403, 404, 409 it is the last owner.
    """
    row = needs(db, caller, org, "read" if account == caller.name else "admin", "remove members")
    member = _member(db, row, account)
    _keep_an_owner(db, row, member)
    at = and_(members.c.org_id == row.id, members.c.account_id == member.account_id)
    db.execute(delete(members).where(at))
    rights_changed(db)
    note(db, caller, row.id, "member.leave", account, before=member.role)


def invite(db: Connection, caller: Caller, org: str, role: str, hours: float) -> dict[str, Any]:
    """A code that makes its bearer a member, once.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", "invite")
    return _invite(db, caller, row.id, role, hours)


def list_invitations(db: Connection, caller: Caller, org: str) -> list[dict[str, Any]]:
    """Invitations, the newest first.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", "see invitations")
    columns = [invitations.c[k] for k in ("id", "role", "created_at", "expires_at", "used_at")]
    query = select(*columns, accounts.c.name.label("used_by")).select_from(invitations)
    query = query.outerjoin(accounts, accounts.c.id == invitations.c.used_by)
    query = query.where(invitations.c.org_id == row.id).order_by(invitations.c.created_at.desc())
    return [dict(each._mapping) for each in db.execute(query.limit(MAX_LISTED))]


def withdraw(db: Connection, caller: Caller, org: str, invitation: str) -> None:
    """End an invitation that was not used.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", "withdraw invitations")
    mine = and_(
        invitations.c.org_id == row.id, invitations.c.id == invitation, invitations.c.used_at.is_(None)
    )
    if not db.execute(update(invitations).where(mine).values(expires_at=now())).rowcount:
        raise Problem(404, "no-such-invitation", f"{org} has no unused invitation {invitation}")
    note(db, caller, row.id, "invitation.withdraw", invitation)


def add_robot(
    db: Connection, caller: Caller, org: str, robot: str, scopes: Sequence[str], hours: float
) -> dict[str, Any]:
    """A robot and its token.

    Raises:
        Problem: 401, 403, 404, 409 the name is taken, 422 scopes that robots do not have.
    """
    row = needs(db, caller, org, "fleet", "add robots")
    name = f"{org}/{robot}"
    account = _new_account(db, "robot", name)
    _set_role(db, row.id, account, "robot")
    note(db, caller, row.id, "robot.add", name)
    token = _new_token(db, account, name, row.id, _scopes(scopes, ROLES["robot"]), hours)
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
    token = _new_token(db, account.id, account.name, row.id, _scopes(scopes, ROLES["robot"]), hours)
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
    chosen = _scopes(scopes, frozenset(RIGHTS))
    made = _new_token(db, caller.account or 0, label, org_id, chosen, hours)
    note(db, caller, org_id, "token.make", made["id"], scopes=chosen)
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


def list_keys(db: Connection, caller: Caller, org: str) -> list[dict[str, Any]]:
    """Publisher keys of an organisation, the oldest first.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "read", "see the keys")
    k = publisher_keys.c
    query = select(k.fingerprint, k.pem, k.created_at, k.revoked_at).where(k.org_id == row.id)
    return [dict(each._mapping) for each in db.execute(query.order_by(k.created_at).limit(MAX_LISTED))]


def add_key(db: Connection, caller: Caller, org: str, pem: str) -> dict[str, Any]:
    """Let a key sign for an organisation.

    Raises:
        ContentError: It is no public key that can.
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", "add keys")
    key = PublicKey.parse(pem.encode())
    at = and_(publisher_keys.c.org_id == row.id, publisher_keys.c.fingerprint == key.fingerprint)
    if db.scalar(select(publisher_keys.c.fingerprint).where(at)):
        db.execute(update(publisher_keys).where(at).values(revoked_at=None))
    else:
        values = {"org_id": row.id, "fingerprint": key.fingerprint, "pem": key.pem.decode()}
        db.execute(insert(publisher_keys).values(**values, created_at=now()))
    note(db, caller, row.id, "key.add", key.fingerprint)
    return {"fingerprint": key.fingerprint}


def remove_key(db: Connection, caller: Caller, org: str, fingerprint: str) -> None:
    """Let a key sign nothing more for an organisation; what it signed stays.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", "remove keys")
    k = publisher_keys.c
    at = and_(k.org_id == row.id, k.fingerprint == fingerprint, k.revoked_at.is_(None))
    if not db.execute(update(publisher_keys).where(at).values(revoked_at=now())).rowcount:
        raise Problem(404, "no-such-key", f"{org} has no key {fingerprint}")
    note(db, caller, row.id, "key.remove", fingerprint)


def audit_log(db: Connection, caller: Caller, org: str | None, before: int | None) -> list[dict[str, Any]]:
    """Lines of the audit log, the newest first: of an organisation, or of the registry for its operators.

    Raises:
        Problem: 401, 403, 404.
    """
    if org is None:
        if not caller.host:
            raise forbidden(caller, "read the registry's audit log", "host")
        mine = audit.c.org_id.is_(None)
    else:
        mine = audit.c.org_id == needs(db, caller, org, "admin", "read the audit log").id
    columns = [audit.c[k] for k in ("id", "at", "actor", "token", "action", "target", "data")]
    query = select(*columns).where(mine).order_by(audit.c.id.desc()).limit(MAX_LISTED)
    if before is not None:
        query = query.where(audit.c.id < before)
    return [dict(each._mapping) for each in db.execute(query)]


def _one_of(db: Connection, caller: Caller, name: str) -> Row[Any]:
    """An organisation that the caller belongs to, or hosts."""
    if caller.host:
        row = db.execute(select(orgs).where(orgs.c.name == name)).one_or_none()
        if row is not None:
            return row
    return needs(db, caller, name, "read", "see the organisation")


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


def _scopes(wanted: Sequence[str], allowed: frozenset[Any]) -> list[str]:
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


def _id(result: Any) -> int:
    return int(result.inserted_primary_key[0])


def _new_account(db: Connection, kind: str, name: str) -> int:
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
    return _id(db.execute(insert(accounts).values(kind=kind, name=name, created_at=now())))


def _new_token(
    db: Connection, account: int, label: str, org_id: int | None, scopes: Sequence[str], hours: float
) -> dict[str, Any]:
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


def _invite(
    db: Connection, caller: Caller, org_id: int | None, role: str, hours: float, account: int | None = None
) -> dict[str, Any]:
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


def _member(db: Connection, org: Row[Any], account: str) -> Row[Any]:
    query = select(members, accounts.c.kind).join(accounts)
    query = query.where(members.c.org_id == org.id, accounts.c.name == account, accounts.c.kind == "person")
    row = db.execute(query).one_or_none()
    if row is None:
        raise Problem(
            404,
            "no-such-member",
            f"{account} is no member of {org.name}",
            remedy=f"`neuraverse org invite {org.name}` makes a code for somebody new",
        )
    return row


def _keep_an_owner(db: Connection, org: Row[Any], member: Row[Any]) -> None:
    if member.role != "owner":
        return
    others = and_(
        members.c.org_id == org.id, members.c.role == "owner", members.c.account_id != member.account_id
    )
    if not db.scalar(select(members.c.account_id).where(others).limit(1)):
        raise Problem(
            409,
            "last-owner",
            f"this is the last owner of {org.name}",
            remedy="make another member its owner first",
        )


def _raise_role(db: Connection, org_id: int, account: int, role: Role) -> None:
    """Give a role to who has none or one with less rights: nobody loses any by an invitation."""
    at = and_(members.c.org_id == org_id, members.c.account_id == account)
    now_has = db.scalar(select(members.c.role).where(at))
    if now_has is None or ROLES[now_has] < ROLES[role]:
        _set_role(db, org_id, account, role)


def _set_role(db: Connection, org_id: int, account: int, role: str) -> None:
    at = and_(members.c.org_id == org_id, members.c.account_id == account)
    if db.scalar(select(members.c.role).where(at)):
        db.execute(update(members).where(at).values(role=role))
    else:
        db.execute(insert(members).values(org_id=org_id, account_id=account, role=role, created_at=now()))
