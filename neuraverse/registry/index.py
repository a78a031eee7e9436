"""Questions to the index, for `Database.read`. What changes it stands in `publishing` and `changes`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, Select, and_, bindparam, exists, func, or_, select

from neuraverse.errors import UsageError
from neuraverse.manifest import VERSION_PATTERN, wilson_lower
from neuraverse.registry.fleet import steering
from neuraverse.registry.limits import MAX_LINEAGE, MAX_VERSIONS
from neuraverse.registry.problems import Problem
from neuraverse.registry.stores import Blob
from neuraverse.registry.tables import (
    ACTIVE,
    PUBLIC,
    REVOKED,
    YANKED,
    aliases,
    blobs,
    events,
    lineage,
    manifests,
    orgs,
    publisher_keys,
    registry,
    skills,
    version_files,
    versions,
)
from neuraverse.registry.tenants.access import SEEN, Caller
from neuraverse.versions import parse_range

LATEST = "latest"
ALIAS_PATTERN = "^[a-z][a-z0-9-]{0,63}$"
BY_ORDER = (
    versions.c.prerelease,
    versions.c.order_key.desc(),
)  # the latest first; releases before prereleases
# Statements of each resolve and pull, made once: making one takes as long as carrying it out.
_SKILL = select(skills).where(skills.c.name == bindparam("name"))
_VERSION = select(versions).where(
    versions.c.skill_id == bindparam("skill_id"), versions.c.version == bindparam("version")
)


def newest(query: Select[Any], skill: BindParameter[int]) -> Select[Any]:
    """What `query` selects of the version that ``latest`` means: the highest active release, or prerelease.

    An index gives it, however many versions there are; by `BY_ORDER`, all of them would be sorted.
    """
    each = versions.alias()
    kind = select(each.c.prerelease).where(each.c.skill_id == skill, each.c.state == ACTIVE)
    kind = kind.order_by(each.c.prerelease).limit(1)
    mine = and_(versions.c.skill_id == skill, versions.c.state == ACTIVE)
    query = query.where(mine, versions.c.prerelease == kind.scalar_subquery())
    return query.order_by(versions.c.order_key.desc()).limit(1)


_LATEST = newest(select(versions), bindparam("skill_id"))
_PARENTS = select(versions.c.digest).join(lineage, lineage.c.parent_id == versions.c.id)
_PARENTS = _PARENTS.where(lineage.c.child_id == bindparam("version_id")).order_by(versions.c.id)
_CHILDREN = select(versions.c.digest).select_from(
    lineage.join(versions, versions.c.id == lineage.c.child_id).join(skills)
)
_CHILDREN = _CHILDREN.where(lineage.c.parent_id == bindparam("version_id"), SEEN)
_CHILDREN = _CHILDREN.order_by(versions.c.id).limit(MAX_LINEAGE)
_FILES = (
    select(manifests.c.manifest, manifests.c.signature, version_files.c.name, blobs)
    .select_from(manifests)
    .join(version_files, version_files.c.version_id == manifests.c.version_id)
    .join(blobs)
    .where(manifests.c.version_id == bindparam("version_id"))
)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All of one version.

    Attributes:
        version: Which one it is.
        digest: ``sha256:<hex>`` of the manifest.
        manifest: Its exact bytes.
        signature: Exact bytes of the signature.
        files: Each file by name.
        warnings: What its publisher wants to be known.
        held: State of the version that the caller has; empty if there is no such one.
        lost: Digest of a file that rotted; empty if all are there.
    """

    version: str
    digest: str
    manifest: bytes
    signature: bytes
    files: dict[str, Blob]
    warnings: list[str]
    held: str
    lost: str


def find(db: Connection, caller: Caller, name: str, which: str) -> dict[str, Any]:
    """One version with its lineage.

    Args:
        db: A transaction.
        caller: Who asks.
        name: ``org/skill``.
        which: A version, a range, an alias, or ``latest``.

    Raises:
        Problem: 404 there is none, 409 an alias of a yanked version, 410 it was revoked.
    """
    skill, row, because = settle(db, caller, name, which)
    parents = db.scalars(_PARENTS, {"version_id": row.id})
    children = db.scalars(_CHILDREN, {"version_id": row.id, **caller.scope})
    return {
        "name": name,
        "version": row.version,
        "digest": row.digest,
        "publisher": row.publisher,
        "state": row.state,
        "reason": row.reason,
        "because": because,
        **evidence(row),
        "warnings": _warnings(skill, row),
        "parents": list(parents),
        "children": list(children),
        "deprecated": _deprecated(skill),
    }


def files(db: Connection, caller: Caller, name: str, which: str, held: str | None = None) -> Whole:
    """All of one version.

    Args:
        db: A transaction.
        caller: Who asks.
        name: ``org/skill``.
        which: As of `find`.
        held: Version that the caller has, of which the answer tells the state.

    Raises:
        Problem: As `find`.
    """
    skill, row, _ = settle(db, caller, name, which)
    found = list(db.execute(_FILES, {"version_id": row.id}))
    old = None
    if held is not None:
        old = db.execute(_VERSION, {"skill_id": skill.id, "version": held}).one_or_none()
    return Whole(
        version=row.version,
        digest=row.digest,
        manifest=bytes(found[0].manifest),
        signature=bytes(found[0].signature),
        files={e.name: Blob(sha256=e.sha256, size=e.size, key=e.key) for e in found},
        warnings=_warnings(skill, row),
        held="" if old is None else old.state,
        lost=next((each.sha256 for each in found if each.lost), ""),
    )


def describe(db: Connection, caller: Caller, name: str) -> dict[str, Any]:
    """Versions, the latest first, and aliases of a skill, at most `MAX_VERSIONS` of each.

    Raises:
        Problem: 404.
    """
    skill = find_skill(db, caller, name)
    v = versions.c
    columns = v.version, v.digest, v.created_at.label("created"), v.state, v.reason
    counts = v.rate, v.lower, v.n, v.field_n, v.field_successes
    every = select(*columns, *counts).where(v.skill_id == skill.id).order_by(*BY_ORDER)
    rows = db.execute(every.limit(MAX_VERSIONS))
    pairs = select(aliases.c.alias, v.version).join(versions)
    pairs = pairs.where(aliases.c.skill_id == skill.id).order_by(aliases.c.alias)
    named = db.execute(pairs.limit(MAX_VERSIONS))
    return {
        "name": name,
        "registry": db.scalar(select(registry.c.id)),
        "serial": skill.serial,
        "visibility": skill.visibility,
        "deprecated": _deprecated(skill),
        "versions": [{c.name: getattr(r, c.name) for c in columns} | evidence(r) for r in rows],
        "aliases": {r.alias: r.version for r in named},
    }


def alias(db: Connection, caller: Caller, name: str, alias: str) -> dict[str, Any]:
    """What an alias means, and its moves, the newest first.

    Raises:
        Problem: 404 it never meant anything.
    """
    skill = find_skill(db, caller, name)
    at = and_(aliases.c.skill_id == skill.id, aliases.c.alias == alias)
    version = db.scalar(select(versions.c.version).join(aliases).where(at))
    mine = and_(events.c.name == name, events.c.type.in_(("alias", "unalias")))
    query = select(events).where(mine, events.c.data["alias"].as_string() == alias)
    rows = list(db.execute(query.order_by(events.c.id.desc()).limit(MAX_VERSIONS)))
    if not rows:
        raise Problem(404, "no-such-alias", f"{name} never had an alias {alias!r}")
    moves = [
        {
            "id": row.id,
            "version": row.version if row.type == "alias" else None,
            "previous": row.data.get("previous"),
            "at": row.at,
            "by": row.by,
        }
        for row in rows
    ]
    return {"name": name, "alias": alias, "version": version, "moves": moves}


def document(db: Connection, caller: Caller, digest: str, kind: str) -> tuple[bytes, bool]:
    """The exact bytes of a ``manifest`` or ``signature``, and whether everybody may have them.

    Args:
        db: A transaction.
        caller: Who asks.
        digest: ``sha256:<hex>`` of the manifest.
        kind: Which of the two.

    Raises:
        Problem: 404, 410.
    """
    query = select(
        manifests.c[kind], versions.c.state, versions.c.reason, skills.c.visibility, skills.c.org_id
    )
    query = query.select_from(manifests.join(versions).join(skills))
    row = db.execute(query.where(versions.c.digest == digest)).one_or_none()
    if row is None or not caller.sees(row):
        raise Problem(404, "no-such-skill", f"there is no skill with the digest {digest}")
    if row.state == REVOKED:
        raise revoked(digest, row.reason)
    return bytes(row[0]), row.visibility == PUBLIC


def keys(db: Connection, caller: Caller, org: str) -> list[str]:
    """PEM texts of the keys that an organisation publishes with, the oldest first.

    An organisation of which the caller sees no skill, and which is not theirs, does not exist for them.

    Raises:
        Problem: 404.
    """
    k = publisher_keys.c
    shown = exists().where(skills.c.org_id == orgs.c.id, caller.seen())
    known = or_(orgs.c.id.in_(caller.orgs), shown)
    query = select(k.pem).join(orgs).where(orgs.c.name == org, k.revoked_at.is_(None), known)
    found = list(db.scalars(query.order_by(k.created_at)))
    if not found:
        raise Problem(404, "no-such-org", f"there is no organisation named {org!r}")
    return found


def counts(db: Connection) -> dict[str, int]:
    """How many organisations, skills, versions, events and blobs there are, and the blobs' bytes."""
    found = {"blob_bytes": int(db.scalar(select(func.coalesce(func.sum(blobs.c.size), 0))) or 0)}
    for table in (orgs, skills, versions, events, blobs):
        found[table.name] = int(db.scalar(select(func.count()).select_from(table)) or 0)
    return found


def find_skill(db: Connection, caller: Caller, name: str) -> Row[Any]:
    """The row of a skill.

    Raises:
        Problem: 404.
    """
    found = db.execute(_SKILL, {"name": name}).one_or_none()
    if found is None or not caller.sees(found):
        raise Problem(
            404,
            "no-such-skill",
            f"there is no skill named {name!r}",
            remedy="see GET /v1/skills for those that are",
        )
    return found


def settle(db: Connection, caller: Caller, name: str, which: str) -> tuple[Row[Any], Row[Any], str]:
    """The rows of a skill and of the version that the caller is to have, and why, if not by its reference.

    A robot may be pinned, held, or in a roll-out; see `steering`. A version that it names it gets anyway.

    Raises:
        Problem: As `find_version`.
    """
    if caller.kind != "robot" or re.fullmatch(VERSION_PATTERN, which):
        return *find_version(db, caller, name, which), ""
    skill = find_skill(db, caller, name)
    found = steering.chosen(db, caller, skill, which)
    if found is None:
        return *find_version(db, caller, name, which), ""
    row, because = found
    if row.state == REVOKED:
        raise revoked(f"{name}@{row.version}", row.reason)
    return skill, row, because


def evidence(row: Any) -> dict[str, Any]:
    """How a version does: in simulation as its publisher says, and in the field as robots report."""
    return {
        "evaluation": {"rate": row.rate, "lower": row.lower, "n": row.n},
        "field": field_score(row.field_successes, row.field_n) if row.field_n else None,
    }


def field_score(successes: int, n: int) -> dict[str, Any]:
    """Episodes in the field, with the lower bound of their success."""
    return {"n": n, "successes": successes, "lower": wilson_lower(successes, n)}


def find_version(
    db: Connection, caller: Caller, name: str, which: str, *, exact: bool = False
) -> tuple[Row[Any], Row[Any]]:
    """The rows of a skill and of one version of it.

    Args:
        db: A transaction.
        caller: Who asks.
        name: ``org/skill``.
        which: A version; unless `exact` also a range, an alias or ``latest``, which never mean a yanked one.
        exact: Whether to find versions in any state, and nothing but versions.

    Raises:
        Problem: 400 it is none of these, 404 there is none, 409 an alias of a yanked version, 410 revoked.
    """
    skill = find_skill(db, caller, name)
    mine = select(versions).where(versions.c.skill_id == skill.id)
    if exact or re.fullmatch(VERSION_PATTERN, which):
        row = db.execute(_VERSION, {"skill_id": skill.id, "version": which}).one_or_none()
    elif which == LATEST:
        row = db.execute(_LATEST, {"skill_id": skill.id}).one_or_none()
    elif re.fullmatch(ALIAS_PATTERN, which):
        at = and_(aliases.c.skill_id == skill.id, aliases.c.alias == which)
        row = (
            db.execute(mine.where(versions.c.id.in_(select(aliases.c.version_id).where(at))))
        ).one_or_none()
        if row is not None and row.state == YANKED:
            raise Problem(
                409,
                "alias-yanked",
                f"{name}@{which} means {row.version}, which was yanked{_because(row.reason)}",
                remedy="pin the version if you must; its publisher can move the alias",
            )
    else:
        row = _best(db, mine, which)
    if row is None:
        raise Problem(
            404,
            "no-such-version",
            f"{name} has no version{'' if exact else ' or alias'} {which!r}",
            remedy=f"GET /v1/skills/{name} lists them",
        )
    if row.state == REVOKED and not exact:
        raise revoked(f"{name}@{row.version}", row.reason)
    return skill, row


def _best(db: Connection, mine: Any, which: str) -> Row[Any] | None:
    """The highest active version in a range."""
    try:
        wanted = parse_range(which)
    except UsageError as error:
        raise Problem(400, "invalid", error.message, remedy=error.remedy, field="version") from error
    rows = db.execute(mine.where(versions.c.state == ACTIVE).order_by(versions.c.order_key.desc()))
    return next((row for row in rows if wanted.allows(row.version)), None)


def lost(sha256: str) -> Problem:
    """The answer to who asks for a blob that rotted."""
    return Problem(
        404,
        "lost",
        f"the blob {sha256} has rotted on the registry's disk and was taken away",
        remedy="whoever has the skill can publish the same bytes again; that heals it",
    )


def revoked(what: str, reason: str) -> Problem:
    """The answer to who asks for a revoked version."""
    return Problem(
        410,
        "revoked",
        f"{what} was revoked{_because(reason)}",
        remedy="stop using it; ask its publisher for another version",
    )


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _deprecated(skill: Row[Any]) -> dict[str, Any] | None:
    if skill.deprecated is None:
        return None
    return {"message": skill.deprecated, "successor": skill.successor}


def _warnings(skill: Row[Any], row: Row[Any]) -> list[str]:
    found = []
    if row.state == YANKED:
        found.append(f"{skill.name}@{row.version} was yanked{_because(row.reason)}")
    if skill.deprecated is not None:
        instead = f"; use {skill.successor}" if skill.successor else ""
        found.append(f"{skill.name} is deprecated{_because(skill.deprecated)}{instead}")
    return found
