"""Who asks, and what they may: accounts, roles, scopes, and which skills exist for whom.

A token stands for an account. What it may do in an organisation is what the account's role there allows, as
far as the token's scopes and its own organisation reach. What somebody may not see does not exist for them.

An organisation without members belongs to whoever has its keys; only an open registry takes in such, and
there nobody has to sign in to publish. With the first member, roles decide.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, bindparam, or_, select, update

from neuraverse.registry.database import notify
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    NETWORK,
    PUBLIC,
    accounts,
    audit,
    members,
    next_id,
    now,
    orgs,
    registry,
    skills,
    tokens,
)

if TYPE_CHECKING:
    from neuraverse.registry.database import Database

Right = Literal["read", "publish", "curate", "fleet", "report", "admin", "host"]
Role = Literal["reader", "publisher", "maintainer", "owner", "robot"]
RIGHTS: Mapping[Right, str] = {
    "read": "see private skills",
    "publish": "publish versions, and move aliases that are not protected",
    "curate": "move protected aliases, yank, revoke, deprecate, set a skill's visibility",
    "fleet": "add robots, pin and hold them, roll versions out",
    "report": "say what runs and how it does; for robots",
    "admin": "members, publisher keys, webhooks, the audit log",
    "host": "make organisations and set their quotas; for operators of the registry",
}
"""Each right, which is a scope of tokens, too."""
ROLES: Mapping[Role, frozenset[Right]] = {
    "reader": frozenset({"read"}),
    "robot": frozenset({"read", "report"}),
    "publisher": frozenset({"read", "publish"}),
    "maintainer": frozenset({"read", "publish", "curate", "fleet"}),
    "owner": frozenset({"read", "publish", "curate", "fleet", "admin"}),
}
TOKEN, INVITATION = "nvt_", "nvi_"  # so that people and scanners of secrets know what they found
_REMEMBERED = 10_000
_TOKEN = (
    select(tokens, accounts.c.name, accounts.c.kind, accounts.c.operator, accounts.c.disabled_at)
    .join(accounts)
    .where(tokens.c.hash == bindparam("hash"))
)


def _seen(shared: Any, mine: Any) -> ColumnElement[bool]:
    return or_(skills.c.visibility.in_(shared), skills.c.org_id.in_(mine))


SEEN = _seen(bindparam("shared", expanding=True), bindparam("mine", expanding=True))
"""Which rows of `skills` exist for a caller, whose `Caller.scope` are its parameters."""
_ROLES = select(members.c.org_id, members.c.role, orgs.c.name, orgs.c.quota_requests).join(orgs)
_ROLES = _ROLES.where(members.c.account_id == bindparam("account")).order_by(members.c.org_id)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks.

    Attributes:
        account: Id, or None for somebody who did not sign in.
        name: ``person`` or ``org/robot``; empty if they did not.
        kind: ``person`` or ``robot``.
        orgs: Names of the organisations by id, in which the token may act.
        rights: What it may do, by id of the organisation.
        requests: How many requests a minute its organisation has; None is what any has.
        host: Whether it may host: make organisations and set quotas.
        token: The token's id.
        expires_at: When the token ends.
        open: Whether the registry is open.
    """

    account: int | None = None
    name: str = ""
    kind: str = ""
    orgs: Mapping[int, str] = field(default_factory=dict)
    rights: Mapping[int, frozenset[Right]] = field(default_factory=dict)
    requests: int | None = None
    host: bool = False
    token: str = ""
    expires_at: str = ""
    open: bool = False

    def may(self, right: Right, org_id: int) -> bool:
        """Whether the caller has a right in an organisation with members."""
        return right in self.rights.get(org_id, ())

    @property
    def reads(self) -> tuple[int, ...]:
        """Ids of the organisations whose private skills the caller sees."""
        return tuple(org for org, rights in self.rights.items() if "read" in rights)

    def sees(self, skill: Any) -> bool:
        """Whether a skill exists for the caller; the row has ``visibility`` and ``org_id``."""
        return self.shows(skill.visibility, skill.org_id)

    def shows(self, visibility: str, org_id: int) -> bool:
        """Whether a skill with that visibility, of that organisation, exists for the caller."""
        if visibility == PUBLIC or (visibility == NETWORK and self.account is not None):
            return True
        return self.may("read", org_id)

    @property
    def scope(self) -> dict[str, Sequence[str] | Sequence[int]]:
        """Parameters of `SEEN`, for a statement that is made once."""
        return {"shared": [PUBLIC] if self.account is None else [PUBLIC, NETWORK], "mine": self.reads}

    def seen(self) -> ColumnElement[bool]:
        """The same for a query of `skills`."""
        return _seen(**self.scope)

    def acts(self, right: Right, org: Row[Any]) -> bool:
        """Whether the caller may do something in an organisation; the row has ``id`` and ``managed``."""
        return self.may(right, org.id) if org.managed else self.open

    @cached_property
    def view(self) -> tuple[bool, tuple[int, ...]]:
        """What decides which skills the caller sees: callers with equal views see the same."""
        return self.account is not None, self.reads

    @cached_property
    def ends(self) -> float:
        """When the token ends, in seconds since 1970."""
        return datetime.fromisoformat(self.expires_at).timestamp() if self.expires_at else math.inf


def digest(secret: str) -> str:
    """What is kept of a token or an invitation."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def new_secret(prefix: str) -> str:
    """A token or an invitation of 256 random bits, as text of 47 characters."""
    return prefix + secrets.token_urlsafe(32)


def no_such_org(name: str) -> Problem:
    """The answer to who asks for an organisation that is not there, or not theirs."""
    return Problem(
        404,
        "no-such-org",
        f"there is no organisation {name!r} that you belong to",
        remedy="`neuraverse whoami` lists yours; its owner can invite you, an operator can make one",
    )


def forbidden(caller: Caller, what: str, right: Right) -> Problem:
    """The refusal of something that the caller may not do. It says nothing of what is there."""
    if caller.account is None:
        return Problem(
            401,
            "sign-in",
            f"whoever does not sign in may not {what}",
            remedy="`neuraverse login`, or set NEURAVERSE_TOKEN to a token",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Problem(
        403,
        "forbidden",
        f"{caller.name} may not {what} with this token",
        remedy=f"it needs the right {right!r} there, which the role and the token's scopes must both give"
        + ("; an operator makes organisations: `neuraverse org make`" if caller.host else ""),
    )


def needs(db: Connection, caller: Caller, org: str, right: Right, what: str) -> Row[Any]:
    """The row of one of the caller's organisations.

    Args:
        db: A transaction.
        caller: Who asks.
        org: Its name.
        right: What it takes.
        what: The same for people, as an infinitive.

    Raises:
        Problem: 401 nobody signed in, 404 it is not one of the caller's, 403 the caller has not that right.
    """
    if caller.account is None:
        raise forbidden(caller, what, right)
    row = db.execute(select(orgs).where(orgs.c.name == org)).one_or_none()
    if row is None or row.id not in caller.rights:
        raise no_such_org(org)
    if not caller.may(right, row.id):
        raise forbidden(caller, f"{what} in {org}", right)
    return row


def note(db: Connection, caller: Caller, org_id: int | None, action: str, target: str, **data: Any) -> None:
    """Write a line of the audit log."""
    db.execute(
        audit.insert().values(
            id=next_id(db, audit),
            at=now(),
            actor=caller.name,
            token=caller.token,
            org_id=org_id,
            action=action,
            target=target[:300],
            data=data,
        )
    )


def rights_changed(db: Connection) -> None:
    """Let every process forget what it remembers of rights, once this transaction has committed."""
    db.execute(update(registry).values(rights=registry.c.rights + 1))
    notify(db)


class Access:
    """Tells who asks, from their token; remembered until rights change.

    Args:
        database: The index.
        is_open: Whether the registry is open.
    """

    def __init__(self, database: Database, *, is_open: bool) -> None:
        self._database = database
        self.anonymous = Caller(open=is_open)
        self._known: dict[str, Caller] = {}
        self._epoch = -1

    async def caller(self, authorization: str | None) -> Caller:
        """Who sent this header.

        Raises:
            Problem: 401 it is no token, or one that has expired, was revoked, or is not of this registry.
        """
        if authorization is None:
            return self.anonymous
        key = digest(authorization)
        found = self._known.get(key)
        if found is None:
            scheme, _, token = authorization.partition(" ")
            token = token.strip()
            if scheme.lower() != "bearer" or not token:
                raise _unknown(
                    "the Authorization header is no bearer token", "send Authorization: Bearer nvt_…"
                )
            epoch = self._epoch
            found = await self._database.read(_caller, token, self.anonymous.open)
            if epoch == self._epoch:  # else rights have changed meanwhile
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[key] = found
        if found.ends <= time.time():
            raise _ended("has expired", found.expires_at)
        return found

    def known(self, key: str | None) -> Caller | None:
        """Who sent a header of this `digest`, if that is remembered; `caller` tells the rest."""
        if key is None:
            return self.anonymous
        found = self._known.get(key)
        return None if found is None or found.ends <= time.time() else found

    def forget(self) -> None:
        """Rights have changed."""
        self._epoch -= 1
        self._known.clear()

    async def look(self) -> bool:
        """See whether another process changed rights; True if what was remembered is forgotten."""
        epoch = int(await self._database.read(_rights))
        if epoch == self._epoch:
            return False
        self._known.clear()
        self._epoch = epoch
        return True


def _rights(db: Connection) -> int:
    return int(db.scalar(select(registry.c.rights)) or 0)


def _caller(db: Connection, token: str, is_open: bool) -> Caller:
    row = db.execute(_TOKEN, {"hash": digest(token)}).one_or_none()
    if row is None:
        raise _unknown(
            "the token is not one of this registry"
            + ("" if token.startswith(TOKEN) else f"; a token begins with {TOKEN}"),
            "look whether it is whole and for this registry; `neuraverse login` gets a new one",
        )
    if row.revoked_at is not None or row.disabled_at is not None:
        raise _ended("was revoked", row.revoked_at or row.disabled_at)
    scopes = frozenset(row.scopes)
    held = [
        each for each in db.execute(_ROLES, {"account": row.account_id}) if row.org_id in (None, each.org_id)
    ]
    return Caller(
        account=row.account_id,
        name=row.name,
        kind=row.kind,
        orgs={each.org_id: each.name for each in held},
        rights={each.org_id: ROLES[each.role] & scopes for each in held},
        requests=held[0].quota_requests if held else None,
        host=row.operator and "host" in scopes and row.org_id is None,
        token=row.id,
        expires_at=row.expires_at,
        open=is_open,
    )


def _unknown(detail: str, remedy: str) -> Problem:
    return Problem(401, "token", detail, remedy=remedy, headers={"WWW-Authenticate": "Bearer"})


def _ended(how: str, when: str) -> Problem:
    return Problem(
        401,
        "token",
        f"the token {how} at {when}",
        remedy="`neuraverse login` or whoever gave it gets you a new one",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )
