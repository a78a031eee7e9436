"""The cache from the command line."""

from __future__ import annotations

import gc
import os
import time

import pytest

NAME = "acme/weld-seam"


@pytest.fixture
def cached(neuraverse, as_json, home, url, tmp_path, make_skill, publisher, monkeypatch):
    """1.0.0, unused for 40 days, and 1.1.0, in a robot's cache; their folders."""
    from neuraverse.trust import KeyStore

    made = [make_skill(tmp_path / v, version=v, seed=i) for i, v in enumerate(("1.0.0", "1.1.0"))]
    for skill in made:
        neuraverse("publish", skill.path)
    monkeypatch.setenv("NEURAVERSE_HOME", str(tmp_path / "robot"))
    KeyStore().trust(publisher.public_key().pem, "acme")
    folders = [as_json("pull", skill.ref)["path"] for skill in made]
    gc.collect()
    at = time.time() - 40 * 86_400
    os.utime(folders[0], (at, at))
    return folders


def test_list(neuraverse, as_json, cached):
    found = as_json("cache", "list")
    assert [each["skill"] for each in found] == [f"{NAME}@1.1.0", f"{NAME}@1.0.0"]
    assert [each["path"] for each in found] == cached[::-1]
    assert all(each["size"] > 1000 and each["used"].endswith("+00:00") for each in found)
    assert f"{NAME}@1.1.0" in neuraverse("cache", "list").stdout


def test_an_empty_cache(neuraverse, as_json, fresh_home):
    assert as_json("cache", "list") == as_json("cache", "verify") == []
    assert "the cache is empty" in neuraverse("cache", "list").stdout
    assert "the cache is empty" in neuraverse("cache", "verify").stdout
    assert "freed 0 B" in neuraverse("cache", "prune").stdout


def test_verify(neuraverse, as_json, cached):
    assert [each["ok"] for each in as_json("cache", "verify")] == [True, True]
    path = os.path.join(cached[0], "README.md")
    os.chmod(path, 0o644)
    with open(path, "ab") as file:
        file.write(b"!")
    error = neuraverse("cache", "verify", code=1).error
    assert "1 of 2 skills in the cache must not be used - pull them again" in error
    said = {each["skill"]: each["error"] for each in as_json("cache", "verify", code=1)}
    assert said[f"{NAME}@1.1.0"] == ""
    assert "README.md" in said[f"{NAME}@1.0.0"]


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ([], []),
        (["--older-than", "30"], ["1.0.0"]),
        (["--older-than", "50"], []),
        (["--keep", "1"], ["1.0.0"]),
        (["--keep", "1", "--older-than", "50"], []),
        (["--all"], ["1.1.0", "1.0.0"]),
        (["--all", "--except", NAME], []),
        (["--all", "--except", f"{NAME}@1.0.0"], ["1.1.0"]),
    ],
)
def test_prune(neuraverse, as_json, cached, words, gone):
    expected = [f"{NAME}@{version}" for version in gone]
    would = as_json("cache", "prune", *words, "--dry-run")
    assert would["dry_run"] is True
    assert [each["skill"] for each in would["removed"]] == expected
    assert len(as_json("cache", "list")) == 2
    done = as_json("cache", "prune", *words)
    assert [each["skill"] for each in done["removed"]] == expected
    assert (done["freed"] > 0) is bool(gone)
    assert len(as_json("cache", "list")) == 2 - len(gone)


def test_what_is_in_use_stays(neuraverse, as_json, cached):
    import neuraverse as package

    skill = package.pull(f"{NAME}@1.0.0")
    done = as_json("cache", "prune", "--all")
    assert [each["skill"] for each in done["in_use"]] == [f"{NAME}@1.0.0"]
    assert f"in use: {NAME}@1.0.0" in neuraverse("cache", "prune", "--all").stdout
    assert skill.policy() is not None


def test_wrong_usage(neuraverse, fresh_home):
    assert "--except needs to know" in neuraverse("cache", "prune", "--except", NAME, code=2).error
    assert "names no skill" in neuraverse("cache", "prune", "--all", "--except", "x", code=2).error
    assert "--keep" in neuraverse("cache", "prune", "--keep", "-1", code=2).error
