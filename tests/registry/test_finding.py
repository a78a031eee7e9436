"""Finding skills: words, facets, who sees what, order, pages, what a robot can run, and the index behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from neuraverse.interface import Interface, Offer, Requirements, Signal
from neuraverse.manifest import Evaluation, wilson_lower
from neuraverse.registry import create_app, tables
from neuraverse.registry.database import _begin, _set_up
from neuraverse.registry.finding import fitting, listing, ranking, searches
from neuraverse.registry.finding.fitting import Fitting
from neuraverse.registry.finding.ranking import Ranking, Rankings
from neuraverse.registry.finding.searches import Asked
from neuraverse.registry.tenants.access import ROLES, Caller
from neuraverse.versions import order_key
from tests.conftest import INTERFACE, OFFER
from tests.registry.test_publish import TAR, parcel
from tests.registry.test_tenants import World

ORGS = ("acme", "rival", "third")
NOBODY = Caller()


def member(*orgs):
    ids = [ORGS.index(org) + 1 for org in orgs]
    return Caller(account=1, name="anna", rights=dict.fromkeys(ids, ROLES["reader"]))


class Shelf:
    """An index in memory, written as the server writes it: rows, and then `relist`."""

    # One for all, in whose transaction nothing is ever committed; it keeps the statements that it made.
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    sa.event.listen(engine, "connect", _set_up)
    sa.event.listen(engine, "begin", _begin)
    tables.metadata.create_all(engine)

    def __init__(self):
        self.db = self.engine.connect()
        at = {"created_at": tables.now()}
        self.insert(tables.registry, id="r", feed="0123abcd", **at)
        for number, org in enumerate(ORGS):
            self.insert(tables.orgs, id=number + 1, name=org, managed=True, **at)
        self.numbers = itertools.count(1)
        self.rankings = Rankings()

    def close(self):
        self.db.rollback()
        self.db.close()

    def insert(self, table, **values):
        self.db.execute(sa.insert(table), values)

    def scalar(self, *what, **where):
        return self.db.scalar(sa.select(*what).filter_by(**where))

    def publish(
        self,
        name,
        version="1.0.0",
        *,
        visibility="public",
        title="",
        description="",
        robot="ur5e",
        interface=INTERFACE,
        score=(95, 100),
        **facets,
    ):
        """A version, of a new skill if there is none of that name; the skill's id."""
        skill = self.scalar(tables.skills.c.id, name=name)
        if skill is None:
            skill, org = next(self.numbers), ORGS.index(name.partition("/")[0]) + 1
            row = {"org_id": org, "visibility": visibility, "created_at": tables.now()}
            self.insert(tables.skills, id=skill, name=name, **row)
        listing.keep_interface(self.db, interface.digest(), interface)
        said = {"task": "lab:lab/Weld-v0", "license": "MIT", "tags": [], "parents": []} | facets
        self.insert(
            tables.versions,
            skill_id=skill,
            version=version,
            prerelease="-" in version,
            order_key=order_key(version),
            digest=f"sha256:{next(self.numbers):064x}",
            publisher="",
            interface=interface.digest(),
            title=title,
            description=description,
            robot=robot,
            rate=score[0] / score[1],
            lower=wilson_lower(*score),
            n=score[1],
            facets=said,
            created_at=tables.now(),
        )
        listing.relist(self.db, skill)
        return skill

    def change(self, table, where, relist=0, **values):
        self.db.execute(sa.update(table).filter_by(**where).values(**values))
        if relist:
            listing.relist(self.db, relist)

    def set_version(self, skill, version, **values):
        self.change(tables.versions, {"skill_id": skill, "version": version}, skill, **values)

    def show(self, skill, visibility):
        self.change(tables.skills, {"id": skill}, skill, visibility=visibility)

    def page(self, caller=NOBODY, *, cursor="", limit=100, **asked):
        return searches.search(self.db, caller, self.rankings, Asked(**asked), cursor, limit)

    def names(self, caller=NOBODY, **asked):
        return [each["name"] for each in self.page(caller, **asked)["skills"]]

    def content(self):
        """What is in the index, whatever the places: scope, skill, terms, rank without its tie, interface."""
        found = {}
        db = self.db
        for row in db.execute(sa.select(tables.listings)):
            found[row.scope, row.place] = SimpleNamespace(skill=row.skill_id, terms=set(), standing=None)
        for row in db.execute(sa.select(tables.postings)):
            places = np.flatnonzero(np.unpackbits(listing.bits(row.places)))
            assert len(places), "a row of no places is kept"
            for place in places.tolist():
                found[row.scope, row.block * listing.BLOCK + place].terms.add(row.term)
        counted = {row.scope: row for row in db.execute(sa.select(tables.rankings))}
        for row in db.execute(sa.select(tables.standings)):
            standing = np.frombuffer(row.places, listing.STANDING)
            assert row.stamp <= counted[row.scope].stamp
            for at, each in enumerate(standing):
                here = found[row.scope, row.shelf * listing.SHELF + at]
                assert (here.standing, here.skill) == (None, int(each["skill"]))
                here.standing = int(each["rank"]) >> 32, int(each["interface"])
        scopes = {scope: [p for s, p in found if s == scope] for scope, _ in found}
        assert all(sorted(places) == list(range(len(places))) for places in scopes.values()), "there are gaps"
        sizes = {scope: row.size for scope, row in counted.items() if row.size}
        assert sizes == {scope: len(places) for scope, places in scopes.items()}
        return {
            (scope, each.skill, frozenset(each.terms), each.standing) for (scope, _), each in found.items()
        }

    def rebuilt(self):
        """The same after all of it was made anew."""
        for table in (tables.listings, tables.postings, tables.standings, tables.rankings):
            self.db.execute(sa.delete(table))
        listing.complete(self.db)
        return self.content()


@pytest.fixture
def shelf():
    with contextlib.closing(Shelf()) as made:
        yield made


def make_small(patch):
    """Blocks and shelves so small that a handful of skills fills several."""
    patch.setattr(listing, "SHELF", 3)
    patch.setattr(listing, "BLOCK", 48)
    patch.setattr(searches, "BLOCK", 48)
    patch.setattr(ranking, "_FEW", 2)
    patch.setattr(ranking, "_FIRST", 1)


# --- words and facets


def test_words_are_letters_and_digits_and_hyphens_between():
    assert list(listing.words("Follow a weld-seam, 100% (UR5e)_v2!")) == [
        *("follow", "a", "weld-seam", "100", "ur5e", "v2")
    ]
    assert list(listing.words("ﬁne ＵＲ STRASSE straße É́")) == ["fine", "ur", "strasse", "strasse", "é"]
    assert list(listing.words("-- a--b -c- 溶接")) == ["a", "b", "c", "溶接"]
    assert list(listing.words("x" * 100)) == ["x" * listing.MAX_WORD]


def test_all_words_must_be_there_whole(shelf):
    shelf.publish("acme/weld-seam", title="Follow a Seam", tags=["MIG welding"], description="on thin sheet")
    shelf.publish("acme/grind", title="Grind seams flat", robot="panda")
    for q, names in {
        "seam": ["acme/weld-seam"],
        "SEAM follow": ["acme/weld-seam"],
        "weld-seam": ["acme/weld-seam"],
        "mig thin lab": ["acme/weld-seam"],
        "panda": ["acme/grind"],
        "weld": ["acme/grind", "acme/weld-seam"],  # of the task, Weld-v0
        "seam grind": [],
        "sea": [],
        "seam-weld": [],
        "%%%": [],
    }.items():
        assert sorted(shelf.names(q=q)) == names, q
    assert len(shelf.names(q=" \n")) == 2


def test_no_description_fills_the_index(shelf):
    many = " ".join(f"w{i}" for i in range(10_000))
    skill = shelf.publish("acme/a", title="first", description=many, tags=[f"t{i}" for i in range(64)])
    count = shelf.scalar(sa.func.count(), sa.text("1 FROM postings"))
    assert count < listing.MAX_WORDS + 200
    assert shelf.names(q="first w0 t63") == ["acme/a"]
    assert shelf.names(q="w9999") == []
    assert skill == 1


def test_facets_narrow(shelf):
    parent = f"sha256:{'a' * 64}"
    other = dataclasses.replace(INTERFACE, rate_hz=10.0)
    shelf.publish("acme/a", tags=["red", "Big One"], robot="UR5e", license="Apache-2.0", parents=[parent])
    shelf.publish("rival/b", tags=["red"], task="lab:lab/Grind-v0", interface=other, score=(50, 100))
    a, b = ["acme/a"], ["rival/b"]
    for asked, names in [
        ({"tags": ("red",)}, a + b),
        ({"tags": ("red", "big one")}, a),
        ({"tags": ("big",)}, []),
        ({"robot": "ur5e"}, a + b),  # without case
        ({"license": "apache-2.0"}, a),
        ({"org": "rival"}, b),
        ({"task": "lab:lab/Grind-v0"}, b),
        ({"interface": other.digest()}, b),
        ({"parent": parent}, a),
        ({"success": 0.8}, a),
        ({"q": "red", "org": "rival"}, b),
        ({"q": "org=rival"}, []),  # a facet is no word
    ]:
        assert shelf.names(**asked) == names, asked


def test_values_of_facets_are_counted(shelf, monkeypatch):
    for i in range(5):
        shelf.publish(f"acme/s{i}", tags=["all", f"t{i % 2}"], robot=f"r{i % 2}", score=(90 + i, 100))
    shelf.publish("rival/hidden", tags=["all"], robot="secret", visibility="private")
    counts = searches.search(shelf.db, NOBODY, shelf.rankings, Asked(q="all"), "", 2, facets=True)["facets"]
    assert (counts["counted"], counts["cut"]) == (5, False)
    assert counts["values"]["tag"] == {"all": 5, "t0": 3, "t1": 2}
    assert counts["values"]["robot"] == {"r0": 3, "r1": 2}
    assert counts["values"]["org"] == {"acme": 5}
    assert counts["values"]["interface"] == {INTERFACE.digest(): 5}
    monkeypatch.setattr(searches, "MAX_COUNTED", 3)
    counts = searches.search(shelf.db, NOBODY, shelf.rankings, Asked(), "", 2, facets=True)["facets"]
    assert (counts["counted"], counts["cut"], counts["values"]["robot"]) == (3, True, {"r0": 2, "r1": 1})


# --- order and pages


def test_the_best_proven_come_first_and_the_field_counts_once_it_is_known(shelf):
    sure = shelf.publish("acme/sure", score=(950, 1000))
    shelf.publish("acme/lucky", score=(10, 10))  # claims more
    shelf.publish("acme/poor", score=(500, 1000))
    assert shelf.names() == ["acme/sure", "acme/lucky", "acme/poor"]
    shelf.set_version(sure, "1.0.0", field_n=99, field_successes=0)
    first = shelf.page()["skills"][0]
    assert first["evidence"] == {"bound": wilson_lower(950, 1000), "n": 1000, "source": "simulation"}
    assert first["field"] == {"n": 99, "successes": 0, "lower": 0.0}
    shelf.set_version(sure, "1.0.0", field_n=100, field_successes=60)
    assert shelf.names() == ["acme/lucky", "acme/sure", "acme/poor"]
    second = shelf.page()["skills"][1]
    assert second["evidence"] == {"bound": wilson_lower(60, 100), "n": 100, "source": "field"}
    assert shelf.names(success=0.52) == ["acme/lucky"]


def test_pages_have_each_skill_once_while_others_are_published(shelf, monkeypatch):
    make_small(monkeypatch)
    there = {f"acme/s{i}" for i in range(20)}
    for i, name in enumerate(sorted(there)):
        shelf.publish(name, title="arc", score=(90 + i % 3, 100))
    seen, cursor, more = [], "", itertools.count()
    while cursor is not None:
        page = shelf.page(q="arc", cursor=cursor, limit=3)
        seen += [each["name"] for each in page["skills"]]
        cursor = page["next"]
        for score in ((99, 100), (90, 100), (10, 100)):
            shelf.publish(f"rival/n{next(more)}", title="arc", score=score)
        if len(seen) > 200:
            break
    old = [name for name in seen if name in there]
    assert sorted(old) == sorted(there)
    assert len(set(seen)) == len(seen)


def test_a_cursor_tells_nothing_of_what_others_have(shelf):
    """It carries a bound and a random number, where ids would count the skills of others."""
    for i in range(3):
        shelf.publish(f"acme/s{i}")
    ranks = [int(shelf.page(limit=n)["next"].partition("-")[2]) for n in (1, 2)]
    assert ranks[0] >> 32 == ranks[1] >> 32
    assert min(rank & 0xFFFFFFFF for rank in ranks) > 3


def test_equal_ranks_do_not_meet(shelf, monkeypatch):
    ties = iter((7, 7, 8, 7))
    monkeypatch.setattr(listing.secrets, "randbits", lambda bits: next(ties) if bits == listing._TIES else 0)
    shelf.publish("acme/a")
    shelf.publish("acme/b")  # draws 7, which is taken, then 8
    assert {int(rank) & 0xFF for rank in shelf.db.scalars(sa.select(tables.listings.c.rank))} == {7, 8}
    shelf.publish("acme/c", visibility="private")  # in another scope it does not matter
    assert shelf.scalar(tables.listings.c.rank, skill_id=5) & 0xFF == 7


# --- who sees what


def test_each_finds_what_they_may_see(shelf):
    for org in ("acme", "rival"):
        for visibility in ("public", "network", "private"):
            shelf.publish(f"{org}/{visibility}-one", visibility=visibility, title="arc")
    shared = {"acme/public-one", "rival/public-one"}
    network = shared | {"acme/network-one", "rival/network-one"}
    for asked in ({}, {"q": "arc"}):
        assert set(shelf.names(NOBODY, **asked)) == shared
        assert set(shelf.names(member("third"), **asked)) == network
        assert set(shelf.names(member("acme"), **asked)) == network | {"acme/private-one"}
        everything = network | {"acme/private-one", "rival/private-one"}
        assert set(shelf.names(member("acme", "rival"), **asked)) == everything
    assert shelf.names(member("acme"), q="private") == ["acme/private-one"]
    only_reports = Caller(account=1, name="acme/r", rights={1: frozenset({"report"})})
    assert set(shelf.names(only_reports)) == network


def test_rows_of_others_are_not_read(shelf):
    """So that what somebody may not see takes none of their time."""
    for i in range(10):
        shelf.publish(f"rival/s{i}", visibility="private", title="arc")
    shelf.publish("acme/mine", visibility="private", title="arc weld")
    read = []

    def note(_, cursor, statement, parameters, *rest):
        if any(f"FROM {table}" in statement for table in ("postings", "standings", "rankings")):
            read.append((statement, parameters))

    sa.event.listen(shelf.db, "before_cursor_execute", note)
    caller = member("acme")
    for asked in ({}, {"q": "arc"}, {"q": "arc weld", "success": 0.5}):
        shelf.names(caller, **asked)
    searches.runnable(shelf.db, caller, shelf.rankings, Fitting(), OFFER, Asked(), "", 10)
    terms = {listing.term(word) for word in ("arc", "weld")}
    assert len(read) == 7  # what stands in it is read once
    for statement, parameters in read:
        assert ".scope IN" in statement or "WHERE standings.scope = " in statement
        assert set(parameters) - terms <= {0, -1, 1}, (statement, parameters)


# --- the index follows


def test_a_skill_is_found_by_its_latest_active_version(shelf):
    skill = shelf.publish("acme/a", "1.0.0", title="old")
    shelf.publish("acme/a", "1.1.0", title="new", score=(10, 100))
    shelf.publish("acme/a", "2.0.0-rc.1", title="soon")
    shelf.publish("acme/a", "0.9.0", title="older")
    assert (shelf.names(q="new"), shelf.names(q="old"), shelf.names(q="soon")) == (["acme/a"], [], [])
    shelf.set_version(skill, "1.1.0", state="yanked")
    assert (shelf.names(q="new"), shelf.names(q="old")) == ([], ["acme/a"])
    shelf.set_version(skill, "1.1.0", state="active")
    assert (shelf.names(q="new"), shelf.names(q="old")) == (["acme/a"], [])
    for version in ("1.0.0", "1.1.0", "0.9.0"):
        shelf.set_version(skill, version, state="revoked")
    assert shelf.names(q="soon") == ["acme/a"]
    shelf.set_version(skill, "2.0.0-rc.1", state="revoked")
    assert shelf.names() == []
    assert shelf.content() == set()
    shelf.publish("acme/a", "3.0.0", title="again")
    assert shelf.names(q="again") == ["acme/a"]


WORDS = st.lists(st.sampled_from(["arc", "weld", "grind", "seam", "thin-sheet"]), max_size=3).map(" ".join)
FACES = [dataclasses.replace(INTERFACE, rate_hz=rate) for rate in (10.0, 50.0, 200.0)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "publish", "state", "show", "field"]),
        st.integers(0, 11),  # which skill
        st.integers(0, 2),  # which version, visibility or interface
        st.integers(1, 9),  # how good
        WORDS,
    ),
    max_size=40,
)
VISIBILITIES = ("public", "network", "private")


class Walk:
    """The same skills in plain Python, found by looking at each."""

    def __init__(self, shelf):
        self.shelf = shelf
        self.skills = {}

    def take(self, what, which, other, good, title):
        """One change, here and in the index."""
        name, version = f"{ORGS[which % 2]}/s{which}", f"1.{other}.0"
        skill = self.skills.get(name)
        versions = {} if skill is None else skill.versions
        if what == "publish" and version not in versions:
            face, seen = (which + other) % 3, VISIBILITIES[which % 3]
            score = (10 * good, 100)
            given = {"visibility": seen, "title": title, "interface": FACES[face], "score": score}
            number = self.shelf.publish(name, version, task="lab:lab/None-v0", **given)
            skill = self.skills.setdefault(
                name, SimpleNamespace(id=number, visibility=seen, versions=versions)
            )
            made = {"title": title, "face": face, "bound": wilson_lower(*score), "active": True}
            versions[version] = SimpleNamespace(**made, n=0)
        elif what == "show" and skill is not None:
            skill.visibility = VISIBILITIES[other]
            self.shelf.show(skill.id, skill.visibility)
        elif what == "state" and version in versions:
            versions[version].active = not versions[version].active
            state = "active" if versions[version].active else "yanked"
            self.shelf.set_version(skill.id, version, state=state)
        elif what == "field" and version in versions:
            n, successes = 60 * (good % 3), 6 * good * (good % 3)
            if n >= 100:
                versions[version].bound = wilson_lower(successes, n)
            if versions[version].n < 100:  # what the field has told is not untold
                versions[version].n = n
                self.shelf.set_version(skill.id, version, field_n=n, field_successes=successes)

    def found(self, caller, q, success, faces):
        """Bound and name of each that matches."""
        found = []
        for name, skill in self.skills.items():
            live = {version: each for version, each in skill.versions.items() if each.active}
            org_id = ORGS.index(name.partition("/")[0]) + 1
            if live and caller.shows(skill.visibility, org_id):
                last = live[max(live)]
                words = {*name.split("/"), *last.title.split(), *last.title.replace("-", " ").split()}
                if set(q.split()) <= words and last.bound >= success and last.face in faces:
                    found.append((round(last.bound, 9), name))
        return sorted(found)


def pages(shelf, caller, q, success, offer, limit):
    """Bound and name of each that is found, page by page, in the order of the answers."""
    found, cursor = [], ""
    while cursor is not None:
        asked = Asked(q=q, success=success)
        page = (
            searches.search(shelf.db, caller, shelf.rankings, asked, cursor, limit)
            if offer is None
            else searches.runnable(shelf.db, caller, shelf.rankings, Fitting(), offer, asked, cursor, limit)
        )
        assert len(page["skills"]) <= limit
        found += [(round(each["evidence"]["bound"], 9), each["name"]) for each in page["skills"]]
        cursor = page["next"]
    return found


@settings(max_examples=80)
@given(
    steps=STEPS,
    q=WORDS,
    success=st.sampled_from([0.0, 0.0, 0.4]),
    limit=st.integers(1, 4),
    robot=st.booleans(),
)
def test_the_index_finds_what_a_look_at_each_finds(steps, q, success, limit, robot):
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Shelf()) as shelf:
        make_small(patch)
        walk = Walk(shelf)
        for step in steps:
            walk.take(*step)
            assert held(shelf.rankings, shelf.db) == held(Rankings(), shelf.db)
        offer, faces = (OFFER, {0, 1}) if robot else (None, {0, 1, 2})
        for caller in (NOBODY, member("third"), member("acme"), member("acme", "rival")):
            found = pages(shelf, caller, q, success, offer, limit)
            assert sorted(found) == walk.found(caller, q, success, faces)
            assert [bound for bound, _ in found] == sorted((bound for bound, _ in found), reverse=True)
        assert shelf.content() == shelf.rebuilt()


def held(rankings, db):
    """What stands in each scope, and the places in their order."""
    found = rankings.of(db, [*range(-1, len(ORGS) + 1)])
    return {scope: (each.standing.tolist(), each.order.tolist()) for scope, each in found.items()}


def test_only_what_has_changed_is_read_again(shelf, monkeypatch):
    make_small(monkeypatch)
    made = [shelf.publish(f"acme/s{i}") for i in range(10)]
    shelf.publish("acme/mine", visibility="private")
    shelf.page()
    read, changed = [], Ranking.changed

    def note(self, stamp, size, shelves):
        shelves = list(shelves)
        read.append([shelf for shelf, _ in shelves])
        return changed(self, stamp, size, shelves)

    monkeypatch.setattr(Ranking, "changed", note)
    shelf.page()
    shelf.page(member("acme"))  # whose own have not been read yet
    assert read == [[0]]
    shelf.set_version(made[4], "1.0.0", lower=0.1)
    assert shelf.names()[-1] == "acme/s4"
    shelf.publish("acme/more", score=(100, 100))
    assert shelf.names()[0] == "acme/more"
    shelf.page(member("acme"))
    assert read == [[0], [1], [3]]


def test_who_sees_an_older_state_reads_it_for_himself(shelf):
    """Threads read in transactions of their own, some of which began before the last change."""
    shelf.publish("acme/a")
    shelf.publish("acme/b")
    shelf.page()
    newer = shelf.rankings._held[0]
    before = shelf.db.execute(sa.select(tables.rankings)).one()
    ahead = Ranking(stamp=before.stamp + 1, standing=newer.standing[:1], order=newer.order[:1] * 0)
    shelf.rankings._held = {0: ahead}
    assert set(shelf.names()) == {"acme/a", "acme/b"}
    shelf.publish("acme/c")
    assert set(shelf.names()) == {"acme/a", "acme/b", "acme/c"}


def test_stamps_grow_and_come_once(shelf):
    """Also where the last changes are lost, as after a failure of a database that had not kept them."""
    shelf.publish("acme/a")
    shelf.page()
    before = shelf.scalar(tables.rankings.c.stamp, scope=0)
    with shelf.db.begin_nested() as lost:
        shelf.publish("acme/b")
        shelf.page()
        assert shelf.scalar(tables.rankings.c.stamp, scope=0) > before
        lost.rollback()
    shelf.publish("acme/c")
    assert set(shelf.names()) == {"acme/a", "acme/c"}


def test_scopes_beyond_what_is_held_are_read_each_time(shelf, monkeypatch):
    """First those that few ask for."""
    monkeypatch.setattr(ranking, "MAX_STANDINGS_HELD", 3)
    for i in range(2):
        shelf.publish(f"acme/s{i}")
    shelf.publish("acme/mine", visibility="private")
    for _ in range(2):
        assert len(shelf.names(member("acme"))) == 3
        assert set(shelf.rankings._held) == {0, 1}
    shelf.publish("acme/s3")
    for _ in range(2):
        assert len(shelf.names(member("acme"))) == 4
        assert set(shelf.rankings._held) == {0}
    shelf.publish("acme/s4")
    for _ in range(2):
        assert len(shelf.names()) == 4
        assert list(shelf.rankings._held) == []


@pytest.mark.parametrize("few", [0, 100])
def test_of_many_or_few_the_best_are_found(few, monkeypatch):
    """In the order of all, or by sorting those that will do; against a look at each."""
    monkeypatch.setattr(ranking, "_FEW", few)
    monkeypatch.setattr(ranking, "_FIRST", 4)
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 60):
        standing = np.zeros(size, listing.STANDING)
        standing["rank"] = rng.permutation(1000)[:size]
        standing["interface"] = rng.integers(5, size=size)
        made = Ranking.empty().changed(1, size, [(0, standing.tobytes())])
        for _ in range(30):
            having = rng.random(size) < rng.choice([0.0, 0.1, 0.9])
            met = rng.random(4) < 0.5
            after, worst, count = (
                int(rng.integers(-1, 1000)),
                int(rng.integers(1000)),
                int(rng.integers(1, 20)),
            )
            for flags, fits in ((having, met), (None, met), (having, None), (None, None)):
                rows = sorted(
                    tuple(row)
                    for place, row in enumerate(standing.tolist())
                    if after < row[0] <= worst
                    and (flags is None or flags[place])
                    and (fits is None or fits[min(row[2], len(fits) - 1)])
                )
                found = made.best(flags, fits, after, worst, count)
                assert [tuple(row) for row in found.tolist()] == rows[:count]


# --- what a robot can run


def signals(role, count):
    kinds = st.tuples(st.integers(0, count), st.sampled_from([(1,), (2, 3)]), st.sampled_from(["m", "N"]))
    made = kinds.map(lambda kind: Signal(name=f"{role}{kind[0]}", shape=kind[1], unit=kind[2], frame="W"))
    return st.lists(made, min_size=1, max_size=4)


def unique(made):
    return tuple({signal.name: signal for signal in made}.values())


FIGURE = st.sampled_from([0.0, 0.5, 0.5 * (1 - 5e-7), 0.5 * (1 - 2e-6), 1.0])
NEEDS = st.builds(
    Requirements,
    reach_m=FIGURE,
    linear_speed_m_s=FIGURE,
    angular_speed_rad_s=FIGURE,
    wrench_sensor=st.booleans(),
    grip_stroke_m=FIGURE,
)
INTERFACES = st.builds(
    Interface,
    observation=signals("o", 3).map(unique),
    action=signals("a", 1).map(unique),
    rate_hz=st.sampled_from([0.5, 1.0]),
    requires=NEEDS,
)
OFFERS = st.builds(
    Offer,
    robot=st.just("r"),
    max_rate_hz=FIGURE,
    reach_m=FIGURE,
    linear_speed_m_s=FIGURE,
    angular_speed_rad_s=FIGURE,
    wrench_sensor=st.booleans(),
    grip_stroke_m=FIGURE,
    observation=signals("o", 3).map(tuple),  # a name may come twice: the last counts
    action=signals("a", 1).map(tuple),
)


@settings(max_examples=60)
@given(
    faces=st.lists(INTERFACES, max_size=8),
    offers=st.lists(OFFERS, min_size=1, max_size=3),
    held=st.booleans(),
)
def test_what_fits_is_what_has_no_problems(faces, offers, held):
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Shelf()) as shelf:
        patch.setattr(fitting, "MAX_SIGNALS_HELD", 1_000 if held else 6)
        fit = Fitting()
        half = len(faces) // 2
        for some in (faces[:half], faces[half:]):  # interfaces come while the server runs
            for face in some:
                listing.keep_interface(shelf.db, face.digest(), face)
            for offer in offers:
                met = fit.met(shelf.db, offer)
                for row in shelf.db.execute(sa.select(tables.interfaces)):
                    face = next(each for each in faces if each.digest() == row.digest)
                    assert met[min(row.id, len(met) - 1)] == (not face.problems(offer)), (face, offer)
        assert len(fit._known.signals) <= fitting.MAX_SIGNALS_HELD


def test_interfaces_beyond_what_is_held_are_read_each_time(shelf, monkeypatch):
    monkeypatch.setattr(fitting, "_PART", 2)
    monkeypatch.setattr(fitting, "MAX_SIGNALS_HELD", 20)  # INTERFACE has six
    monkeypatch.setattr(fitting, "_BEHIND", fitting._BEHIND.limit(2))
    for i in range(9):
        shelf.publish(f"acme/s{i}", interface=dataclasses.replace(INTERFACE, rate_hz=10.0 + i))
    fit = Fitting()
    for _ in range(2):
        found = searches.runnable(shelf.db, NOBODY, shelf.rankings, fit, OFFER, Asked(), "", 20)["skills"]
        assert len(found) == 9
        assert len(fit._known.ids) == 2


# --- over HTTP


def offered(offer=OFFER, **changes):
    return dataclasses.asdict(offer) | changes


def test_search_and_runnable_over_http(local_api, publish_local, problem):
    slow = dataclasses.replace(INTERFACE, rate_hz=20.0)
    fast = dataclasses.replace(INTERFACE, rate_hz=400.0)
    publish_local(name="slow", interface=slow, tags=("welding", "thin"))
    publish_local(name="fast", interface=fast, evaluation=evaluation(99))

    def names(answer):
        assert answer.status_code == 200, answer.text
        return [each["name"] for each in answer.json()["skills"]]

    assert names(local_api.get("/v1/skills")) == ["acme/fast", "acme/slow"]
    assert names(local_api.get("/v1/skills?tag=welding&tag=thin")) == ["acme/slow"]
    assert names(local_api.get("/v1/skills?success=0.9")) == ["acme/fast"]
    assert names(local_api.get(f"/v1/skills?interface={slow.digest()}")) == ["acme/slow"]
    assert local_api.get("/v1/skills?facets=true").json()["facets"]["values"]["org"] == {"acme": 2}
    assert "facets" not in local_api.get("/v1/skills").json()
    runnable = "/v1/skills/runnable"
    assert names(local_api.post(runnable, json=offered())) == ["acme/slow"]
    everything = local_api.post(runnable, json=offered(max_rate_hz=500), params={"limit": 1})
    assert names(everything) == ["acme/fast"]
    rest = {"cursor": everything.json()["next"]}
    assert names(local_api.post(runnable, json=offered(max_rate_hz=500), params=rest)) == ["acme/slow"]
    assert names(local_api.post(runnable, json=offered(), params={"q": "thin"})) == ["acme/slow"]
    assert names(local_api.post(runnable, json=offered(), params={"q": "thick"})) == []
    assert names(local_api.post(runnable, json=offered(observation=[]))) == []
    page = local_api.get("/").text
    assert page.index("acme/fast") < page.index("acme/slow")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reach_m": -1.0}, "reach_m"),
        ({"reach_m": float("nan")}, "reach_m"),
        ({"reach_m": float("inf")}, "reach_m"),
        ({"robot": "x" * 301}, "robot"),
        ({"wings": 2}, "wings"),
        ({"observation": [{"name": "a", "shape": [1], "unit": "m"}] * 257}, "observation"),
        ({"observation": [{"name": "a", "shape": [1], "unit": "m", "x": 1}]}, "observation.0.x"),
        ({"action": [{"name": "a b", "shape": [1], "unit": "m"}]}, "action.0"),
        ({"action": [{"name": "a", "shape": [10**6], "unit": "m"}]}, "action.0"),
        ({"action": [{"name": "a", "shape": [1], "unit": "inch"}]}, "action.0"),
    ],
)
def test_offers_that_are_none(local_api, problem, changes, field):
    import json

    answer = local_api.post(
        "/v1/skills/runnable",
        content=json.dumps(offered() | changes),
        headers={"content-type": "application/json"},
    )
    said = problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert field in said.get("field", "") or field in said["detail"] or "signal" in said["detail"], said


def test_cursors_of_others(local_api, publish_local, problem):
    for name in ("one", "two", "three"):
        publish_local(name=name)
    cursor = local_api.get("/v1/skills?limit=1").json()["next"]
    mark, _, rank = cursor.partition("-")
    foreign = f"{'0' * 8 if mark != '0' * 8 else '1' * 8}-{rank}"
    for path, ask in (("/v1/skills", local_api.get), ("/v1/skills/runnable", local_api.post)):
        body = {} if ask == local_api.get else {"json": offered()}
        assert len(ask(path, params={"cursor": cursor}, **body).json()["skills"]) == 2
        said = problem(ask(path, params={"cursor": foreign}, **body), 400, "cursor")
        assert "another registry" in said["detail"]
        for malformed in ("0", "x", f"{mark}-", f"{mark}-{rank}x", "acme/one", f"{mark}-{'9' * 20}"):
            problem(ask(path, params={"cursor": malformed}, **body), 400)
        assert ask(path, params={"cursor": f"{mark}-{'9' * 19}"}, **body).json()["skills"] == []
    problem(local_api.get("/", params={"cursor": "x"}), 400)
    more = local_api.get("/").text
    assert "more" not in more.partition("</form>")[2]


@pytest.mark.parametrize(
    "query",
    ["success=1.5", "success=nan", "success=x", "org=A", "interface=x", "parent=sha256:0", "facets=x"],
)
def test_parameters_that_cannot_be(local_api, problem, query):
    problem(local_api.get(f"/v1/skills?{query}"), 400)
    problem(local_api.get("/v1/skills?" + "&".join(["tag=a"] * 17)), 400)


@pytest.mark.storages
def test_tenants_find_their_own(settings, skill_of, publisher, state):
    world = World(settings.model_copy(update={"open": False}))
    try:
        for number, visibility in enumerate(VISIBILITIES):
            skill = skill_of("acme", name=f"{visibility}-one", seed=number, tags=("arc",))
            answer = world.publish(skill, publisher, ("acme", "owner"), visibility=visibility)
            assert answer.status_code == 201, answer.text

        def seen(who):
            offer = {"json": offered(), "params": {"limit": 1}}
            found = []
            for _ in range(9):
                answer = world.post("/v1/skills/runnable", who, **offer).json()
                found += [each["name"].removeprefix("acme/") for each in answer["skills"]]
                if answer["next"] is None:
                    break
                offer["params"]["cursor"] = answer["next"]
            for params in ({"q": "arc"}, {"tag": "arc"}, {"org": "acme"}, {}):
                listed = world.get("/v1/skills", who, params=params).json()["skills"]
                assert sorted(each["name"].removeprefix("acme/") for each in listed) == sorted(found), params
            return set(found)

        both, everything = {"public-one", "network-one"}, {f"{each}-one" for each in VISIBILITIES}
        assert seen("nobody") == {"public-one"}
        assert seen("operator") == seen(("rival", "owner")) == seen(("rival", "robot")) == both
        assert seen(("acme", "reader")) == seen(("acme", "robot")) == everything
        shown = world.patch("/v1/skills/acme/public-one", ("acme", "owner"), json={"visibility": "private"})
        assert shown.status_code == 200
        assert seen("nobody") == set()
        assert seen(("rival", "reader")) == {"network-one"}
        assert seen(("acme", "reader")) == everything
        shown = world.patch("/v1/skills/acme/private-one", ("acme", "owner"), json={"visibility": "public"})
        assert seen("nobody") == {"private-one"}
        done = state(world.as_(("acme", "owner")), "yank", name="acme/private-one", version="1.0.0")
        assert done.status_code == 200, done.text
        assert seen("nobody") == set()
        done = state(world.as_(("acme", "owner")), "unyank", name="acme/private-one", version="1.0.0")
        assert seen("nobody") == {"private-one"}
    finally:
        world.close()


def test_a_registry_without_an_index_gets_one(plain, publish_into):
    """As one of an earlier release, or from a backup."""
    with TestClient(create_app(plain)) as api:
        for name in ("one", "two"):
            publish_into(api, name=name, tags=("arc",))
        before = api.get("/v1/skills?q=arc").json()["skills"]

        def forget(db):
            index = (tables.listings, tables.postings, tables.standings, tables.rankings)
            for table in (*index, tables.interfaces):
                db.execute(sa.delete(table))
            db.execute(sa.update(tables.versions).values(facets={}))

        api.portal.call(api.app.state.registry.database.write, forget)
        assert api.get("/v1/skills?q=arc").json()["skills"] == []
    with TestClient(create_app(plain)) as api:
        after = api.get("/v1/skills?q=arc").json()["skills"]
        assert sorted(after, key=str) == sorted(before, key=str)
        assert len(api.post("/v1/skills/runnable", json=offered()).json()["skills"]) == 2


def evaluation(successes):
    return Evaluation(
        episodes=100,
        successes=successes,
        rate=successes / 100,
        lower=wilson_lower(successes, 100),
        seed_first=2_000_000_000,
        seed_count=100,
    )


@pytest.fixture
def skill_of(tmp_path, make_skill):
    numbers = itertools.count()
    return lambda org, **fields: make_skill(tmp_path / f"skill-{next(numbers)}", org=org, **fields)


@pytest.fixture
def publish_into(skill_of, publisher):
    """Publish a skill: ``publish_into(api, name=…)``."""

    def run(api, **fields):
        content = parcel(skill_of("acme", **fields), publisher)
        answer = api.post("/v1/skills", content=content, headers=TAR)
        assert answer.status_code == 201, answer.text

    return run


@pytest.fixture
def publish_local(local_api, publish_into):
    return lambda **fields: publish_into(local_api, **fields)
