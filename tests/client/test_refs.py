from __future__ import annotations

import pytest

from neuraverse.client import Event, Ref, Summary
from neuraverse.client.refs import is_path, resolved_of
from neuraverse.errors import NetworkError, UsageError

DIGEST = "sha256:" + "ab" * 32
EVENT = {
    **{"id": 3, "cursor": "0123abcd-3", "type": "published", "name": "a/b", "version": "1.0.0"},
    **{"digest": DIGEST, "at": "2026"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/weld", Ref(name="acme/weld")),
        ("acme/weld@1.0.0", Ref(name="acme/weld", which="1.0.0")),
        ("acme/weld@1.0.0-rc.1", Ref(name="acme/weld", which="1.0.0-rc.1")),
        ("acme/weld@stable", Ref(name="acme/weld", which="stable")),
        (DIGEST, Ref(digest=DIGEST)),
    ],
)
def test_references(text, expected):
    assert Ref.parse(text) == expected
    assert Ref.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "weld", "acme/", "acme/weld@", "acme/weld@a/b", "acme/weld@1@2", "ACME/weld", "../weld"),
        *("a/b/c", "acme/wéld", "acme/weld\n", "a" * 10_000, "a/b@" + "1" * 129),
        *(DIGEST.upper(), DIGEST[:-1], DIGEST + "0"),
    ],
)
def test_what_is_no_reference(text):
    with pytest.raises(UsageError, match="names no skill - write org/skill"):
        Ref.parse(text)


@pytest.mark.parametrize(
    ("which", "version", "may"),
    [
        ("1.0.0", "1.0.0", True),
        ("1.0.0", "1.0.1", False),
        ("^1.2", "1.3.0", True),
        ("^1.2", "2.0.0", False),
        ("stable", "2.0.0", True),
        ("latest", "0.1.0", True),
    ],
)
def test_what_a_reference_may_mean(which, version, may):
    assert Ref(name="acme/weld", which=which).admits(version) == may


def test_paths_are_told_from_references(tmp_path, monkeypatch):
    assert all(map(is_path, [tmp_path, "./x", "../x", "/x", "~/x", ".", ".."]))
    assert not is_path("acme/weld")
    assert not is_path("a" * 10_000)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "weld").mkdir(parents=True)
    assert not is_path("acme/weld")
    (tmp_path / "acme" / "weld" / "manifest.json").touch()
    assert is_path("acme/weld")


def test_events_are_read():
    assert Event.of(EVENT) == Event(
        id=3,
        cursor="0123abcd-3",
        type="published",
        name="a/b",
        version="1.0.0",
        digest=DIGEST,
        at="2026",
    )
    full = EVENT | {"parents": [DIGEST], "interface": DIGEST, "alias": "x", "previous": None, "later": 1}
    assert Event.of(full).parents == (DIGEST,)
    assert Event.of(full).previous == ""


@pytest.mark.parametrize(
    "plain",
    [
        *(None, [], "x", {}),
        *(EVENT | changes for changes in ({"id": "3"}, {"id": True}, {"id": 0}, {"name": None})),
        *(EVENT | changes for changes in ({"cursor": 3}, {"cursor": "3"}, {"cursor": None})),
        *(EVENT | changes for changes in ({"parents": "x"}, {"parents": [1]})),
    ],
)
def test_malformed_events(plain):
    with pytest.raises(NetworkError):
        Event.of(plain)


@pytest.mark.parametrize("plain", [{}, {"name": "a/b", "version": "1.0.0", "digest": "sha256:../.."}, 5])
def test_malformed_resolutions(plain):
    with pytest.raises(NetworkError, match="malformed"):
        resolved_of(plain)


def test_malformed_summaries():
    good = {k: "x" for k in ("name", "version", "digest", "title", "description", "robot", "created")}
    good |= {k: "x" for k in ("task", "interface", "license", "visibility")}
    good |= {"rate": 0.5, "lower": 0.4, "n": 10, "tags": [], "field": None}
    good |= {"evidence": {"bound": 0.4, "n": 10, "source": "simulation"}}
    assert Summary.of(good).n == 10
    for wrong in (
        {"rate": "x"},
        {"n": None},
        {"title": 3},
        {"lower": float("nan")},
        {"n": 10**400},
        {"evidence": 1},
        {"tags": [1]},
    ):
        with pytest.raises(NetworkError, match="malformed"):
            Summary.of(good | wrong)
