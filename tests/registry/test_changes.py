"""Signed statements: aliases move and can be undone, versions are yanked and revoked, skills deprecated."""

from __future__ import annotations

import pytest

from neuraverse import statement
from neuraverse.trust import KeyStore

NAME = "acme/weld-seam"
REF = f"/v1/skills/{NAME}"


@pytest.mark.storages
def test_aliases_move_and_tell(api, publish_new, state, publisher, problem):
    publish_new(version="1.0.0")
    second = publish_new(version="1.1.0", seed=1)
    assert state(api, "alias", alias="stable", version="1.0.0").json()["serial"] == 1
    assert api.get(f"{REF}/stable").json()["version"] == "1.0.0"
    assert state(api, "alias", alias="stable", version="1.1.0").status_code == 200
    assert api.get(f"{REF}/stable").json()["digest"] == second.digest
    assert api.get(REF).json()["aliases"] == {"stable": "1.1.0"}
    moves = [e for e in api.get("/v1/events?after=0").json()["events"] if e["type"] == "alias"]
    assert [(m["version"], m["alias"], m["previous"]) for m in moves] == [
        ("1.0.0", "stable", None),
        ("1.1.0", "stable", "1.0.0"),
    ]
    history = api.get(f"{REF}/aliases/stable").json()
    assert history["version"] == "1.1.0"
    assert [(m["version"], m["previous"]) for m in history["moves"]] == [("1.1.0", "1.0.0"), ("1.0.0", None)]
    assert {m["by"] for m in history["moves"]} == {publisher.public_key().fingerprint}
    assert state(api, "alias", alias="stable", version=history["moves"][0]["previous"]).status_code == 200
    assert api.get(f"{REF}/stable").json()["version"] == "1.0.0"
    assert state(api, "unalias", alias="stable").status_code == 200
    problem(api.get(f"{REF}/stable"), 404)
    assert api.get(f"{REF}/aliases/stable").json()["moves"][0]["version"] is None
    problem(api.get(f"{REF}/aliases/never"), 404)


@pytest.mark.storages
def test_a_yanked_version_is_never_chosen(api, publish_new, state, problem):
    for number, version in enumerate(("1.0.0", "1.1.0")):
        publish_new(version=version, seed=number)
    state(api, "alias", alias="stable", version="1.1.0")
    assert state(api, "yank", version="1.1.0", reason="too fast").status_code == 200
    for which in ("latest", "^1", "*"):
        assert api.get(f"{REF}/{which}").json()["version"] == "1.0.0"
    assert api.get("/v1/skills").json()["skills"][0]["version"] == "1.0.0"
    found = api.get(f"{REF}/1.1.0").json()
    assert (found["state"], found["warnings"]) == ("yanked", [f"{NAME}@1.1.0 was yanked: too fast"])
    assert "too fast" in problem(api.get(f"{REF}/stable"), 409, "alias-yanked")["detail"]
    problem(state(api, "alias", alias="next", version="1.1.0"), 409, "not-active")
    assert state(api, "unyank", version="1.1.0").status_code == 200
    assert api.get(f"{REF}/latest").json()["version"] == "1.1.0"
    assert [e["type"] for e in api.get("/v1/events?after=0").json()["events"]][3:] == ["yanked", "unyanked"]


@pytest.mark.storages
def test_a_revoked_version_is_gone(api, publish_new, state, problem):
    old = publish_new(version="1.0.0")
    bad = publish_new(version="1.1.0", seed=1)
    state(api, "alias", alias="stable", version="1.1.0")
    assert state(api, "revoke", version="1.1.0", reason="burns through").status_code == 200
    weights = bad.manifest.files["model.safetensors"].sha256
    for path in (
        f"{REF}/1.1.0",
        f"{REF}/stable",
        f"{REF}/1.1.0/archive",
        f"{REF}/1.1.0/lineage",
        f"/v1/manifests/{bad.digest[7:]}",
        f"/v1/manifests/{bad.digest[7:]}/signature",
        f"/v1/blobs/{weights}",
    ):
        problem(api.get(path), 410, "revoked")
    assert api.get(f"{REF}/latest").json()["digest"] == old.digest
    shared = bad.manifest.files["README.md"].sha256  # the other version has it, too
    assert api.get(f"/v1/blobs/{shared}").status_code == 200
    problem(state(api, "unyank", version="1.1.0"), 409, "revoked")
    problem(state(api, "yank", version="1.1.0"), 409, "revoked")
    states = {v["version"]: (v["state"], v["reason"]) for v in api.get(REF).json()["versions"]}
    assert states == {"1.0.0": ("active", ""), "1.1.0": ("revoked", "burns through")}


def test_deprecation_points_to_the_successor(api, publish_new, state, problem):
    publish_new()
    publish_new(name="weld", seed=1)
    problem(state(api, "deprecate", message="old", successor="acme/nothing"), 404)
    assert state(api, "deprecate", message="no longer kept", successor="acme/weld").status_code == 200
    assert api.get(REF).json()["deprecated"] == {"message": "no longer kept", "successor": "acme/weld"}
    (warning,) = api.get(f"{REF}/latest").json()["warnings"]
    assert warning == f"{NAME} is deprecated: no longer kept; use acme/weld"
    assert state(api, "undeprecate").status_code == 200
    assert api.get(f"{REF}/latest").json()["deprecated"] is None


def test_a_statement_holds_once_and_here_alone(api, publish_new, state, problem):
    publish_new()
    for said, kind in (
        ({"serial": 2}, "serial"),
        ({"registry": "0" * 8 + "-0000-0000-0000-" + "0" * 12}, "other-registry"),
        ({"name": "acme/other"}, "other-skill"),
    ):
        problem(state(api, "alias", alias="stable", version="1.0.0", said=said), 409, kind)
    assert state(api, "alias", alias="stable", version="1.0.0").status_code == 200
    problem(state(api, "alias", alias="stable", version="1.0.0", said={"serial": 1}), 409, "serial")
    assert len(api.get("/v1/events?after=0").json()["events"]) == 2


def test_a_stranger_changes_nothing(api, publish_new, state, problem, tmp_path):
    publish_new()
    stranger = KeyStore(tmp_path / "stranger")
    stranger.new("default")
    refused = state(api, "revoke", version="1.0.0", key=stranger.private_key_path())
    assert problem(refused, 403, "not-your-org")["field"] == "signature"
    text = statement.build(
        registry=api.get(REF).json()["registry"], name=NAME, serial=1, action="undeprecate"
    )
    for signature in ("", "AAAA", "no base64!", "x" * 1000):
        problem(api.post(f"{REF}/statements", json={"statement": text, "signature": signature}), 403)
    assert api.get(f"{REF}/1.0.0").json()["state"] == "active"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "[" * 2000, '{"action": "explode"}', "x" * 8192, '{"registry": 1}'],
)
def test_malformed_statements(api, publish_new, problem, text):
    publish_new()
    problem(api.post(f"{REF}/statements", json={"statement": text, "signature": "AAAA"}), 422)


def test_versions_and_aliases_that_are_not_there(api, publish_new, state, problem):
    publish_new()
    problem(state(api, "alias", alias="stable", version="9.9.9"), 404)
    problem(state(api, "alias", alias="latest", version="1.0.0"), 409, "reserved")
    problem(state(api, "unalias", alias="stable"), 404)
    problem(state(api, "yank", version="9.9.9"), 404)
    problem(state(api, "undeprecate", name="acme/nothing"), 404)


@pytest.mark.parametrize(
    ("which", "version"),
    [
        ("^1.0", "1.10.0"),
        ("~1.9", "1.9.0"),
        (">=1.0,<1.10", "1.9.0"),
        ("1.*", "1.10.0"),
        ("^2.0.0-rc.1", "2.0.0-rc.1"),
        ("*", "1.10.0"),
    ],
)
def test_ranges(api, publish_new, which, version):
    for number, each in enumerate(("1.9.0", "1.10.0", "2.0.0-rc.1")):
        publish_new(version=each, seed=number)
    assert api.get(f"{REF}/{which}").json()["version"] == version


@pytest.mark.parametrize("which", ["^", "~x", "1.0.0.0", "^01.2", "01.2.3", ">=", "^1-rc", "1.0.0-", "<>1"])
def test_what_is_no_version_or_range(api, publish_new, problem, which):
    publish_new()
    problem(api.get(f"{REF}/{which}"), 400)
