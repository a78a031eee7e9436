"""Roll-outs: shares that are stable and fair, steps by hand and by what the field reports, and restarts."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from neuraverse.manifest import wilson_lower
from neuraverse.registry import Settings
from neuraverse.registry.fleet import reports, rollouts
from neuraverse.registry.fleet.steering import in_share
from neuraverse.registry.tenants.access import Access
from tests.registry.test_fleet import BODY, NAME, OPERATOR, STABLE
from tests.registry.test_fleet import plant as idle_plant  # noqa: F401

PATH = "/v1/orgs/plant/rollouts"
ROBOTS = 8


@pytest.fixture
def draw(monkeypatch):
    """Roll-outs have known ids, so that the same robots are in their shares each time."""
    numbers = itertools.count(1)
    monkeypatch.setattr(
        rollouts, "secrets", SimpleNamespace(token_hex=lambda n: f"{next(numbers):0{2 * n}x}")
    )


@pytest.fixture
def plant(idle_plant, draw):  # noqa: F811
    """A plant whose robots run 1.0.0, which ``stable`` means; 1.1.0 and 1.2.0 have been published since."""
    for number in range(ROBOTS):
        idle_plant.say(number, "1.0.0")
    return idle_plant


def start(plant, who=OPERATOR, path=PATH, **changes):
    said = {"follows": STABLE, "version": "1.1.0", "stages": [30, 60, 100], "episodes": 50, "threshold": 0.8}
    return plant.post(path, who, json=said | changes)


def begun(plant, **changes):
    answer = start(plant, **changes)
    assert answer.status_code == 201, answer.text
    return answer.json()


def step(plant, rollout, to, who=OPERATOR):
    return plant.post(f"{PATH}/{rollout['id']}/steps", who, json={"to": to})


def shown(plant, rollout):
    return plant.get(f"{PATH}/{rollout['id']}", OPERATOR).json()


def members(rollout, percent):
    """Numbers of the robots in a share."""
    return [n for n in range(ROBOTS) if in_share(rollout["id"], f"plant/arm-{n}", percent)]


def versions(plant):
    return [plant.gets(number)[0] for number in range(ROBOTS)]


def expected(inside, target="1.1.0", baseline="1.0.0"):
    return [target if number in inside else baseline for number in range(ROBOTS)]


# --- shares


def test_shares_are_fair_and_stable_and_grow():
    names = [f"plant/arm-{number}" for number in range(2000)]
    first, second = "0123456789abcdef", "fedcba9876543210"
    for percent, allowed in ((5, 50), (25, 100), (50, 115)):  # five standard deviations
        inside = {name for name in names if in_share(first, name, percent)}
        assert abs(len(inside) - 20 * percent) < allowed
        assert inside == {name for name in reversed(names) if in_share(first, name, percent)}
        assert inside <= {name for name in names if in_share(first, name, percent + 1)}
        # Another roll-out draws anew: nobody is always the first one.
        both = inside & {name for name in names if in_share(second, name, percent)}
        assert abs(len(both) - 20 * percent * percent / 100) < allowed
    assert all(in_share(first, name, 100) for name in names)
    assert not any(in_share(first, name, 0) for name in names)
    # So it was in the first release; another hash would move every robot of every roll-out under way.
    assert [n for n in range(40) if in_share(first, f"plant/arm-{n}", 10)] == DRAWN


DRAWN = [1, 9, 13, 15, 16, 33]


def test_robots_in_the_share_get_the_target(plant):
    made = begun(plant)
    inside = members(made, 30)
    assert 0 < len(inside) < len(members(made, 60)) < ROBOTS
    assert {k: made[k] for k in ("org", "follows", "stages", "stage", "share", "state", "episodes")} == {
        "org": "plant",
        "follows": STABLE,
        "stages": [30, 60, 100],
        "stage": 0,
        "share": 30,
        "state": "running",
        "episodes": 50,
    }
    assert [made[k]["version"] for k in ("target", "baseline")] == ["1.1.0", "1.0.0"]
    assert made["target"]["digest"] == plant.skills[f"{NAME}@1.1.0"].digest
    assert made["threshold"] == 0.8
    assert versions(plant) == expected(inside)
    name = made["id"]
    outside = next(n for n in range(ROBOTS) if n not in inside)
    assert plant.gets(inside[0])[1] == f"rollout {name}: 30 % of plant's robots"
    assert plant.gets(outside)[1] == f"rollout {name}: not one of 30 % of plant's robots"
    # Nobody else is moved, and no other reference.
    assert plant.gets(inside[0], "latest") == ("1.2.0", "")
    assert plant.gets(inside[0], "1.0.0") == ("1.0.0", "")
    for who in ("nobody", OPERATOR, ("acme", "robot")):
        found = plant.get(f"/v1/skills/{NAME}/stable", who).json()
        assert (found["version"], found["because"]) == ("1.0.0", "")
    # Whatever the publisher does with the alias meanwhile.
    plant.state("alias", alias="stable", version="1.2.0")
    plant.restart()
    assert versions(plant) == expected(inside)
    plant.say(inside[0], "1.1.0")
    plant.say(outside, "1.1.0", "refused", follows=f"{NAME}@beta")
    counts = {"following": ROBOTS, "in_share": len(inside), "run_target": 1, "run_baseline": 7, "refused": 0}
    assert shown(plant, made)["robots"] == counts
    assert plant.install(inside[0])["rollout"] == {"id": name, "in_share": True}
    assert plant.install(outside)["rollout"] == {"id": name, "in_share": False}
    assert plant.install(outside)["kept"] == "rollout"


def test_a_pin_comes_before_a_hold_before_a_rollout(plant):
    made = begun(plant, stages=[100])
    assert plant.gets(0)[0] == "1.1.0"
    plant.pin(0, None)
    assert plant.gets(0) == ("1.0.0", "held")
    assert plant.install()["kept"] == "hold"
    plant.pin(0, "1.2.0")
    assert plant.gets(0) == ("1.2.0", "pinned")
    plant.free(0)
    assert plant.gets(0) == ("1.1.0", f"rollout {made['id']}: 100 % of plant's robots")


@pytest.mark.parametrize(
    ("changes", "field_named"),
    [
        ({"stages": [0, 100]}, "stages.0"),
        ({"stages": [5, 101]}, "stages.1"),
        ({"stages": [-5]}, "stages.0"),
        ({"stages": [25, 5]}, "stages.1"),
        ({"stages": [5, 5]}, "stages.1"),
        ({"stages": []}, "stages"),
        ({"stages": ["5"]}, "stages.0"),
        ({"stages": [True]}, "stages.0"),
        ({"stages": [i + 1 for i in range(21)]}, "stages"),
        ({"episodes": -1}, "episodes"),
        ({"threshold": 1.1}, "threshold"),
        ({"version": "stable"}, "version"),
        ({"follows": "acme"}, "follows"),
        ({"follows": f"{NAME}@1.0.0"}, "follows"),
        ({"follows": f"{NAME}@^2"}, "version"),
    ],
)
def test_rollouts_that_cannot_be(closed, problem, changes, field_named):
    assert problem(start(closed, **changes), 422)["field"] == field_named


@pytest.fixture(scope="module")
def closed(tmp_path_factory, first_plant):
    """A plant that nothing changes."""
    settings = Settings.load(data=tmp_path_factory.mktemp("data"), open=False, collect_hours=0)
    made = first_plant.again(settings)
    yield made
    made.close()


def test_rollouts_that_are_refused(plant, problem):
    plant.release("1.0.0", "private", name="secret")
    plant.state("yank", version="1.2.0")
    for changes, status, kind in (
        ({"version": "9.9.9"}, 404, "no-such-version"),
        ({"follows": f"{NAME}@never"}, 404, "no-such-version"),
        ({"follows": "acme/never@stable"}, 404, "no-such-skill"),
        ({"follows": "acme/secret@stable", "version": "1.0.0"}, 404, "no-such-skill"),
        ({"version": "1.2.0"}, 409, "not-active"),
        ({"version": "1.0.0"}, 409, "no-change"),
    ):
        problem(start(plant, **changes), status, kind)
    for who, status in (
        (None, 401),
        (("plant", "publisher"), 403),
        (plant.robot(0), 403),
        (("acme", "owner"), 404),
    ):
        problem(start(plant, who), status)
        problem(step(plant, {"id": "0" * 16}, "end", who), status)
    for who, status in ((None, 401), (plant.robot(0), 403), (("acme", "owner"), 404)):
        problem(plant.get(PATH, who), status)
    problem(plant.get(f"{PATH}/{'0' * 16}", OPERATOR), 404, "no-such-rollout")
    problem(step(plant, {"id": "0" * 16}, "end"), 404, "no-such-rollout")
    assert plant.get(PATH, ("plant", "reader")).json() == {"rollouts": []}
    made = begun(plant)
    assert problem(start(plant), 409, "rollout-active")["rollout"] == made["id"]
    problem(step(plant, made, "sideways"), 422)
    elsewhere = f"/v1/orgs/acme/rollouts/{made['id']}"
    problem(plant.get(elsewhere, ("acme", "owner")), 404, "no-such-rollout")
    problem(plant.post(f"{elsewhere}/steps", ("acme", "owner"), json={"to": "end"}), 404, "no-such-rollout")
    begun(plant, follows=f"{NAME}@latest", version="1.0.0")  # another reference is another roll-out
    assert plant.told(("acme", "owner")) == []


# --- steps


def test_steps_by_hand(plant, problem):
    made = begun(plant, episodes=0)
    inside = members(made, 30)
    for to, state, share, gets in (
        ("resume", None, 30, expected(inside)),
        ("hold", "held", 30, expected(inside)),
        ("hold", None, 30, expected(inside)),
        ("resume", "running", 30, expected(inside)),
        ("next", "running", 60, expected(members(made, 60))),
        ("hold", "held", 60, expected(members(made, 60))),
        ("next", "running", 100, ["1.1.0"] * ROBOTS),
        ("next", "done", 100, ["1.1.0"] * ROBOTS),
        ("next", None, 100, ["1.1.0"] * ROBOTS),
        ("back", "back", 0, ["1.0.0"] * ROBOTS),
        ("next", None, 0, ["1.0.0"] * ROBOTS),
        ("resume", None, 0, ["1.0.0"] * ROBOTS),
    ):
        answer = step(plant, made, to)
        if state is None:
            problem(answer, 409, "rollout-state")
        else:
            found = answer.json()
            assert (found["state"], found["share"]) == (state, share), to
            assert found["reason"] == f"{to} by maintainer-plant"
        assert versions(plant) == gets, to
    plant.state("alias", alias="stable", version="1.2.0")
    assert versions(plant) == ["1.0.0"] * ROBOTS
    assert step(plant, made, "end").json()["robots"] is None
    assert versions(plant) == ["1.2.0"] * ROBOTS
    problem(step(plant, made, "back"), 409, "rollout-state")
    told = plant.told(plant.robot(0))
    steps = ["start", "hold", "resume", "next", "hold", "next", "next", "back", "end"]
    assert [each["step"] for each in told] == steps
    assert {(each["change"], each["follows"], each["version"]) for each in told} == {
        ("rollout", STABLE, "1.1.0")
    }
    assert told[3]["share"] == 60
    lines = plant.get("/v1/orgs/plant/audit", ("plant", "owner")).json()["entries"]
    noted = [line["action"] for line in lines if line["action"].startswith("rollout.")]
    assert noted[::-1] == [f"rollout.{each}" for each in steps]


def test_the_next_rollout_builds_on_one_that_reached_everybody(plant, problem):
    first = begun(plant, stages=[50], episodes=0)
    step(plant, first, "next")
    problem(start(plant, version="1.2.0"), 409, "rollout-active")
    step(plant, first, "end")
    second = begun(plant, stages=[100], episodes=0)
    step(plant, second, "next")
    third = begun(plant, version="1.2.0")
    assert third["baseline"]["version"] == "1.1.0"
    inside = members(third, 30)
    assert versions(plant) == expected(inside, "1.2.0", "1.1.0")
    found = plant.get(PATH, OPERATOR).json()["rollouts"]
    assert {each["id"]: each["state"] for each in found} == {
        first["id"]: "ended",
        second["id"]: "ended",
        third["id"]: "running",
    }
    assert shown(plant, second)["reason"] == f"{third['id']} followed"


def test_what_was_yanked_or_revoked_is_given_to_nobody(plant):
    made = begun(plant, stages=[60, 100])
    inside = members(made, 60)
    plant.state("yank", version="1.1.0")
    assert versions(plant) == ["1.0.0"] * ROBOTS
    plant.state("unyank", version="1.1.0")
    assert versions(plant) == expected(inside)
    plant.state("alias", alias="stable", version="1.2.0")
    plant.state("revoke", version="1.0.0")
    assert versions(plant) == expected(inside, "1.1.0", "1.2.0")
    plant.state("revoke", version="1.1.0")
    assert versions(plant) == ["1.2.0"] * ROBOTS


# --- what the field says


@pytest.mark.storages
def test_a_rollout_goes_on_by_itself(plant):
    """Through every stage, the server restarted in between, and to its end."""
    made = begun(plant)
    robot = members(made, 30)[0]
    plant.say(robot, "1.1.0")
    assert plant.report(robot, "1.1.0", 49, 49).status_code == 201
    found = shown(plant, made)
    assert (found["stage"], found["field"]["n"], found["field"]["successes"]) == (0, 49, 49)
    assert found["field"]["lower"] == wilson_lower(49, 49)
    assert found["field"]["upper"] == 1.0
    plant.restart()
    plant.report(robot, "1.1.0", 1, 1)
    found = shown(plant, made)
    assert (found["stage"], found["share"], found["state"], found["field"]["n"]) == (1, 60, "running", 0)
    assert found["reason"] == "50 of 50 episodes at 30 %: at least 0.929, 0.800 is enough"
    assert versions(plant) == expected(members(made, 60))
    # The bound is what counts, not the rate: 45 of 50 may be luck, 86 of 95 are not.
    plant.report(robot, "1.1.0", 50, 45)
    assert wilson_lower(45, 50) < 0.8 < wilson_lower(86, 95)
    assert shown(plant, made)["stage"] == 1
    plant.report(robot, "1.1.0", 45, 41)
    assert shown(plant, made)["stage"] == 2
    plant.report(robot, "1.1.0", 50, 50)
    found = shown(plant, made)
    assert (found["stage"], found["state"]) == (2, "done")
    assert versions(plant) == ["1.1.0"] * ROBOTS
    plant.report(robot, "1.1.0", 100, 0)  # it is no roll-out any more that moves by itself
    assert shown(plant, made)["state"] == "done"
    assert [each["step"] for each in plant.told(OPERATOR)] == ["start", "next", "next", "next"]


def test_a_rollout_goes_back_by_itself(plant):
    made = begun(plant)
    robot = members(made, 30)[0]
    plant.say(robot, "1.1.0")
    plant.report(robot, "1.1.0", 40, 0)
    assert shown(plant, made)["state"] == "running"  # too few yet to decide
    plant.report(robot, "1.1.0", 10, 10)
    found = shown(plant, made)
    assert (found["state"], found["share"]) == ("back", 0)
    assert found["reason"].startswith("10 of 50 episodes at 30 %: at most 0.3")
    assert plant.gets(robot) == ("1.0.0", f"rollout {made['id']}: not one of 0 % of plant's robots")
    assert plant.told(plant.robot(1))[-1]["state"] == "back"


def test_a_held_rollout_counts_and_does_not_move(plant):
    made = begun(plant)
    plant.say(0, "1.1.0")
    step(plant, made, "hold")
    plant.report(0, "1.1.0", 50, 50)
    found = shown(plant, made)
    assert (found["state"], found["field"]["n"]) == ("held", 50)
    assert step(plant, made, "resume").json()["field"]["n"] == 0
    plant.report(0, "1.1.0", 50, 50)
    assert shown(plant, made)["stage"] == 1


def test_only_robots_of_the_fleet_that_follow_count(plant):
    made = begun(plant)
    digest = plant.skills[f"{NAME}@1.1.0"].digest
    said = {"follows": STABLE, "version": "1.1.0", "digest": digest, "state": "running"}
    assert plant.put("/v1/fleet/installs", ("acme", "robot"), json=said).status_code == 204
    report = {"digest": digest, "episodes": 50, "successes": 0, "body": BODY}
    assert plant.post("/v1/fleet/reports", ("acme", "robot"), json=report).status_code == 201
    plant.say(0, "1.1.0", follows=f"{NAME}@beta")
    plant.delete("/v1/fleet/installs", plant.robot(0), params={"follows": STABLE})
    plant.report(0, "1.1.0", 50, 0)
    plant.report(1, "1.0.0", 50, 0)
    found = shown(plant, made)
    assert (found["state"], found["field"]["n"]) == ("running", 0)


def test_a_version_that_cannot_even_start_goes_back(plant):
    made = begun(plant, episodes=3)
    plant.say(0, "1.1.0", "refused", reason="no wrench sensor")
    for state in ("refused", "rolled-back", "running", "refused"):  # a robot counts once in a stage
        plant.say(0, "1.1.0" if state != "running" else "1.0.0", state)
    plant.say(1, "1.2.0", "refused")
    found = shown(plant, made)
    assert (found["field"]["n"], found["field"]["successes"]) == (1, 0)
    assert found["robots"]["refused"] == 1
    plant.say(1, "1.1.0", "rolled-back")
    assert shown(plant, made)["state"] == "running"
    plant.say(2, "1.1.0", "refused")
    assert shown(plant, made)["state"] == "back"
    assert plant.get(f"/v1/skills/{NAME}/1.1.0").json()["field"] is None
    step(plant, made, "end")
    begun(plant, episodes=3)
    plant.say(0, "1.1.0", "refused")
    again = plant.get(PATH, OPERATOR).json()["rollouts"]
    assert [each["field"]["n"] for each in again if each["state"] == "running"] == [1]


def test_the_threshold_is_what_the_baseline_shows_in_the_field(plant):
    simulated = plant.skills[f"{NAME}@1.1.0"].manifest.evaluation.lower
    made = begun(plant, threshold=None)
    assert made["threshold"] == pytest.approx(simulated - 0.05)
    step(plant, made, "end")
    plant.report(0, "1.0.0", 99, 97)
    made = begun(plant, threshold=None)
    assert made["threshold"] == pytest.approx(simulated - 0.05)
    plant.report(0, "1.0.0", 1, 1)
    assert shown(plant, made)["threshold"] == pytest.approx(simulated - 0.05)  # it was fixed at the start
    step(plant, made, "end")
    assert begun(plant, threshold=None)["threshold"] == pytest.approx(wilson_lower(98, 100))


@pytest.mark.storages
def test_reports_at_once_decide_once(plant):
    """Of twenty, each of ten episodes, ten times two reach the hundred that a stage takes: two steps."""
    made = begun(plant, episodes=100, threshold=0.5, stages=[10, 20, 30, 100])
    for number in range(ROBOTS):
        plant.say(number, "1.1.0")
    registry = plant.registry
    said = reports.Report(
        digest=plant.skills[f"{NAME}@1.1.0"].digest,
        episodes=10,
        successes=10,
        aborts=0,
        errors={},
        body=BODY,
        software={},
    )

    async def at_once():
        access = Access(registry.database, is_open=False)
        callers = [await access.caller(f"Bearer {plant.token[plant.robot(n % ROBOTS)]}") for n in range(20)]
        return await asyncio.gather(
            *(registry.database.write(reports.take, caller, said) for caller in callers)
        )

    totals = [each["field"]["n"] for each in plant.api.portal.call(at_once)]
    assert sorted(totals) == [10 * (n + 1) for n in range(20)]
    found = shown(plant, made)
    assert (found["stage"], found["field"]["n"]) == (2, 0)
    assert [each["step"] for each in plant.told(OPERATOR)] == ["start", "next", "next"]
