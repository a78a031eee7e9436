"""Statements, lineage, differences and aliases through the client; and answers that are malformed."""

from __future__ import annotations

import copy
import json

import pytest

from neuraverse.client import answers
from neuraverse.errors import (
    ConflictError,
    NetworkError,
    NotFoundError,
    RegistryError,
    UnknownNameError,
    UsageError,
)
from tests.client.test_pull import NAME
from tests.client.test_transport import answer, client_of

DIGEST = "sha256:" + "ab" * 32
DESCRIBED = {
    "name": NAME,
    "registry": "01234567-89ab-cdef-0123-456789abcdef",
    "serial": 3,
    "deprecated": None,
    "versions": [{"version": "1.0.0", "digest": DIGEST, "state": "active"}],
    "aliases": {"stable": "1.0.0"},
}
NODE = {"digest": DIGEST, "name": NAME, "version": "1.0.0", "state": "active", "lower": 0.9}
LINEAGE = {"root": DIGEST, "nodes": [NODE], "edges": [[DIGEST, DIGEST]]}
DIFF = {"from": "1.0.0", "to": "1.1.0", "interface": [], "evaluation": [], "training": [], "files": []}
DIFF["files"] = [{"field": "README.md", "from": None, "to": 5}]
MOVES = {"alias": "stable", "moves": [{"version": None, "previous": "1.0.0", "at": "2026", "by": "ab"}]}
GOOD = {
    "described": DESCRIBED,
    "lineage": LINEAGE,
    "diff": DIFF,
    "moves": MOVES,
}


@pytest.fixture
def published(author, tiny_skill):
    author.publish(tiny_skill.path)
    return tiny_skill


@pytest.mark.parametrize("kind", GOOD)
def test_good_answers_pass(kind):
    assert getattr(answers, kind)(copy.deepcopy(GOOD[kind])) == GOOD[kind]


def changes(kind):
    """The answer with one field after the other missing or of another kind, at any depth."""

    def walk(value, path):
        if isinstance(value, dict):
            for key, below in value.items():
                yield from walk(below, (*path, key))
                yield (*path, key)
        elif isinstance(value, list) and value:
            yield from walk(value[0], (*path, 0))

    unread = {("deprecated",), ("name",), ("alias",), ("files", 0, "from"), ("files", 0, "to")}
    for path in walk(GOOD[kind], ()):
        if path in unread - ({("name",)} if kind == "described" else set()):
            continue
        for wrong in (True, 5, "x" if path[-1] not in TEXTS else 5.5, [5], {"a": 5}):
            if not (path[-1] in ("serial", "lower") and wrong == 5 and wrong is not True):
                yield path, wrong


TEXTS = {"name", "registry", "version", "digest", "state", "stable", "from", "to", "field", "at", "by"} | {
    "previous"
}


@pytest.mark.parametrize("kind", GOOD)
def test_malformed_answers(kind):
    for path, wrong in changes(kind):
        plain = copy.deepcopy(GOOD[kind])
        at = plain
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = wrong
        with pytest.raises(NetworkError, match="malformed"):
            getattr(answers, kind)(plain)


def test_edges_join_nodes():
    for edges in ([[DIGEST, "sha256:other"]], [[DIGEST]], [[DIGEST] * 3], [[[], {}]], ["ab"], [None]):
        with pytest.raises(NetworkError, match="edges"):
            answers.lineage(LINEAGE | {"edges": edges})
    for root in ("sha256:other", None, []):
        with pytest.raises(NetworkError, match="root or edges"):
            answers.lineage(LINEAGE | {"root": root})


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.describe(NAME),
        lambda client: client.lineage(NAME),
        lambda client: client.diff(NAME, "1.0.0", "1.1.0"),
        lambda client: client.alias_history(NAME, "stable"),
    ],
)
@pytest.mark.parametrize("plain", [{}, {"versions": 5}, {"nodes": [5]}, {"moves": []}, {"from": "a"}])
def test_a_registry_that_answers_nonsense(tmp_path, call, plain):
    with pytest.raises(NetworkError, match="malformed"):
        call(client_of(answer(content=json.dumps(plain).encode()), tmp_path))


# --- statements against a live registry


def test_an_alias_moves_and_remembers(author, robot, published, make_skill, tmp_path, publisher):
    author.publish(make_skill(tmp_path / "next", version="1.1.0", seed=1).path)
    for version in ("1.0.0", "1.1.0"):
        author.set_alias(NAME, "stable", version)
    moves = robot.alias_history(NAME, "stable")["moves"]
    assert [(m["previous"], m["version"]) for m in moves] == [("1.0.0", "1.1.0"), (None, "1.0.0")]
    assert {m["by"] for m in moves} == {publisher.public_key().fingerprint}
    assert robot.describe(NAME)["aliases"] == {"stable": "1.1.0"}
    author.state(NAME, "unalias", alias="stable")
    with pytest.raises(NotFoundError):
        robot.resolve(f"{NAME}@stable")


def test_states_of_versions(author, robot, published, make_skill, tmp_path):
    assert robot.resolve(NAME).state == "active"
    author.state(NAME, "yank", version="1.0.0", reason="too fast")
    yanked = robot.resolve(f"{NAME}@1.0.0")
    assert yanked.state == "yanked"
    assert any("too fast" in text for text in yanked.warnings)
    author.state(NAME, "unyank", version="1.0.0")
    author.publish(make_skill(tmp_path / "weld", name="weld").path)
    author.state(NAME, "deprecate", message="no longer kept", successor="acme/weld")
    assert "use acme/weld" in " ".join(robot.resolve(NAME).warnings)
    author.state(NAME, "undeprecate")
    assert robot.resolve(NAME).warnings == ()
    assert robot.describe(NAME)["serial"] == 4


def test_lineage_and_difference(author, robot, published, make_skill, tmp_path):
    child = make_skill(tmp_path / "child", version="1.1.0", seed=1, parents=[published.digest])
    author.publish(child.path)
    graph = robot.lineage(f"{NAME}@1.1.0")
    assert graph["root"] == child.digest
    assert graph["edges"] == [[published.digest, child.digest]]
    assert {node["digest"] for node in graph["nodes"]} == {published.digest, child.digest}
    found = robot.diff(NAME, "1.0.0", "1.1.0")
    assert (found["from"], found["to"]) == ("1.0.0", "1.1.0")
    assert any("model.safetensors" in each["field"] for each in found["files"])


def test_statements_that_cannot_be(author, robot, published, url):
    with pytest.raises(UsageError, match="yank needs 'version'"):
        author.state(NAME, "yank")
    with pytest.raises(UsageError, match="action"):
        author.state(NAME, "explode")
    with pytest.raises(UnknownNameError, match="no key named"):
        robot.state(NAME, "yank", version="1.0.0")
    with pytest.raises(UnknownNameError):
        author.state(NAME, "yank", version="1.0.0", key="mine")
    with pytest.raises(NotFoundError):
        author.state("acme/other", "yank", version="1.0.0")
    with pytest.raises(NotFoundError):
        author.state(NAME, "yank", version="9.9.9")
    for call in (author.describe, author.lineage):
        with pytest.raises(UsageError, match="names no skill"):
            call("../x")
    with pytest.raises(UsageError, match="is a digest"):
        author.lineage(DIGEST)
    with pytest.raises(UsageError, match="no name for an alias"):
        author.alias_history(NAME, "../x")


def test_a_stranger_says_nothing(robot, published, key_store):
    key_store.new("default")
    with pytest.raises(RegistryError, match="not signed by a key of the organisation"):
        robot.state(NAME, "revoke", version="1.0.0")
    assert robot.pull(NAME).digest == published.digest


def test_what_changed_in_between_is_not_overruled(author, published, monkeypatch):
    before = author.describe(NAME)
    author.set_alias(NAME, "stable", "1.0.0")
    monkeypatch.setattr(author, "describe", lambda _: before)
    with pytest.raises(ConflictError):
        author.set_alias(NAME, "live", "1.0.0")
