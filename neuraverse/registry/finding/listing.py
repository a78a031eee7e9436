"""How skills come into the index that a search reads: what each is found by, and how well it is proven.

A skill is listed with its latest active version, in one scope: everybody's, that of whoever signs in, or its
organisation's. A search reads rows of the scopes that its caller may see and of no others, so that what is
not theirs costs them no time, either.

In its scope a skill has a place: 0, 1, 2 and so on, without gaps. Rows are made of that:

- ``postings``, by scope, term and block of `BLOCK` places: which of them have the term, as a bit for each, or
  as numbers while they are few. A term is a word or a facet, and stands there as a hash of 64 bits.
- ``standings``, by scope and shelf of `SHELF` places: rank, skill and interface of each, as `STANDING`.
  The server holds them in memory, in the order of rank (`ranking`); ``rankings`` says whether they changed.

So words that many skills have are intersected as bits, and the best of what is left are found in memory: a
search reads the same few rows whether the words are common, rare, or never occur together, and what changes
the rank of a skill rewrites one row. An index of words by rank would have to walk all of the rarest word's
skills if there are few with the other one, too, and to rewrite a row for each word of a skill.

The rank is the evidence, the best first: Wilson's 95 % lower bound of success, never the rate that somebody
claims. It comes from simulation until robots have reported `FIELD_EPISODES`, then from the field alone. Among
equals the order is a random one, which stays: ids would tell how many skills others have.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Row,
    String,
    and_,
    bindparam,
    cast,
    delete,
    insert,
    select,
    update,
)

from neuraverse.interface import Interface
from neuraverse.manifest import SkillManifest, wilson_lower
from neuraverse.registry.index import newest
from neuraverse.registry.tables import (
    ACTIVE,
    NETWORK,
    PRIVATE,
    PUBLIC,
    interfaces,
    listings,
    manifests,
    orgs,
    postings,
    rankings,
    skills,
    standings,
    versions,
)

EVERYBODY, SIGNED_IN = 0, -1
"""Scopes of public skills and of those for whoever signs in. A private one's is its organisation's id."""
FIELD_EPISODES = 100
SHELF = 240  # a row of 4 kB: PostgreSQL keeps it in its page
BLOCK = 16 * SHELF
STANDING = np.dtype([("rank", "<i8"), ("skill", "<u4"), ("interface", "<u4")])
MAX_WORDS = 256  # of one skill; further words of its description do not count
MAX_WORD = 64  # characters; of a longer word these
_SURE = 10**9  # a bound of one, as whole number
_TIES = 32  # bits of a rank that settle the order among equals
# Bits of a scope's first stamp, and of each step to the next one. Both are drawn, so that none comes twice
# where a database is filled anew, or loses its last changes, under a server.
_FIRST_STAMP, _STEP = 40, 20
LAST_TIE = (1 << _TIES) - 1
_BATCH = 500
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")

# Statements of each publish, made once: making one takes as long as carrying it out.
_FOUND_BY = (
    *(skills.c.name, versions.c.title, versions.c.description, versions.c.robot, versions.c.interface),
    *(versions.c.facets, interfaces.c.id.label("number")),
)
_PROVEN_BY = (versions.c.lower, versions.c.n, versions.c.field_n, versions.c.field_successes)
_LATEST = newest(
    select(versions.c.id, *_FOUND_BY, *_PROVEN_BY)
    .select_from(versions)
    .join(skills)
    .outerjoin(interfaces, interfaces.c.digest == versions.c.interface),
    bindparam("skill"),
)
_LISTED = (
    select(listings, *_FOUND_BY)
    .select_from(listings)
    .join(versions)
    .join(skills, skills.c.id == listings.c.skill_id)
    .outerjoin(interfaces, interfaces.c.digest == versions.c.interface)
)
_LISTED_SKILL = _LISTED.where(listings.c.skill_id == bindparam("skill"))
_LISTED_PLACE = _LISTED.where(listings.c.scope == bindparam("scope"), listings.c.place == bindparam("place"))
_MARKED = select(postings.c.term, postings.c.places).where(
    postings.c.scope == bindparam("scope"),
    postings.c.block == bindparam("block"),
    postings.c.term.in_(bindparam("terms", expanding=True)),
)
_SCOPE = select(rankings.c.size, rankings.c.stamp).where(rankings.c.scope == bindparam("scope"))
_POSTING = and_(
    postings.c.scope == bindparam("at_scope"),
    postings.c.term == bindparam("at_term"),
    postings.c.block == bindparam("at_block"),
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a version is proven.

    Attributes:
        bound: Wilson's 95 % lower bound of its success.
        n: Episodes behind it.
        source: ``simulation`` or ``field``.
    """

    bound: float
    n: int
    source: str

    @classmethod
    def of(cls, row: Any) -> Evidence:
        """That of a row of `versions`."""
        if row.field_n < FIELD_EPISODES:
            return cls(bound=row.lower, n=row.n, source="simulation")
        return cls(bound=wilson_lower(row.field_successes, row.field_n), n=row.field_n, source="field")


def facets_of(manifest: SkillManifest) -> dict[str, Any]:
    """What a search may narrow by, besides the columns of a version: for its row."""
    return {
        "task": manifest.task.env_id,
        "license": manifest.license,
        "tags": list(manifest.tags),
        "parents": list(manifest.parents),
    }


def words(text: str) -> Iterator[str]:
    """Words of a text: letters and digits, with the hyphens between them; without case.

    Compatibility forms are one (NFKC): ``ﬁ`` and ``fi``, full-width and plain letters.
    """
    for found in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        yield found.group()[:MAX_WORD]


@functools.lru_cache(maxsize=100_000)
def term(text: str) -> int:
    """How a word, or a facet as ``name=value``, stands in the index: 64 bits, signed."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little", signed=True)


def terms_of(row: Any) -> frozenset[int]:
    """All terms that a version is found by; its row has the columns of `_FOUND_BY`."""
    facets = row.facets
    texts = (row.name, row.title, *facets["tags"], row.robot, facets["task"], row.description)
    found: dict[str, None] = {}
    for word in (each for text in texts for each in words(text)):
        if len(found) >= MAX_WORDS:
            break
        found[word] = None
        if "-" in word:
            found |= dict.fromkeys(word.split("-"))
    pairs = [("org", row.name.partition("/")[0]), ("robot", row.robot), ("interface", row.interface)]
    pairs += [("task", facets["task"]), ("license", facets["license"])]
    pairs += [("tag", tag) for tag in facets["tags"]] + [("parent", parent) for parent in facets["parents"]]
    return frozenset(map(term, [*found, *(f"{name}={value}" for name, value in pairs)]))


def scope_of(visibility: str, org_id: int) -> int:
    """The scope of a skill."""
    return {PUBLIC: EVERYBODY, NETWORK: SIGNED_IN}.get(visibility, org_id)


def rank_of(bound: float, tie: int = 0) -> int:
    """The rank of a bound; less is better."""
    return (_SURE - round(bound * _SURE)) << _TIES | tie


def keep_interface(db: Connection, digest: str, interface: Interface) -> None:
    """Enter an interface, if it is new."""
    if db.scalar(select(interfaces.c.id).where(interfaces.c.digest == digest)) is None:
        db.execute(insert(interfaces), {"digest": digest, "document": interface.to_dict()})


def relist(db: Connection, skill_id: int) -> None:
    """Bring the index up to date with a skill whose versions, visibility or field reports have changed.

    Args:
        db: A transaction that writes.
        skill_id: The skill.
    """
    skill = db.execute(select(skills).where(skills.c.id == skill_id)).one()
    new = db.execute(_LATEST, {"skill": skill_id}).one_or_none()
    old = db.execute(_LISTED_SKILL, {"skill": skill_id}).one_or_none()
    scope = scope_of(skill.visibility, skill.org_id)
    if old is not None and (new is None or scope != old.scope):
        _leave(db, old)
        old = None
    if new is None:
        return
    rank = rank_of(Evidence.of(new).bound, secrets.randbits(_TIES) if old is None else old.rank & LAST_TIE)
    if old is not None and (old.version_id, old.rank) == (new.id, rank):
        return
    while _taken(db, scope, rank, skill_id):
        rank = rank & ~LAST_TIE | secrets.randbits(_TIES)
    values = {"version_id": new.id, "rank": rank}
    has, had = terms_of(new), frozenset[int]()
    if old is None:
        place = _top(db, scope) + 1
        db.execute(insert(listings), {"skill_id": skill_id, "scope": scope, "place": place, **values})
    else:
        place, had = old.place, terms_of(old)
        db.execute(update(listings).where(listings.c.skill_id == skill_id).values(values))
    _mark(db, scope, place, had - has, False)
    _mark(db, scope, place, has - had, True)
    _stand(db, scope, place, (rank, skill_id, new.number or 0))


def _leave(db: Connection, old: Row[Any]) -> None:
    """Take a skill out of its scope; the one at the last place takes its place, so that there is no gap."""
    scope, top = old.scope, _top(db, old.scope)
    _mark(db, scope, old.place, terms_of(old), False)
    db.execute(delete(listings).where(listings.c.skill_id == old.skill_id))
    if top != old.place:
        last = db.execute(_LISTED_PLACE, {"scope": scope, "place": top}).one()
        _mark(db, scope, top, terms_of(last), False)
        _mark(db, scope, old.place, terms_of(last), True)
        db.execute(update(listings).where(listings.c.skill_id == last.skill_id).values(place=old.place))
        _stand(db, scope, old.place, (last.rank, last.skill_id, last.number or 0))
    _stand(db, scope, top, None)


def _top(db: Connection, scope: int) -> int:
    """The last place of a scope; -1 if it is empty."""
    found = db.execute(_SCOPE, {"scope": scope}).one_or_none()
    return -1 if found is None else int(found.size) - 1


def _taken(db: Connection, scope: int, rank: int, skill_id: int) -> bool:
    other = and_(listings.c.scope == scope, listings.c.rank == rank, listings.c.skill_id != skill_id)
    return db.scalar(select(listings.c.skill_id).where(other)) is not None


def _mark(db: Connection, scope: int, place: int, terms: Iterable[int], has: bool) -> None:
    """Note that the skill at a place has some terms, or no longer has them."""
    block, at = divmod(place, BLOCK)
    asked = sorted(terms)
    found = db.execute(_MARKED, {"scope": scope, "block": block, "terms": asked}) if asked else ()
    held = {row.term: bytes(row.places) for row in found}
    new, changed, empty = [], [], []
    for each in asked:
        flags = np.unpackbits(bits(held.get(each, b"")))
        flags[at] = has
        places = pack(np.flatnonzero(flags))
        key = {"at_scope": scope, "at_term": each, "at_block": block}
        if each not in held:
            new.append({"scope": scope, "term": each, "block": block, "places": places})
        elif places:
            changed.append({**key, "places": places})
        else:
            empty.append(key)
    if new:
        db.execute(insert(postings), new)
    if changed:
        db.execute(update(postings).where(_POSTING), changed)
    if empty:
        db.execute(delete(postings).where(_POSTING), empty)


def bits(places: bytes) -> npt.NDArray[np.uint8]:
    """Places of a block as they are stored, as bits; shape (BLOCK // 8,)."""
    if len(places) == BLOCK // 8:
        return np.frombuffer(places, np.uint8)
    flags = np.zeros(BLOCK, np.uint8)
    flags[np.frombuffer(places, "<u2")] = 1
    return np.packbits(flags)


def pack(places: npt.NDArray[np.intp]) -> bytes:
    """Places of a block as they are stored: as bits, or, if that is shorter, as numbers of two bytes.

    Args:
        places: Counted from the block's first; ascending.
    """
    if 2 * len(places) < BLOCK // 8:
        return places.astype("<u2").tobytes()
    flags = np.zeros(BLOCK, np.uint8)
    flags[places] = 1
    return np.packbits(flags).tobytes()


def _stand(db: Connection, scope: int, place: int, standing: tuple[int, int, int] | None) -> None:
    """Write what stands at a place; or, with nothing, that the scope ends before it."""
    shelf, at = divmod(place, SHELF)
    here = and_(standings.c.scope == scope, standings.c.shelf == shelf)
    held = db.scalar(select(standings.c.places).where(here))
    found = np.frombuffer(b"" if held is None else bytes(held), STANDING)
    if standing is None:
        found = found[:at]
    else:
        found = np.concatenate((found[:at], np.array([standing], STANDING), found[at + 1 :]))
    stamp = _count_change(db, scope, place, standing is not None)
    if not len(found):
        db.execute(delete(standings).where(here))
        return
    values = {"stamp": stamp, "places": found.tobytes()}
    if held is None:
        db.execute(insert(standings), {"scope": scope, "shelf": shelf, **values})
    else:
        db.execute(update(standings).where(here).values(values))


def _count_change(db: Connection, scope: int, place: int, is_there: bool) -> int:
    """Note that something else stands at a place, or that the scope ends before it; the stamp of that."""
    before = db.execute(_SCOPE, {"scope": scope}).one_or_none()
    if before is None:
        stamp = secrets.randbits(_FIRST_STAMP)
        db.execute(insert(rankings), {"scope": scope, "size": place + is_there, "stamp": stamp})
        return stamp
    stamp = int(before.stamp) + 1 + secrets.randbits(_STEP)
    size = max(int(before.size), place + 1) if is_there else place
    db.execute(update(rankings).where(rankings.c.scope == scope).values(size=size, stamp=stamp))
    return stamp


def complete(db: Connection) -> None:
    """List all skills of a registry in which none is listed, as after an upgrade or from a backup."""
    if db.scalar(select(listings.c.skill_id).limit(1)) is not None:
        return
    _describe(db)
    for scope in (EVERYBODY, SIGNED_IN, *db.scalars(select(orgs.c.id).order_by(orgs.c.id)).all()):
        _list(db, scope)


def _describe(db: Connection) -> None:
    """Fill in facets and interfaces of versions that were published before anybody could search by them."""
    query = (
        select(versions.c.id, versions.c.interface, manifests.c.manifest)
        .join(manifests)
        .where(cast(versions.c.facets, String) == "{}", versions.c.id > bindparam("after"))
        .order_by(versions.c.id)
        .limit(_BATCH)
    )
    change = update(versions).where(versions.c.id == bindparam("which"))
    change = change.values(facets=bindparam("said", type_=JSON))
    after = 0
    while rows := db.execute(query, {"after": after}).all():
        after, said = rows[-1].id, []
        for row in rows:
            manifest = SkillManifest.parse(bytes(row.manifest))
            keep_interface(db, row.interface, manifest.interface)
            said.append({"which": row.id, "said": facets_of(manifest)})
        db.execute(change, said)


def _list(db: Connection, scope: int) -> None:
    """List all skills of one scope, block by block."""
    inner = versions.alias()
    latest = select(inner.c.id).where(inner.c.skill_id == skills.c.id, inner.c.state == ACTIVE)
    latest = latest.order_by(inner.c.prerelease, inner.c.order_key.desc()).limit(1)
    query = (
        select(skills.c.id.label("skill_id"), versions.c.id, *_FOUND_BY, *_PROVEN_BY)
        .select_from(skills)
        .join(versions, versions.c.id == latest.scalar_subquery())
        .outerjoin(interfaces, interfaces.c.digest == versions.c.interface)
        .where(_in_scope(scope), skills.c.id > bindparam("after"))
        .order_by(skills.c.id)
        .limit(BLOCK)
    )
    after, block, ranks, stamp = 0, 0, set[int](), secrets.randbits(_FIRST_STAMP)
    while rows := db.execute(query, {"after": after}).all():
        after, first = rows[-1].skill_id, block * BLOCK
        marked: dict[int, list[int]] = {}
        listed, standing = [], np.zeros(len(rows), STANDING)
        for at, row in enumerate(rows):
            rank = rank_of(Evidence.of(row).bound, secrets.randbits(_TIES))
            while rank in ranks:
                rank = rank & ~LAST_TIE | secrets.randbits(_TIES)
            ranks.add(rank)
            standing[at] = (rank, row.skill_id, row.number or 0)
            values = {"skill_id": row.skill_id, "version_id": row.id, "scope": scope}
            listed.append({**values, "place": first + at, "rank": rank})
            for each in terms_of(row):
                marked.setdefault(each, []).append(at)
        db.execute(insert(listings), listed)
        key = {"scope": scope, "block": block}
        packed = [{**key, "term": each, "places": pack(np.array(at))} for each, at in sorted(marked.items())]
        db.execute(insert(postings), packed)
        shelves = []
        for at in range(0, len(rows), SHELF):
            key = {"scope": scope, "shelf": (first + at) // SHELF}
            shelves.append({**key, "stamp": stamp, "places": standing[at : at + SHELF].tobytes()})
        db.execute(insert(standings), shelves)
        block += 1
    if ranks:
        db.execute(insert(rankings), {"scope": scope, "size": len(ranks), "stamp": stamp})


def _in_scope(scope: int) -> ColumnElement[bool]:
    """Skills of a scope."""
    if scope == EVERYBODY:
        return skills.c.visibility == PUBLIC
    if scope == SIGNED_IN:
        return skills.c.visibility == NETWORK
    return and_(skills.c.visibility == PRIVATE, skills.c.org_id == scope)
