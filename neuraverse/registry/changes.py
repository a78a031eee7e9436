"""What a publisher may change after a publish: aliases, yanked and revoked versions, deprecation.

Each change is a statement, signed with a key of the organisation. It names the registry, so that it holds
nowhere else, and the skill's next serial number, so that it holds once, and only if nothing changed between.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuraverse.errors import SignatureError
from neuraverse.keys import PublicKey
from neuraverse.registry.database import Database
from neuraverse.registry.index import LATEST, find_skill, find_version
from neuraverse.registry.problems import Problem
from neuraverse.registry.publishing import tell
from neuraverse.registry.tables import (
    ACTIVE,
    REVOKED,
    YANKED,
    aliases,
    now,
    publisher_keys,
    skills,
    versions,
)
from neuraverse.statement import Statement, parse, verify

_STATES = {"yank": (YANKED, "yanked"), "unyank": (ACTIVE, "unyanked"), "revoke": (REVOKED, "revoked")}


class Changes:
    """Carries out statements.

    Args:
        database: The index.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def apply(self, name: str, text: str, signature: str) -> dict[str, Any]:
        """Carry out one statement.

        Args:
            name: ``org/skill`` that it must be about.
            text: Exact text of the statement.
            signature: Base64 of the signature over it.

        Returns:
            The skill's new serial number and the event's id.

        Raises:
            ContentError: The statement is malformed, or not signed by a key of the organisation.
            Problem: 404 no such skill, version or alias, 409 another serial number or registry, or a change
                that cannot be.
        """
        said = parse(text)
        async with self._database.write() as db:
            skill = await find_skill(db, name)
            query = select(publisher_keys.c.pem).where(publisher_keys.c.org_id == skill.org_id)
            keys = [PublicKey.parse(pem.encode()) for pem in await db.scalars(query)]
            try:
                by = verify(text, signature, keys)
            except SignatureError as error:
                raise Problem(
                    403, "not-your-org", error.message, remedy=error.remedy, field="signature"
                ) from error
            self._about_this(said, skill)
            event = await _carry_out(db, skill, said, by)
            serial = skill.serial + 1
            await db.execute(update(skills).where(skills.c.id == skill.id).values(serial=serial))
            await self._database.notify(db)
        return {"name": name, "serial": serial, "event": event}

    def _about_this(self, said: Statement, skill: Row[Any]) -> None:
        if said.name != skill.name:
            raise Problem(
                409, "other-skill", f"the statement is about {said.name}, not {skill.name}", field="name"
            )
        if said.registry != self._database.registry_id:
            raise Problem(
                409,
                "other-registry",
                f"the statement is for the registry {said.registry}, not {self._database.registry_id}",
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


async def _carry_out(db: AsyncConnection, skill: Row[Any], said: Statement, by: str) -> int:
    match said.action:
        case "alias":
            return await _point(db, skill, said, by)
        case "unalias":
            return await _unpoint(db, skill, said, by)
        case "yank" | "unyank" | "revoke":
            return await _set_state(db, skill, said, by)
        case _:
            return await _deprecate(db, skill, said, by)


async def _point(db: AsyncConnection, skill: Row[Any], said: Statement, by: str) -> int:
    if said.alias == LATEST:
        raise Problem(
            409,
            "reserved",
            "'latest' is derived from the versions",
            remedy="choose another alias",
            field="alias",
        )
    _, target = await find_version(db, skill.name, said.version, exact=True)
    if target.state != ACTIVE:
        raise Problem(
            409,
            "not-active",
            f"{skill.name}@{target.version} is {target.state}",
            remedy="point the alias at another version",
            field="version",
        )
    where, old = await _alias(db, skill, said.alias)
    values = {"version_id": target.id, "updated_at": now()}
    if old is None:
        await db.execute(insert(aliases).values(skill_id=skill.id, alias=said.alias, **values))
    else:
        await db.execute(update(aliases).where(where).values(values))
    data = {"alias": said.alias, "previous": old.version if old else None}
    return await tell(db, skill.org_id, "alias", skill.name, target.version, target.digest, by, data)


async def _unpoint(db: AsyncConnection, skill: Row[Any], said: Statement, by: str) -> int:
    where, old = await _alias(db, skill, said.alias)
    if old is None:
        raise Problem(404, "no-such-alias", f"{skill.name} has no alias {said.alias!r}", field="alias")
    await db.execute(delete(aliases).where(where))
    data = {"alias": said.alias, "previous": old.version}
    return await tell(db, skill.org_id, "unalias", skill.name, old.version, old.digest, by, data)


async def _alias(
    db: AsyncConnection, skill: Row[Any], alias: str
) -> tuple[ColumnElement[bool], Row[Any] | None]:
    where = and_(aliases.c.skill_id == skill.id, aliases.c.alias == alias)
    query = select(versions.c.version, versions.c.digest).join(aliases).where(where)
    return where, (await db.execute(query)).one_or_none()  # type: ignore[return-value]


async def _set_state(db: AsyncConnection, skill: Row[Any], said: Statement, by: str) -> int:
    state, kind = _STATES[said.action]
    _, row = await find_version(db, skill.name, said.version, exact=True)
    if row.state == REVOKED and state != REVOKED:
        raise Problem(
            409,
            "revoked",
            f"{skill.name}@{row.version} was revoked, which is for good",
            remedy="publish a new version",
            field="version",
        )
    await db.execute(update(versions).where(versions.c.id == row.id).values(state=state, reason=said.reason))
    data = {"reason": said.reason}
    return await tell(db, skill.org_id, kind, skill.name, row.version, row.digest, by, data)


async def _deprecate(db: AsyncConnection, skill: Row[Any], said: Statement, by: str) -> int:
    over = said.action == "undeprecate"
    successor = None if over or not said.successor else said.successor
    if successor is not None:
        await find_skill(db, successor)
    values = {"deprecated": None if over else said.message, "successor": successor}
    await db.execute(update(skills).where(skills.c.id == skill.id).values(values))
    data = {} if over else {"message": said.message, "successor": successor}
    return await tell(db, skill.org_id, f"{said.action}d", skill.name, "", "", by, data)
