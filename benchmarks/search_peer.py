"""The peer: the same searches with what the databases have for it, as anybody would write them first.

FTS5 on SQLite, a ``tsvector`` with a GIN index on PostgreSQL; the rights are a condition on the rows, and the
order is that of an indexed column.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from neuraverse.registry.finding.searches import Asked
from neuraverse.registry.tenants.access import Caller

_SAID = (
    "s.name || ' ' || v.title || ' ' || v.robot || ' ' || v.description || ' ' || CAST(v.facets AS VARCHAR)"
)
# What is sorted by is what ours sorts by; the whole of ours is not needed to read it.
_DOCS = (
    "INSERT INTO peer SELECT l.skill_id, l.version_id, s.visibility, s.org_id, 1 - (l.rank >> 32) / 1e9, "
    "{task}, v.robot, {license}{words} "
    "FROM listings l JOIN versions v ON v.id = l.version_id JOIN skills s ON s.id = l.skill_id"
)
_COLUMNS = (
    "skill_id BIGINT PRIMARY KEY, version_id BIGINT, visibility VARCHAR, org_id BIGINT, "
    "bound DOUBLE PRECISION, task VARCHAR, robot VARCHAR, license VARCHAR"
)
_INDEXES = ("bound DESC", "org_id", "task", "robot", "license")


def build(db: Connection) -> None:
    """Make the tables of the peer from those of a registry."""
    sqlite = db.dialect.name == "sqlite"
    for table in ("peer", "peer_words", "peer_tags"):
        db.execute(text(f"DROP TABLE IF EXISTS {table}"))
    db.execute(text(f"CREATE TABLE peer ({_COLUMNS}{'' if sqlite else ', words tsvector'})"))
    for index in _INDEXES:
        db.execute(text(f"CREATE INDEX peer_{index.split()[0]} ON peer ({index})"))
    member = "v.facets ->> '{}'" if not sqlite else "json_extract(v.facets, '$.{}')"
    words = "" if sqlite else f", to_tsvector('simple', {_SAID})"
    fill = _DOCS.format(task=member.format("task"), license=member.format("license"), words=words)
    db.execute(text(fill))
    db.execute(text("CREATE TABLE peer_tags (tag VARCHAR, skill_id BIGINT, PRIMARY KEY (tag, skill_id))"))
    each = (
        "json_each(v.facets, '$.tags') t"
        if sqlite
        else "json_array_elements_text(v.facets -> 'tags') AS t(value)"
    )
    db.execute(
        text(
            "INSERT INTO peer_tags SELECT DISTINCT t.value, p.skill_id FROM peer p "
            f"JOIN versions v ON v.id = p.version_id CROSS JOIN {each}"
        )
    )
    if not sqlite:
        db.execute(text("CREATE INDEX peer_by_words ON peer USING gin (words)"))
        return
    db.execute(text("CREATE VIRTUAL TABLE peer_words USING fts5 (words, content='')"))
    db.execute(
        text(
            f"INSERT INTO peer_words (rowid, words) SELECT p.skill_id, {_SAID} FROM peer p "
            "JOIN versions v ON v.id = p.version_id JOIN skills s ON s.id = p.skill_id"
        )
    )


def search(db: Connection, caller: Caller, asked: Asked, limit: int) -> int:
    """The first page of a search; how many skills it has."""
    sqlite = db.dialect.name == "sqlite"
    tables, where, given = "peer p", [], dict[str, Any]()
    if asked.q and sqlite:
        tables += " JOIN peer_words w ON w.rowid = p.skill_id"
        where.append("peer_words MATCH :q")
        given["q"] = " ".join(f'"{word}"' for word in asked.q.split())
    elif asked.q:
        where.append("p.words @@ plainto_tsquery('simple', :q)")
        given["q"] = asked.q
    for name in ("task", "robot", "license"):
        if getattr(asked, name):
            where.append(f"p.{name} = :{name}")
            given[name] = getattr(asked, name)
    for i, tag in enumerate(asked.tags):
        where.append(f"p.skill_id IN (SELECT skill_id FROM peer_tags WHERE tag = :tag{i})")
        given[f"tag{i}"] = tag
    if asked.success:
        where.append("p.bound >= :success")
        given["success"] = asked.success
    seen = ["p.visibility = 'public'"]
    if caller.account is not None:
        seen.append("p.visibility = 'network'")
    seen += [f"p.org_id = {org}" for org in caller.reads]
    where.append(f"({' OR '.join(seen)})")
    query = (
        "SELECT s.name, v.version, v.digest, v.title, v.description, v.robot, v.facets, v.rate, p.bound "
        f"FROM {tables} JOIN versions v ON v.id = p.version_id JOIN skills s ON s.id = p.skill_id "
        f"WHERE {' AND '.join(where)} ORDER BY p.bound DESC LIMIT {limit + 1}"
    )
    return len(db.execute(text(query), given).all())
