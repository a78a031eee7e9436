"""`neuraverse fleet` and what `show` says of the field, against a registry that is closed."""

from __future__ import annotations

import httpx
import pytest

from tests.cli.test_accounts import alice, as_json, begun, bob, closed  # noqa: F401

NAME, STABLE, ARM = "acme/weld-seam", "acme/weld-seam@stable", "acme/arm-7"


@pytest.fixture
def arm(alice, closed, make_skill, tmp_path):  # noqa: F811
    """The requests of acme/arm-7, which follows ``stable`` and runs 1.0.0; 1.1.0 is there, too."""
    skills = {}
    for version in ("1.0.0", "1.1.0"):
        skills[version] = make_skill(tmp_path / version, version=version, seed=len(skills))
        alice("publish", skills[version].path, "--visibility", "public")
    alice("alias", "set", NAME, "stable", "1.0.0")
    token = alice("robot", "add", ARM).text
    with httpx.Client(base_url=closed.url, headers={"Authorization": f"Bearer {token}"}) as http:

        def say(version, state="running"):
            said = {"follows": STABLE, "version": version, "digest": skills[version].digest, "state": state}
            assert http.put("/v1/fleet/installs", json=said).status_code == 204

        def report(version, episodes, successes):
            said = {"digest": skills[version].digest, "body": skills[version].digest}
            counts = {"episodes": episodes, "successes": successes}
            assert http.post("/v1/fleet/reports", json=said | counts).status_code == 201

        http.say, http.report_on = say, report
        http.gets = lambda: http.get(f"/v1/skills/{NAME}/stable").json()["version"]
        say("1.0.0")
        yield http


def test_robots_are_seen_pinned_held_and_freed(arm, alice, bob):  # noqa: F811
    said = alice("fleet", "status", "acme").out
    assert [word for word in (ARM, STABLE, "1.0.0", "running") if word not in said] == []
    alice("fleet", "pin", ARM, f"{NAME}@1.1.0", "--reason", "wears less")
    assert arm.gets() == "1.1.0"
    (robot,) = as_json(bob, "fleet", "status", "acme")["robots"]
    assert robot["pins"][0]["version"] == "1.1.0"
    assert robot["follows"][0]["kept"] == "pin"
    assert "wears less" in bob("fleet", "status", "acme").out
    assert "may not pin robots" in bob("fleet", "pin", ARM, f"{NAME}@1.0.0", code=1).error
    alice("alias", "set", NAME, "stable", "1.1.0")
    assert as_json(alice, "fleet", "hold", ARM, NAME) == {"robot": ARM, "at": NAME, "reason": ""}
    assert arm.gets() == "1.0.0"
    assert "hold" in alice("fleet", "status", "acme").out
    alice("fleet", "free", ARM, NAME)
    assert arm.gets() == "1.1.0"
    for words, told in (
        (("pin", ARM, NAME), "names no version"),
        (("pin", ARM, f"{NAME}@stable"), "no version of a skill"),
        (("hold", ARM, f"{NAME}@1.0.0"), "names a version"),
        (("free", ARM, f"{NAME}@1.0.0"), "is no skill"),
        (("hold", "arm-7", NAME), "write ORG/ROBOT"),
    ):
        assert told in alice("fleet", *words, code=2).error
    assert "neither pinned nor held" in alice("fleet", "free", ARM, NAME, code=1).error
    arm.delete(f"/v1/fleet/installs?follows={STABLE}").raise_for_status()
    alice("fleet", "hold", ARM, NAME)
    assert ARM in alice("fleet", "status", "acme").out
    alice("fleet", "free", ARM, NAME)
    assert ARM in alice("fleet", "status", "acme").out
    alice("robot", "remove", ARM, "--yes")
    assert "has no robots" in alice("fleet", "status", "acme").out


def test_a_version_is_rolled_out(arm, alice, bob):  # noqa: F811
    assert "acme has no roll-outs" in alice("fleet", "rollout", "show").out
    start = ("fleet", "rollout", "start", STABLE, "1.1.0")
    made = as_json(alice, *start, "--stages", "50,100", "--episodes", "20", "--threshold", "0.7")
    assert (made["stages"], made["episodes"], made["threshold"]) == ([50, 100], 20, 0.7)
    number = made["id"]
    assert as_json(alice, "fleet", "rollout", "hold", number)["state"] == "held"
    assert as_json(alice, "fleet", "rollout", "resume", number)["state"] == "running"
    assert as_json(alice, "fleet", "rollout", "next", number)["share"] == 100
    assert arm.gets() == "1.1.0"
    arm.say("1.1.0")
    arm.report_on("1.1.0", 19, 18)
    said = bob("fleet", "rollout", "show", number, "--org", "acme").out
    for word in (
        "100 % of 50, 100",
        "94.7% of 19 episodes",
        "1 in the share; 1 run 1.1.0",
        "from 20 episodes on",
    ):
        assert word in said
    arm.report_on("1.1.0", 1, 1)
    assert as_json(alice, "fleet", "rollout", "show")["rollouts"][0]["state"] == "done"
    assert number in alice("fleet", "rollout", "show").out
    assert as_json(alice, "fleet", "rollout", "back", number)["state"] == "back"
    assert arm.gets() == "1.0.0"
    assert "ended" in alice("fleet", "rollout", "end", number).out
    # What it showed in the field stands beside the simulation.
    assert "95.0% of 20 episodes (95 % lower bound 76.4%)" in alice("show", f"{NAME}@1.1.0").out
    assert as_json(alice, "show", f"{NAME}@1.1.0")["field"]["n"] == 20
    assert as_json(alice, "show", f"{NAME}@1.0.0")["field"] is None
    reported = alice("fleet", "reports", NAME).out
    assert ARM in reported
    assert "95.0% of 20 episodes" in reported
    assert as_json(alice, "fleet", "reports", NAME)["reports"][0]["version"] == "1.1.0"
    assert "no skill named" in alice("fleet", "reports", "acme/nothing", code=1).error
    assert "is no skill" in alice("fleet", "reports", STABLE, code=2).error
    assert "next cannot follow" in alice("fleet", "rollout", "next", number, code=1).error
    assert "--stages 5,x" in alice(*start, "--stages", "5,x", code=2).error
    assert "stages.0" in alice(*start, "--stages", "0,100", code=1).error
    assert "no id of a roll-out" in alice("fleet", "rollout", "next", "7", code=2).error
    assert "no organisation" in bob("fleet", "rollout", "show", code=2).error
