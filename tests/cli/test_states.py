"""Aliases, yank, revoke, deprecate, lineage and diff; and what those who pull are told."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

NAME = "acme/weld-seam"


@pytest.fixture
def published(neuraverse, home, url, tmp_path, make_skill):
    """1.0.0 and its child 1.1.0."""
    first = make_skill(tmp_path / "first")
    second = make_skill(tmp_path / "second", version="1.1.0", seed=1, parents=[first.digest])
    for skill in (first, second):
        neuraverse("publish", skill.path)
    return first, second


def test_an_alias_is_moved_listed_and_undone(neuraverse, as_json, published):
    assert (
        f"{NAME}@stable now means {NAME}@1.0.0" in neuraverse("alias", "set", NAME, "stable", "1.0.0").stdout
    )
    said = as_json("alias", "set", NAME, "stable", "1.1.0")
    assert (said["action"], said["version"]) == ("alias", "1.1.0")
    assert as_json("alias", "list", NAME) == {"stable": "1.1.0"}
    assert "stable" in neuraverse("alias", "list", NAME).stdout
    assert f"means {NAME}@1.0.0 again" in neuraverse("alias", "undo", NAME, "stable").stdout
    assert len(as_json("alias", "list", NAME, "stable")["moves"]) == 3
    assert "1.1.0" in neuraverse("alias", "list", NAME, "stable").stdout
    assert "no name for an alias" in neuraverse("alias", "list", NAME, "A B", code=2).error
    assert "other" in neuraverse("alias", "undo", NAME, "other", code=1).error


def test_undoing_the_first_move_removes_the_alias(neuraverse, as_json, published):
    neuraverse("alias", "set", NAME, "stable", "1.0.0")
    assert "means nothing any more" in neuraverse("alias", "undo", NAME, "stable").stdout
    assert as_json("alias", "list", NAME) == {}


def test_yank_and_back(neuraverse, as_json, published, caplog):
    neuraverse("yank", f"{NAME}@1.1.0", "--reason", "too fast on thin sheet")
    assert as_json("pull", NAME)["skill"] == f"{NAME}@1.0.0"
    caplog.clear()
    assert as_json("pull", f"{NAME}@1.1.0")["skill"] == f"{NAME}@1.1.0"
    assert "was yanked: too fast on thin sheet" in caplog.text
    assert "can be chosen again" in neuraverse("unyank", f"{NAME}@1.1.0").stdout
    assert as_json("pull", f"{NAME}@^1")["skill"] == f"{NAME}@1.1.0"
    for command in ("yank", "unyank", "revoke"):
        assert "names no exact version" in neuraverse(command, f"{NAME}@^1", code=2).error


def test_what_a_publisher_says_reaches_stderr(process, neuraverse, published):
    """Not stdout, which a program may read."""
    neuraverse("deprecate", NAME, "no longer kept")
    child = process("pull", NAME, "--json", "-")
    out, said = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "no longer kept" in said
    assert "no longer kept" not in out
    neuraverse("deprecate", NAME, "--undo")
    child = process("pull", NAME)
    assert "no longer kept" not in child.communicate(timeout=60)[1]
    assert "deprecate needs a MESSAGE" in neuraverse("deprecate", NAME, code=2).error


def test_revoke_asks_first(neuraverse, as_json, published):
    from neuraverse.cli.app import app

    as_json("pull", f"{NAME}@1.1.0")
    said = CliRunner().invoke(app, ["revoke", f"{NAME}@1.1.0"], input="n\n")
    assert said.exit_code == 130
    assert f"revoke {NAME}@1.1.0 for good?" in said.output
    assert as_json("pull", f"{NAME}@1.1.0")["skill"] == f"{NAME}@1.1.0"
    said = CliRunner().invoke(app, ["revoke", f"{NAME}@1.1.0", "--reason", "burns through"], input="y\n")
    assert said.exit_code == 0
    for words in ((), ("--offline",)):
        assert "burns through" in neuraverse("pull", f"{NAME}@1.1.0", *words, code=1).error
    neuraverse("revoke", f"{NAME}@1.0.0", "--yes")
    assert "no version" in neuraverse("pull", NAME, code=1).error


def test_lineage_and_diff(neuraverse, as_json, published):
    first, second = published
    said = neuraverse("lineage", f"{NAME}@1.1.0").stdout
    assert f"{NAME}@1.0.0" in said
    graph = as_json("lineage", NAME)
    assert graph["root"] == second.digest
    assert graph["edges"] == [[first.digest, second.digest]]
    assert "model.safetensors" in neuraverse("diff", NAME, "1.0.0", "1.1.0").stdout
    assert as_json("diff", NAME, "1.0.0", "1.1.0")["files"]
    assert "nothing that matters differs" in neuraverse("diff", NAME, "1.0.0", "1.0.0").stdout
    assert "9.9.9" in neuraverse("diff", NAME, "1.0.0", "9.9.9", code=1).error


def test_pull_without_a_network(neuraverse, as_json, published, monkeypatch, url):
    pulled = as_json("pull", NAME)
    assert as_json("pull", NAME, "--offline") == pulled
    assert as_json("pull", pulled["digest"], "--offline") == pulled
    assert "not in the cache" in neuraverse("pull", f"{NAME}@stable", "--offline", code=1).error
    monkeypatch.setenv("NEURAVERSE_REGISTRY", "http://127.0.0.1:9")
    assert as_json("pull", pulled["digest"]) == pulled
    assert "cannot reach a registry" in neuraverse("pull", NAME, code=1).error  # another registry's word
