"""Two looks across versions: the graph of parents and children, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from neuraverse.manifest import SkillManifest
from neuraverse.registry.index import find_version
from neuraverse.registry.limits import MAX_LINEAGE
from neuraverse.registry.tables import lineage, manifests, skills, versions
from neuraverse.registry.tenants.access import Caller

_PARTS = {
    "interface": ("interface",),
    "evaluation": ("evaluation",),
    "training": ("training", "randomised", "body", "task", "network", "versions", "parents"),
    "files": ("files",),
}


def graph(db: Connection, caller: Caller, name: str, which: str) -> dict[str, Any]:
    """Ancestors and descendants of a version that the caller sees, at most `MAX_LINEAGE`, the nearest first.

    Raises:
        Problem: 404, 409, 410.
    """
    _, row = find_version(db, caller, name, which)
    known, edges = {row.id}, set()
    for mine, other in (
        (lineage.c.child_id, lineage.c.parent_id),
        (lineage.c.parent_id, lineage.c.child_id),
    ):
        edge = {row.id}
        while edge and len(known) < MAX_LINEAGE:
            joined = lineage.join(versions, versions.c.id == other).join(skills)
            query = select(lineage).select_from(joined)
            query = query.where(mine.in_(edge), caller.seen()).limit(MAX_LINEAGE)
            found = [(each.parent_id, each.child_id) for each in db.execute(query)]
            edges.update(found)
            edge = {each[0] if other is lineage.c.parent_id else each[1] for each in found} - known
            known |= edge
    query = select(
        versions.c.id,
        versions.c.digest,
        versions.c.version,
        versions.c.state,
        versions.c.lower,
        skills.c.name,
    ).join(skills)
    rows = {each.id: each for each in db.execute(query.where(versions.c.id.in_(known)))}
    nodes = [
        {k: getattr(each, k) for k in ("digest", "name", "version", "state", "lower")}
        for _, each in sorted(rows.items())
    ]
    pairs = [(rows[a].digest, rows[b].digest) for a, b in sorted(edges) if a in rows and b in rows]
    return {"root": row.digest, "nodes": nodes, "edges": pairs}


def difference(db: Connection, caller: Caller, name: str, old: str, new: str) -> dict[str, Any]:
    """What differs between two versions: interface, evaluation, training and files, field by field.

    Raises:
        Problem: 404, 409, 410.
    """
    rows = [find_version(db, caller, name, which)[1] for which in (old, new)]
    query = select(manifests.c.manifest)
    data = [db.scalar(query.where(manifests.c.version_id == row.id)) for row in rows]
    before, after = (SkillManifest.parse(bytes(each or b"")).model_dump(mode="json") for each in data)
    answer: dict[str, Any] = {"name": name, "from": rows[0].version, "to": rows[1].version}
    for part, fields in _PARTS.items():
        pairs = (_differ(before[f], after[f], f if len(fields) > 1 else "") for f in fields)
        answer[part] = [{"field": field, "from": a, "to": b} for found in pairs for field, a, b in found]
    return answer


def _differ(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of each leaf that differs; lists of named things are matched by name."""
    before, after = _by_name(before), _by_name(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            yield from _differ(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif before != after:
        yield path, before, after


def _by_name(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        return {v["name"]: v for v in value}
    return value
