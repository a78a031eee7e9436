"""The benchmark of searches: the registry that it fills, and that the peer finds what ours finds."""

import asyncio
import json
import subprocess
import sys

import pytest

from benchmarks import search, search_fill, search_peer
from neuraverse.registry import events
from neuraverse.registry.database import Database
from neuraverse.registry.finding import searches
from neuraverse.registry.finding.ranking import Rankings

SKILLS = 130


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A small registry, grown in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_fill, "VOCABULARY", 200)
        patch.setattr(search_fill, "INTERFACES", 20)
        patch.setattr(search_fill, "_CHUNK", 50)
        made = search_fill.world()
        url = f"sqlite:///{tmp_path_factory.mktemp('search') / 'registry.db'}"
        for start, stop in ((0, 60), (60, SKILLS)):
            asyncio.run(search_fill.fill(url, made, start, stop))
        asyncio.run(search._build_peer(url))
        yield url, made


def run(url, ask):
    async def asked():
        database = Database(url)
        await database.open()
        try:
            return await database.read(ask)
        finally:
            await database.close()

    return asyncio.run(asked())


def test_each_reader_finds_what_they_should(filled):
    url, _ = filled

    def names(db):
        found = {}
        for who in ("", *search_fill.READERS):
            answer = searches.search(db, search.caller(who), Rankings(), searches.Asked(), "", 2 * SKILLS)
            found[who] = {each["name"] for each in answer["skills"]}
        return found

    for who, found in run(url, names).items():
        seen = {
            search_fill.name_of(i)
            for i in range(SKILLS)
            if search.caller(who).shows(search_fill.visibility_of(i), i % search_fill.TENANTS + 1)
        }
        assert found == seen, who


def test_the_peer_finds_as_much(filled):
    url, made = filled

    def compare(db):
        asker, found = search.Asker(made, SKILLS, events.mark(db), seed=1), []
        for kind in search.GROUPS["search"]:
            for _ in range(9 if kind not in search.NOT_OF_PEER else 0):
                question = asker.ask(kind)
                caller = search.caller(question.who)
                ours = len(searches.search(db, caller, Rankings(), question.asked, "", SKILLS)["skills"])
                found.append((question, ours, search_peer.search(db, caller, question.asked, SKILLS)))
        return found

    found = run(url, compare)
    assert sum(ours > 0 for _, ours, _ in found) > 20
    assert [each for each in found if each[1] != each[2]] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_runs_and_writes(tmp_path):
    file = tmp_path / "search.json"
    command = [sys.executable, "-m", "benchmarks", "search", "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    for database in ("sqlite", "postgresql"):
        assert found["figures"][f"{database}_1000_http_search_p99_ms"] > 0.0
        assert f"{database}_1000_search_p99_over_peer" in found["ratios"]
    assert file.with_suffix(".png").stat().st_size > 10_000
