"""What a publisher may change after a publish: aliases, yanked and revoked versions, deprecation.

Each change is a statement, signed with a key of the organisation. It names the registry, so that it holds
nowhere else, and the skill's next serial number, so that it holds once, and only if nothing changed between.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select, update

from neuraverse.errors import SignatureError
from neuraverse.keys import PublicKey
from neuraverse.registry.config import Settings
from neuraverse.registry.database import notify
from neuraverse.registry.events import now_us, tell
from neuraverse.registry.finding.listing import relist
from neuraverse.registry.index import LATEST, find_skill, find_version
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import (
    ACTIVE,
    REVOKED,
    YANKED,
    aliases,
    now,
    orgs,
    publisher_keys,
    registry,
    skills,
    versions,
)
from neuraverse.registry.tenants import quotas
from neuraverse.registry.tenants.access import Caller, Right, forbidden, note, rights_changed
from neuraverse.statement import Statement, parse, verify

_STATES = {"yank": (YANKED, "yanked"), "unyank": (ACTIVE, "unyanked"), "revoke": (REVOKED, "revoked")}


def apply(
    db: Connection, caller: Caller, settings: Settings, name: str, text: str, signature: str
) -> dict[str, Any]:
    """Carry out one statement; for `Database.write`.

    Args:
        db: The transaction.
        caller: Who asks.
        settings: Limits of organisations that have none of their own.
        name: ``org/skill`` that it must be about.
        text: Exact text of the statement.
        signature: Base64 of the signature over it.

    Returns:
        The skill's new serial number and the event's id.

    Raises:
        ContentError: The statement is malformed, or not signed by a key of the organisation.
        Problem: 404 no such skill, version or alias, 409 another serial number or registry, or a change that
            cannot be.
    """
    said = parse(text)
    skill = find_skill(db, caller, name)
    org = db.execute(select(orgs).where(orgs.c.id == skill.org_id)).one()
    right: Right = "publish" if said.alias and said.alias not in org.protected else "curate"
    if not caller.acts(right, org):
        raise forbidden(caller, f"{said.action} {said.alias or skill.name}", right)
    mine = and_(publisher_keys.c.org_id == skill.org_id, publisher_keys.c.revoked_at.is_(None))
    query = select(publisher_keys.c.pem).where(mine)
    keys = [PublicKey.parse(pem.encode()) for pem in db.scalars(query)]
    try:
        by = verify(text, signature, keys)
    except SignatureError as error:
        raise Problem(403, "not-your-org", error.message, remedy=error.remedy, field="signature") from error
    _about_this(said, skill, str(db.scalar(select(registry.c.id))))
    quotas.event_allowed(db, org, quotas.Limits.of(settings, org), now_us())
    event = _carry_out(db, caller, skill, said, by)
    serial = skill.serial + 1
    db.execute(update(skills).where(skills.c.id == skill.id).values(serial=serial))
    told = said.model_dump(exclude_defaults=True, exclude={"action", "name", "registry"})
    note(db, caller, org.id, said.action, said.name, key=by, **told)
    notify(db)
    return {"name": name, "serial": serial, "event": event}


def show(db: Connection, caller: Caller, settings: Settings, name: str, visibility: str) -> dict[str, Any]:
    """Show a skill to others, or hide it; for `Registry.rule`.

    Raises:
        Problem: 401, 403, 404, 429.
    """
    skill = find_skill(db, caller, name)
    org = db.execute(select(orgs).where(orgs.c.id == skill.org_id)).one()
    if not caller.may("curate", org.id):
        raise forbidden(caller, f"change who sees {name}", "curate")
    if visibility != skill.visibility:
        quotas.event_allowed(db, org, quotas.Limits.of(settings, org), now_us())
        db.execute(update(skills).where(skills.c.id == skill.id).values(visibility=visibility))
        relist(db, skill.id)
        rights_changed(db)
        note(db, caller, org.id, "visibility", name, visibility=visibility, before=skill.visibility)
        tell(db, org.id, skill.id, "visibility", name, "", "", "", {"visibility": visibility})
    return {"name": name, "visibility": visibility}


def _about_this(said: Statement, skill: Row[Any], here: str) -> None:
    if said.name != skill.name:
        raise Problem(
            409,
            "other-skill",
            f"the statement is about {said.name}, not {skill.name}",
            remedy="send it to that skill's address",
            field="name",
        )
    if said.registry != here:
        raise Problem(
            409,
            "other-registry",
            f"the statement is for the registry {said.registry}, not {here}",
            remedy="sign a new statement for this registry",
            field="registry",
        )
    if said.serial != skill.serial + 1:
        raise Problem(
            409,
            "serial",
            f"the statement has the serial number {said.serial}; the next one is {skill.serial + 1}",
            remedy="look at what changed meanwhile, and sign anew",
            field="serial",
            extra={"serial": skill.serial},
        )


def _carry_out(db: Connection, caller: Caller, skill: Row[Any], said: Statement, by: str) -> int:
    match said.action:
        case "alias":
            return _point(db, caller, skill, said, by)
        case "unalias":
            return _unpoint(db, skill, said, by)
        case "yank" | "unyank" | "revoke":
            return _set_state(db, caller, skill, said, by)
        case _:
            return _deprecate(db, caller, skill, said, by)


def _point(db: Connection, caller: Caller, skill: Row[Any], said: Statement, by: str) -> int:
    if said.alias == LATEST:
        raise Problem(
            409,
            "reserved",
            "'latest' is derived from the versions",
            remedy="choose another alias",
            field="alias",
        )
    _, target = find_version(db, caller, skill.name, said.version, exact=True)
    if target.state != ACTIVE:
        raise Problem(
            409,
            "not-active",
            f"{skill.name}@{target.version} is {target.state}",
            remedy="point the alias at another version",
            field="version",
        )
    where, old = _alias(db, skill, said.alias)
    values = {"version_id": target.id, "updated_at": now()}
    if old is None:
        db.execute(insert(aliases).values(skill_id=skill.id, alias=said.alias, **values))
    else:
        db.execute(update(aliases).where(where).values(values))
    data = {"alias": said.alias, "previous": old.version if old else None}
    return tell(db, skill.org_id, skill.id, "alias", skill.name, target.version, target.digest, by, data)


def _unpoint(db: Connection, skill: Row[Any], said: Statement, by: str) -> int:
    where, old = _alias(db, skill, said.alias)
    if old is None:
        raise Problem(404, "no-such-alias", f"{skill.name} has no alias {said.alias!r}", field="alias")
    db.execute(delete(aliases).where(where))
    data = {"alias": said.alias, "previous": old.version}
    return tell(db, skill.org_id, skill.id, "unalias", skill.name, old.version, old.digest, by, data)


def _alias(db: Connection, skill: Row[Any], alias: str) -> tuple[ColumnElement[bool], Row[Any] | None]:
    where = and_(aliases.c.skill_id == skill.id, aliases.c.alias == alias)
    query = select(versions.c.version, versions.c.digest).join(aliases).where(where)
    return where, db.execute(query).one_or_none()  # type: ignore[return-value]


def _set_state(db: Connection, caller: Caller, skill: Row[Any], said: Statement, by: str) -> int:
    state, kind = _STATES[said.action]
    _, row = find_version(db, caller, skill.name, said.version, exact=True)
    if row.state == REVOKED and state != REVOKED:
        raise Problem(
            409,
            "revoked",
            f"{skill.name}@{row.version} was revoked, which is for good",
            remedy="publish a new version",
            field="version",
        )
    db.execute(update(versions).where(versions.c.id == row.id).values(state=state, reason=said.reason))
    relist(db, skill.id)
    data = {"reason": said.reason}
    return tell(db, skill.org_id, skill.id, kind, skill.name, row.version, row.digest, by, data)


def _deprecate(db: Connection, caller: Caller, skill: Row[Any], said: Statement, by: str) -> int:
    over = said.action == "undeprecate"
    successor = None if over or not said.successor else said.successor
    if successor is not None:
        find_skill(db, caller, successor)
    values = {"deprecated": None if over else said.message, "successor": successor}
    db.execute(update(skills).where(skills.c.id == skill.id).values(values))
    data = {} if over else {"message": said.message, "successor": successor}
    return tell(db, skill.org_id, skill.id, f"{said.action}d", skill.name, "", "", by, data)
