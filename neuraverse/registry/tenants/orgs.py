"""Organisations: members and roles, invitations, publisher keys, limits, the audit log.

Each is a function of a transaction; every change is in the audit log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from neuraverse.keys import PublicKey
from neuraverse.registry.limits import MAX_LISTED
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    accounts,
    add_row,
    audit,
    invitations,
    members,
    now,
    orgs,
    publisher_keys,
)
from neuraverse.registry.tenants.access import Caller, forbidden, needs, note, rights_changed
from neuraverse.registry.tenants.accounts import new_invitation, set_role

_QUOTAS = ("quota_bytes", "quota_versions", "quota_requests", "quota_events")


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
        org_id = add_row(db, orgs, name=name, created_at=now(), **values)
    else:
        org_id = row.id
        db.execute(update(orgs).where(orgs.c.id == org_id).values(**values))
    set_role(db, org_id, caller.account or 0, "owner")
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
    set_role(db, row.id, member.account_id, role)
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
    return new_invitation(db, caller, row.id, role, hours)


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
