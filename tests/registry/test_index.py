"""Finding skills: list, search, pages, versions, aliases, latest; and the page for people."""

from __future__ import annotations

import json

import pytest

REF = "/v1/skills/acme/weld-seam"


def test_nothing_yet(api, problem):
    assert api.get("/v1/skills").json() == {"skills": [], "next": None}
    problem(api.get(REF), 404)
    problem(api.get(f"{REF}/latest"), 404)
    assert api.get("/health/ready").json() == {"status": "ok"}
    assert api.get("/health/live").json()["status"] == "ok"
    assert "Nothing here yet" in api.get("/").text


@pytest.mark.storages
def test_latest_is_the_highest_release(api, publish_new, problem):
    publish_new(version="1.0.0-rc.1")
    assert api.get(f"{REF}/latest").json()["version"] == "1.0.0-rc.1"
    for version in ("1.9.0", "1.10.0", "2.0.0-rc.1"):
        publish_new(version=version)
    assert api.get(f"{REF}/latest").json()["version"] == "1.10.0"
    versions = [v["version"] for v in api.get(REF).json()["versions"]]
    assert versions == ["1.10.0", "1.9.0", "2.0.0-rc.1", "1.0.0-rc.1"]
    assert api.get("/v1/skills").json()["skills"][0]["version"] == "1.10.0"
    assert api.get(f"{REF}/2.0.0-rc.1").json()["version"] == "2.0.0-rc.1"
    assert "'1.0.0'" in problem(api.get(f"{REF}/1.0.0"), 404)["detail"]


@pytest.mark.storages
def test_who_has_a_version_is_told_of_it_too(api, publish_new, state, problem):
    for version in ("1.0.0", "1.1.0"):
        publish_new(version=version)
    whole = f"{REF}/latest/archive"
    plain = api.get(whole)
    assert "neuraverse-held" not in plain.headers
    assert plain.headers["neuraverse-version"] == "1.1.0"
    assert api.get(whole, params={"held": "1.0.0"}).headers["neuraverse-held"] == "active"
    state(api, "yank", version="1.0.0", reason="a burr")
    assert api.get(whole, params={"held": "1.0.0"}).headers["neuraverse-held"] == "yanked"
    state(api, "revoke", version="1.0.0", reason="it burns")
    same = {"if-none-match": f'"{"0" * 64}-tar", {plain.headers["etag"]}'}
    for headers, status in (({}, 200), (same, 304)):
        answer = api.get(whole, params={"held": "1.0.0"}, headers=headers)
        assert answer.status_code == status
        assert answer.headers["etag"] == plain.headers["etag"]
        assert answer.headers["neuraverse-version"] == "1.1.0"
        assert answer.headers["neuraverse-held"] == "revoked"
    assert "neuraverse-held" not in api.get(whole, params={"held": "9.9.9"}).headers
    refused = problem(api.get(whole, params={"held": "latest"}), 400)
    assert "'held': must be a semantic version such as 1.2.3" in refused["detail"]


def test_no_header_is_longer_than_proxies_take(api, publish_new, state):
    publish_new(version="1.0.0")
    archive, long = f"{REF}/1.0.0/archive", "\N{FIRE}" * 300
    state(api, "yank", version="1.0.0", reason=long)
    state(api, "deprecate", message=long)
    answer = api.get(archive)
    assert len(answer.headers["neuraverse-warnings"]) <= 2000
    warnings = json.loads(answer.headers["neuraverse-warnings"])
    assert [text.startswith("acme/weld-seam") and text.endswith("…") for text in warnings] == [True, True]
    assert len(api.get(f"{REF}/1.0.0").json()["warnings"][0]) > 300


@pytest.mark.parametrize(
    "path",
    [
        "/v1/skills/%2e%2e/x",
        "/v1/skills/ACME/x",
        "/v1/skills/acme/we%5Cld",
        "/v1/skills/acme/weld%00",
        "/v1/skills/acme/wéld",
        "/v1/skills/acme/" + "a" * 10_000,
        "/v1/skills/acme/weld-seam/1.0.0%2f..",
        "/v1/skills/acme/weld-seam/" + "1" * 65,
        "/v1/skills?limit=0",
        "/v1/skills?limit=101",
        "/v1/skills?limit=x",
        "/v1/skills?cursor=../x",
        "/v1/skills?q=" + "a" * 201,
        "/v1/orgs/../key",
        "/v1/nothing",
    ],
)
def test_fault_15_names_and_parameters_that_cannot_be(api, path, problem):
    answer = api.get(path)
    problem(answer, 404 if answer.status_code == 404 else 400)


@pytest.mark.storages
def test_search_finds_all_words_anywhere(api, publish_new):
    publish_new(name="weld-seam", title="Follow a Seam", tags=("welding",))
    publish_new(name="grind", title="Grind 100% flat", description="with_care")

    def names(q):
        return [s["name"] for s in api.get("/v1/skills", params={"q": q}).json()["skills"]]

    both = {"acme/grind", "acme/weld-seam"}
    assert set(names("")) == both
    assert names("SEAM follow") == ["acme/weld-seam"]
    assert set(names("welding testbot")) == both
    assert names("100%") == ["acme/grind"]
    assert names("with_care") == ["acme/grind"]
    assert names("h_c") == []  # whole words
    assert names("1%0") == []
    assert names("follow grind") == []


def test_an_entry_says_what_a_reader_needs(api, publish_new):
    skill = publish_new()
    (entry,) = api.get("/v1/skills").json()["skills"]
    score = skill.manifest.evaluation
    assert entry.pop("created").endswith("Z")
    assert entry == {
        "name": "acme/weld-seam",
        "version": "1.0.0",
        "digest": skill.digest,
        "title": "Follow a seam",
        "description": "",
        "rate": 0.95,
        "lower": score.lower,
        "n": 100,
        "robot": "testbot",
        "interface": skill.manifest.interface.digest(),
        "task": "neuraverse_envs:neuraverse/WeldSeam-v0",
        "license": "Apache-2.0",
        "tags": ["welding"],
        "visibility": "public",
        "evidence": {"bound": score.lower, "n": 100, "source": "simulation"},
        "field": None,
    }


@pytest.mark.storages
def test_pages_hold_every_skill_once(api, publish_new):
    expected = [f"acme/s{i}" for i in range(5)]
    for name in expected:
        publish_new(name=name.removeprefix("acme/"))
    seen, cursor = [], ""
    while cursor is not None:
        answer = api.get("/v1/skills", params={"cursor": cursor, "limit": 2}).json()
        assert len(answer["skills"]) <= 2
        seen += [s["name"] for s in answer["skills"]]
        cursor = answer["next"]
    assert sorted(seen) == expected


def test_the_page_for_people_escapes(api, publish_new):
    publish_new(title="<script>alert(1)</script>")
    answer = api.get("/", params={"q": "script"})
    assert "<script>" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "acme/weld-seam@1.0.0" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert '"><img' not in api.get("/", params={"q": '"><img src=x>'}).text
