"""Registries to search in: rows as the server would have written them, entered in bulk.

Nothing is signed and no blob is stored: a search, a resolve and "what can my robot run" read neither. What
the index holds is made by the server's own `listing.complete`. The same seed gives the same skills, and a
larger registry begins with the skills of a smaller one.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import numpy as np
from sqlalchemy import Connection, delete

from neuraverse.interface import Interface, Offer, Requirements, Signal
from neuraverse.manifest import wilson_lower
from neuraverse.registry.database import Database
from neuraverse.registry.finding.listing import complete
from neuraverse.registry.tables import listings, postings, rankings, standings
from neuraverse.registry.tenants.access import digest
from neuraverse.versions import order_key

TENANTS, VERSIONS, INTERFACES, VOCABULARY = 50, 10, 2000, 20_000
NEVER = ("lefthanded", "righthanded")  # each skill has one of them, none has both
ROBOTS = [f"{make}{size}" for make in ("ur", "panda", "iiwa", "gen", "xarm") for size in (3, 5, 7, 10, 16)]
LICENSES = ("Apache-2.0", "MIT", "CC-BY-4.0", "LicenseRef-Proprietary")
READERS = {"anna": (1,), "bert": (2, 3, 4)}
"""Who searches, and the ids of the organisations that each belongs to."""
Batch = tuple[str, Sequence[str], list[tuple[Any, ...]]]
"""A table, its columns and rows."""
_CHUNK = 2000
_VERSION = (
    *("id", "skill_id", "version", "prerelease", "order_key", "digest", "publisher", "interface"),
    *("title", "description", "robot", "facets", "rate", "lower", "n", "field_n", "field_successes"),
    "created_at",
)
_ORDER = [order_key(f"1.{j}.0") for j in range(VERSIONS)]
_PUBLISHER = "0" * 64
_AT = "2026-01-01T00:00:00.000Z"
_SIGNALS = [
    Signal(name=f"signal_{i}", shape=((i % 7) + 1,), unit=("m", "rad", "N", "m/s", "1")[i % 5], frame="W")
    for i in range(40)
]
_ACTIONS = [
    Signal(name=f"command_{i}", shape=((i % 7) + 1,), unit=("m/s", "rad/s", "1")[i % 3], frame="W")
    for i in range(8)
]


@dataclass(frozen=True, kw_only=True)
class World:
    """What registries are filled from.

    Attributes:
        seed: Of everything that is random.
        words: The vocabulary, the most common first.
        interfaces: All that skills have.
    """

    seed: int
    words: list[str]
    interfaces: list[Interface]


def world(seed: int = 0) -> World:
    """A vocabulary and interfaces."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = list(dict.fromkeys("".join(rng.choice(syllables, 3)) for _ in range(2 * VOCABULARY)))[:VOCABULARY]
    found: dict[str, Interface] = {}
    while len(found) < INTERFACES:
        made = _interface(rng)
        found[made.digest()] = made
    return World(seed=seed, words=words, interfaces=list(found.values()))


def _interface(rng: np.random.Generator) -> Interface:
    # The first signals are those that most cells measure, so that some interfaces fit many robots.
    some = sorted({int(i) for i in rng.geometric(0.12, rng.integers(2, 8)) - 1 if i < len(_SIGNALS)}) or [0]
    return Interface(
        observation=tuple(_SIGNALS[i] for i in some),
        action=(_ACTIONS[min(int(rng.geometric(0.6)) - 1, len(_ACTIONS) - 1)],),
        rate_hz=float(rng.choice((10, 20, 50, 100, 250, 500))),
        requires=Requirements(
            reach_m=round(float(rng.uniform(0.2, 1.2)), 2),
            linear_speed_m_s=round(float(rng.uniform(0.05, 1.0)), 2),
            wrench_sensor=bool(rng.random() < 0.2),
        ),
    )


def offer(rng: np.random.Generator) -> Offer:
    """A robot that nobody has seen before."""
    measured = int(rng.integers(8, len(_SIGNALS)))
    return Offer(
        robot=f"robot-{rng.integers(1 << 40)}",
        max_rate_hz=float(rng.uniform(20, 1000)),
        reach_m=float(rng.uniform(0.4, 1.5)),
        linear_speed_m_s=float(rng.uniform(0.2, 2.0)),
        angular_speed_rad_s=3.0,
        wrench_sensor=bool(rng.random() < 0.5),
        observation=tuple(_SIGNALS[:measured]),
        action=tuple(_ACTIONS[: int(rng.integers(1, len(_ACTIONS)))]),
    )


def rows(made: World, start: int, stop: int) -> Iterator[Batch]:
    """Rows for the skills of these numbers; with the first skill, also those that all need."""
    if start == 0:
        orgs = [(i + 1, f"org-{i}", _AT, True, "public", '["stable"]') for i in range(TENANTS)]
        yield "orgs", ("id", "name", "created_at", "managed", "visibility", "protected"), orgs
        faces = [(i + 1, each.digest(), json.dumps(each.to_dict())) for i, each in enumerate(made.interfaces)]
        yield "interfaces", ("id", "digest", "document"), faces
        yield from _accounts()
    for chunk in range(start // _CHUNK, -(-stop // _CHUNK)):
        made_of_chunk = _skills(made, chunk)
        kept = slice(max(start - chunk * _CHUNK, 0), stop - chunk * _CHUNK)
        for table, columns, per_skill in made_of_chunk:
            yield table, columns, [row for some in per_skill[kept] for row in some]


def _accounts() -> Iterator[Batch]:
    """One person for each of `READERS`."""
    people = [(i + 1, "person", name, _AT) for i, name in enumerate(READERS)]
    yield "accounts", ("id", "kind", "name", "created_at"), people
    belongs = [(org, i + 1, "reader", _AT) for i, orgs in enumerate(READERS.values()) for org in orgs]
    yield "members", ("org_id", "account_id", "role", "created_at"), belongs
    columns = ("id", "hash", "account_id", "scopes", "label", "created_at", "expires_at")
    given = [
        (f"token-{name}", digest(token(name)), i + 1, '["read"]', "", _AT, "2099-01-01T00:00:00.000Z")
        for i, name in enumerate(READERS)
    ]
    yield "tokens", columns, given


def token(name: str) -> str:
    """The token of a reader."""
    return f"nvt_{name}"


def name_of(number: int) -> str:
    """``org/skill`` of the skill of a number, and whose it is."""
    return f"org-{number % TENANTS}/skill-{number}"


def visibility_of(number: int) -> str:
    """A third is private, a twelfth for whoever signs in; each organisation has of each kind."""
    turn = number // TENANTS % 12
    return "private" if turn < 4 else "network" if turn == 4 else "public"


def _skills(made: World, chunk: int) -> list[tuple[str, Sequence[str], list[list[tuple[Any, ...]]]]]:
    """Rows of `_CHUNK` skills, those of each in a list."""
    rng = np.random.default_rng((made.seed, 1, chunk))
    commonness = 1.0 / np.arange(3, VOCABULARY + 3)
    commonness /= commonness.sum()
    picked = rng.choice(VOCABULARY, (_CHUNK, 24), p=commonness)
    face = np.minimum(rng.geometric(0.003, _CHUNK) - 1, INTERFACES - 1)
    episodes = rng.choice((100, 256, 500, 1000), (_CHUNK, VERSIONS))
    successes = rng.binomial(episodes, rng.beta(8, 2, (_CHUNK, 1)))
    in_field = np.where(rng.random(_CHUNK) < 0.05, rng.integers(100, 5000, _CHUNK), 0)
    went_well = rng.binomial(in_field, rng.beta(8, 2, _CHUNK))
    skills, versions, aliases = [], [], []
    for i in range(_CHUNK):
        number = chunk * _CHUNK + i
        skill, first = number + 1, number * VERSIONS + 1
        name, interface = name_of(number), made.interfaces[face[i]].digest()
        skills.append([(skill, number % TENANTS + 1, name, _AT, visibility_of(number))])
        text = [made.words[w] for w in picked[i]]
        title = " ".join((*text[:6], NEVER[number % 2]))
        facets = {"task": f"lab_envs:lab/{text[0].title()}-v0", "license": LICENSES[number % 7 % 4]}
        facets |= {"tags": text[3:6], "parents": []}
        said = (title, " ".join(text[6:]), ROBOTS[int(picked[i, 7]) % len(ROBOTS)], json.dumps(facets))
        mine = []
        for j in range(VERSIONS):
            n, k = int(episodes[i, j]), int(successes[i, j])
            known = f"sha256:{hashlib.sha256(f'{number}-{j}'.encode()).hexdigest()}"
            field = (int(in_field[i]), int(went_well[i])) if j == VERSIONS - 1 else (0, 0)
            mine.append(
                (
                    *(first + j, skill, f"1.{j}.0", False, _ORDER[j], known, _PUBLISHER, interface, *said),
                    *(k / n, wilson_lower(k, n), n, *field, _AT),
                )
            )
        versions.append(mine)
        aliases.append([(skill, "stable", first + VERSIONS // 2, _AT)])
    return [
        ("skills", ("id", "org_id", "name", "created_at", "visibility"), skills),
        ("versions", _VERSION, versions),
        ("aliases", ("skill_id", "alias", "version_id", "updated_at"), aliases),
    ]


async def fill(url: str, made: World, start: int, stop: int) -> None:
    """Enter the skills of these numbers, and list all that are there anew.

    Args:
        url: Address of the database.
        made: What from.
        start: The number of skills that are there.
        stop: The number that shall be there.
    """
    database = Database(url)
    await database.open()
    try:
        await (_into_sqlite if url.startswith("sqlite") else _into_postgres)(url, rows(made, start, stop))
        await database.write(_list_anew)
    finally:
        await database.close()
    if not url.startswith("sqlite"):
        connection = await asyncpg.connect(url)
        await connection.execute("VACUUM ANALYZE")  # as PostgreSQL does by itself, soon after
        await connection.close()


def _list_anew(db: Connection) -> None:
    for table in (listings, postings, standings, rankings):
        db.execute(delete(table))
    complete(db)


async def _into_sqlite(url: str, batches: Iterator[Batch]) -> None:
    db = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("BEGIN")
    for table, columns, values in batches:
        marks = ",".join("?" * len(columns))
        db.executemany(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", values)
    db.execute("COMMIT")
    db.close()


async def _into_postgres(url: str, batches: Iterator[Batch]) -> None:
    connection = await asyncpg.connect(url)
    for table, columns, values in batches:
        await connection.copy_records_to_table(table, columns=columns, records=values)
    await connection.close()
