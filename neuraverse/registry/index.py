"""Questions to the database and the two things that change it: a publish and an alias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuraverse.manifest import SkillManifest
from neuraverse.registry.database import (
    Database,
    aliases,
    events,
    lineage,
    manifests,
    now,
    orgs,
    publisher_keys,
    skills,
    version_files,
    versions,
)
from neuraverse.registry.feed import Event
from neuraverse.registry.limits import MAX_LINEAGE, MAX_VERSIONS
from neuraverse.registry.problems import Problem
from neuraverse.registry.versions import is_prerelease, order_key

LATEST = "latest"
_BY_ORDER = (
    versions.c.prerelease,
    versions.c.order_key.desc(),
)  # the latest first; releases before prereleases


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A publish whose content has been checked.

    Attributes:
        manifest: What `data` says.
        data: Exact bytes of the manifest.
        digest: ``sha256:<hex>`` of them.
        signature: Exact bytes of the signature.
        fingerprint: Of the key that signed.
        pem: That key.
    """

    manifest: SkillManifest
    data: bytes
    digest: str
    signature: bytes
    fingerprint: str
    pem: str


class Index:
    """The rows of the registry.

    Args:
        database: An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(self, new: Submission) -> bool:
        """Enter a version and its event, both or neither.

        Returns:
            True if it is new, False if the same bytes were there.

        Raises:
            Problem: 403 the organisation belongs to another key, 409 the version is taken by other bytes,
                422 a parent does not exist.
        """
        manifest = new.manifest
        async with self._database.write() as db:
            org_id = await _bind_org(db, new)
            skill_id = await db.scalar(select(skills.c.id).where(skills.c.name == manifest.name))
            if skill_id is None:
                skill_id = await _add(db, skills, org_id=org_id, name=manifest.name, created_at=now())
            here = and_(versions.c.skill_id == skill_id, versions.c.version == manifest.version)
            taken = await db.scalar(select(versions.c.digest).where(here))
            if taken == new.digest:
                return False
            if taken is not None:
                raise Problem(
                    409,
                    "version-taken",
                    f"{manifest.ref} is published already, as {taken}",
                    remedy="a version is never reused; publish under a higher one",
                )
            parents = await _parents(db, manifest.parents)
            version_id = await _add(db, versions, **_version_row(skill_id, new))
            await db.execute(
                insert(manifests).values(version_id=version_id, manifest=new.data, signature=new.signature)
            )
            for name, entry in manifest.files.items():
                row = {"version_id": version_id, "name": name, "sha256": entry.sha256, "size": entry.size}
                await db.execute(insert(version_files).values(row))
            for parent_id in parents:
                await db.execute(insert(lineage).values(child_id=version_id, parent_id=parent_id))
            data = {"parents": list(manifest.parents), "interface": manifest.interface.digest()}
            await _record(db, org_id, "published", manifest.name, manifest.version, new.digest, data)
        return True

    async def set_alias(self, name: str, alias: str, version: str) -> bool:
        """Point an alias at a version and record it.

        Returns:
            True if that changed something.

        Raises:
            Problem: 404 there is no such version.
        """
        async with self._database.write() as db:
            target = await _find(db, name, version, exact=True)
            where = and_(aliases.c.skill_id == target.skill_id, aliases.c.alias == alias)
            query = select(aliases.c.version_id, versions.c.version).join(versions).where(where)
            old = (await db.execute(query)).one_or_none()
            if old is not None and old.version_id == target.id:
                return False
            values = {"version_id": target.id, "updated_at": now()}
            if old is None:
                await db.execute(insert(aliases).values(skill_id=target.skill_id, alias=alias, **values))
            else:
                await db.execute(update(aliases).where(where).values(values))
            data = {"alias": alias, "previous": old.version if old else None}
            await _record(db, target.org_id, "alias", name, target.version, target.digest, data)
        return True

    async def find(self, name: str, which: str) -> dict[str, Any]:
        """One version with its lineage.

        Args:
            name: ``org/skill``.
            which: A version, an alias, or ``latest``.

        Raises:
            Problem: 404.
        """
        async with self._database.read() as db:
            row = await _find(db, name, which)
            up = select(versions.c.digest).join(lineage, lineage.c.parent_id == versions.c.id)
            parents = await db.scalars(up.where(lineage.c.child_id == row.id).order_by(versions.c.id))
            down = select(versions.c.digest).join(lineage, lineage.c.child_id == versions.c.id)
            children = await db.scalars(
                down.where(lineage.c.parent_id == row.id).order_by(versions.c.id).limit(MAX_LINEAGE)
            )
            return {
                "name": name,
                "version": row.version,
                "digest": row.digest,
                "publisher": row.publisher,
                "parents": list(parents),
                "children": list(children),
            }

    async def describe(self, name: str) -> dict[str, Any]:
        """Versions, the latest first, and aliases of a skill, at most `MAX_VERSIONS` of each.

        Raises:
            Problem: 404.
        """
        async with self._database.read() as db:
            skill_id = await _skill(db, name)
            columns = versions.c.version, versions.c.digest, versions.c.created_at.label("created")
            every = select(*columns).where(versions.c.skill_id == skill_id).order_by(*_BY_ORDER)
            rows = await db.execute(every.limit(MAX_VERSIONS))
            pairs = select(aliases.c.alias, versions.c.version).join(versions)
            pairs = pairs.where(aliases.c.skill_id == skill_id).order_by(aliases.c.alias)
            named = await db.execute(pairs.limit(MAX_VERSIONS))
            return {
                "name": name,
                "versions": [dict(r._mapping) for r in rows],
                "aliases": {r.alias: r.version for r in named},
            }

    async def search(self, text: str, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Skills, by name, each with its latest version.

        Args:
            text: Words that must all occur in name, title, description, tags, robot or environment.
            after: Names up to this one are left out.
            limit: At most this many.

        Returns:
            The skills, and the cursor of the next page or None.
        """
        inner = versions.alias()
        latest = (
            select(inner.c.id)
            .where(inner.c.skill_id == skills.c.id)
            .order_by(inner.c.prerelease, inner.c.order_key.desc())
            .limit(1)
            .scalar_subquery()
        )
        v = versions.c
        fields = (v.version, v.digest, v.title, v.description, v.rate, v.lower, v.n, v.robot)
        query = (
            select(skills.c.name, *fields, v.created_at.label("created"))
            .select_from(skills)
            .join(versions, v.id == latest)
            .where(skills.c.name > after)
            .where(*(v.search.contains(word, autoescape=True) for word in text.lower().split()))
            .order_by(skills.c.name)
            .limit(limit + 1)
        )
        async with self._database.read() as db:
            found = [dict(r._mapping) for r in await db.execute(query)]
        return found[:limit], found[limit - 1]["name"] if len(found) > limit else None

    async def document(self, digest: str, kind: str) -> bytes:
        """The exact bytes of a ``manifest`` or ``signature``.

        Args:
            digest: ``sha256:<hex>`` of the manifest.
            kind: Which of the two.

        Raises:
            Problem: 404.
        """
        query = select(manifests.c[kind]).join(versions).where(versions.c.digest == digest)
        async with self._database.read() as db:
            found = await db.scalar(query)
        if found is None:
            raise Problem(404, "no-such-skill", f"there is no skill with the digest {digest}")
        return bytes(found)

    async def keys(self, org: str) -> list[str]:
        """PEM texts of the keys that an organisation publishes with, the oldest first.

        Raises:
            Problem: 404.
        """
        query = select(publisher_keys.c.pem).join(orgs).where(orgs.c.name == org)
        async with self._database.read() as db:
            found = list(await db.scalars(query.order_by(publisher_keys.c.created_at)))
        if not found:
            raise Problem(404, "no-such-org", f"there is no organisation named {org!r}")
        return found

    async def events(self, after: int, limit: int) -> list[Event]:
        """Events behind the cursor `after`, in order."""
        query = select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
        async with self._database.read() as db:
            return [_event(row) for row in await db.execute(query)]

    async def head(self) -> int:
        """The cursor behind the newest event."""
        async with self._database.read() as db:
            return int(await db.scalar(select(func.max(events.c.id))) or 0)


async def _add(db: AsyncConnection, table: Any, **values: Any) -> int:
    key = (await db.execute(insert(table).values(values))).inserted_primary_key
    assert key is not None
    return int(key[0])


async def _bind_org(db: AsyncConnection, new: Submission) -> int:
    """The organisation's id. The first key that publishes under a name owns it."""
    org = new.manifest.org
    org_id = await db.scalar(select(orgs.c.id).where(orgs.c.name == org))
    if org_id is None:
        org_id = await _add(db, orgs, name=org, created_at=now())
        key = {"org_id": org_id, "fingerprint": new.fingerprint, "pem": new.pem, "created_at": now()}
        await db.execute(insert(publisher_keys).values(key))
        return org_id
    mine = and_(publisher_keys.c.org_id == org_id, publisher_keys.c.fingerprint == new.fingerprint)
    if await db.scalar(select(publisher_keys.c.fingerprint).where(mine)) is None:
        raise Problem(
            403,
            "not-your-org",
            f"the organisation {org!r} publishes with another key than {new.fingerprint}",
            remedy="sign with the organisation's key, or publish under a name of your own",
        )
    return int(org_id)


async def _parents(db: AsyncConnection, digests: Sequence[str]) -> list[int]:
    query = select(versions.c.digest, versions.c.id).where(versions.c.digest.in_(digests))
    known = {row.digest: row.id for row in await db.execute(query)}
    missing = [d for d in digests if d not in known]
    if missing:
        raise Problem(
            422,
            "no-such-parent",
            f"the parent {missing[0]} is not in this registry",
            remedy="publish the parent here first",
        )
    return list(known.values())


def _version_row(skill_id: int, new: Submission) -> dict[str, Any]:
    manifest = new.manifest
    words = (
        *(manifest.name, manifest.title, manifest.description),
        *(manifest.body.robot, manifest.task.env_id, *manifest.tags),
    )
    return {
        "skill_id": skill_id,
        "version": manifest.version,
        "prerelease": is_prerelease(manifest.version),
        "order_key": order_key(manifest.version),
        "digest": new.digest,
        "publisher": new.fingerprint,
        "interface": manifest.interface.digest(),
        "title": manifest.title,
        "description": manifest.description,
        "robot": manifest.body.robot,
        "rate": manifest.evaluation.rate,
        "lower": manifest.evaluation.lower,
        "n": manifest.evaluation.episodes,
        "search": "\n".join(words).lower(),
        "created_at": now(),
    }


async def _record(
    db: AsyncConnection, org_id: int, kind: str, name: str, version: str, digest: str, data: dict[str, Any]
) -> None:
    row = {"org_id": org_id, "type": kind, "name": name, "version": version, "digest": digest}
    await db.execute(insert(events).values(**row, at=now(), data=data))


def _event(row: Row[Any]) -> Event:
    plain = {k: getattr(row, k) for k in ("id", "type", "name", "version", "digest", "at")}
    return {**plain, **row.data}


async def _skill(db: AsyncConnection, name: str) -> int:
    found = await db.scalar(select(skills.c.id).where(skills.c.name == name))
    if found is None:
        raise Problem(
            404,
            "no-such-skill",
            f"there is no skill named {name!r}",
            remedy="see GET /v1/skills for those that are",
        )
    return int(found)


async def _find(db: AsyncConnection, name: str, which: str, *, exact: bool = False) -> Row[Any]:
    """The row of a version, an alias, or (unless `exact`) the latest."""
    skill_id = await _skill(db, name)
    both = versions.join(skills)
    query = select(versions, skills.c.org_id).select_from(both).where(versions.c.skill_id == skill_id)
    row = (await db.execute(query.where(versions.c.version == which))).one_or_none()
    if row is None and not exact:
        if which == LATEST:
            query = query.order_by(*_BY_ORDER).limit(1)
        else:
            named = select(aliases.c.version_id).where(aliases.c.skill_id == skill_id)
            query = query.where(versions.c.id.in_(named.where(aliases.c.alias == which)))
        row = (await db.execute(query)).one_or_none()
    if row is None:
        raise Problem(
            404,
            "no-such-version",
            f"{name} has no version{'' if exact else ' or alias'} {which!r}",
            remedy=f"GET /v1/skills/{name} lists them",
        )
    return row
