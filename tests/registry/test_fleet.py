"""Robots say what they run and how it does; operators see it, and pin and hold them."""

from __future__ import annotations

import copy
import json
import shutil
import time

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from neuraverse.manifest import wilson_lower
from neuraverse.registry import Settings, create_app
from neuraverse.registry.fleet import installs, reports
from neuraverse.registry.tables import field, now, robots, runs
from tests.registry.test_tenants import World

NAME, STABLE = "acme/weld-seam", "acme/weld-seam@stable"
BODY = "sha256:" + "b0" * 32
OPERATOR = ("plant", "maintainer")


class Plant(World):
    """Acme publishes, and the robots of a plant follow: ``plant.robot(1)`` is the name of one's token."""

    def __init__(self, settings, folder, make_skill, publisher, state, names=8):
        """Three versions are published, of which ``stable`` means the first."""
        super().__init__(settings, orgs=("acme", "plant"))
        self.publisher = publisher
        self._folder, self._make_skill, self._state = folder, make_skill, state
        self.skills = {}
        for number in range(names):
            self.add_robot(number)
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            self.release(version)
        self.state("alias", alias="stable", version="1.0.0")

    def add_robot(self, number):
        made = self.post("/v1/orgs/plant/robots", OPERATOR, json={"name": f"arm-{number}"})
        assert made.status_code == 201, made.text
        self.token[self.robot(number)] = made.json()["token"]

    def restart(self):
        """End the server and start it on the same data."""
        self.close()
        self.start()

    def start(self):
        self.app = create_app(self.settings)
        self.api = TestClient(self.app).__enter__()
        self.registry = self.app.state.registry

    def again(self, settings):
        """The same plant in another folder; this one is closed."""
        made = copy.copy(self)
        made.settings, made.token, made.skills = settings, dict(self.token), dict(self.skills)
        made._folder = settings.data.parent / "skills"
        shutil.copytree(self.settings.data, settings.data, dirs_exist_ok=True)
        made.start()
        return made

    def robot(self, number):
        return ("plant", f"arm-{number}")

    def release(self, version, visibility="public", **fields):
        folder = self._folder / f"{fields.get('name', 'weld-seam')}-{version}"
        skill = self._make_skill(folder, org="acme", version=version, seed=len(self.skills), **fields)
        answer = World.publish(self, skill, self.publisher, ("acme", "owner"), visibility=visibility)
        assert answer.status_code == 201, answer.text
        self.skills[skill.ref] = skill
        return skill

    def state(self, action, **fields):
        answer = self._state(self.as_(("acme", "owner")), action, **fields)
        assert answer.status_code == 200, answer.text

    def say(self, number, version, state="running", follows=STABLE, reason="", **changes):
        said = {
            "follows": follows,
            "version": version,
            "digest": None if version is None else self.skills[f"{NAME}@{version}"].digest,
            "state": state,
            "reason": reason,
        }
        return self.put("/v1/fleet/installs", self.robot(number), json=said | changes)

    def report(self, number, version, episodes=20, successes=19, key=None, **changes):
        said = {
            "digest": self.skills[f"{NAME}@{version}"].digest,
            "episodes": episodes,
            "successes": successes,
            "body": BODY,
        }
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.post("/v1/fleet/reports", self.robot(number), json=said | changes, headers=headers)

    def gets(self, number, which="stable"):
        """What a robot gets, and why."""
        answer = self.get(f"/v1/skills/{NAME}/{which}", self.robot(number))
        assert answer.status_code == 200, answer.text
        archive = self.get(f"/v1/skills/{NAME}/{which}/archive", self.robot(number))
        assert archive.headers["neuraverse-digest"] == answer.json()["digest"]
        return answer.json()["version"], answer.json()["because"]

    def robots(self):
        """What the operator sees, by robot."""
        page = self.get("/v1/orgs/plant/robots", OPERATOR).json()
        assert page["next"] is None
        return {each["robot"]: each for each in page["robots"]}

    def install(self, number=0, follows=STABLE):
        found = self.robots()[f"plant/arm-{number}"]["follows"]
        return next((each for each in found if each["follows"] == follows), None)

    def pin(self, number, version, reason="", name=NAME, who=OPERATOR):
        path = f"/v1/orgs/plant/robots/arm-{number}/pins/{name}"
        return self.put(path, who, json={"version": version, "reason": reason})

    def free(self, number, who=OPERATOR):
        return self.delete(f"/v1/orgs/plant/robots/arm-{number}/pins/{NAME}", who)

    def told(self, who):
        """Fleet events that somebody sees."""
        events = self.get("/v1/events?after=0&limit=1000", who).json()["events"]
        return [each for each in events if each["type"] == "fleet"]

    def rows(self, query):
        return self.api.portal.call(self.registry.database.read, lambda db: db.execute(query).all())


@pytest.fixture
def plant(first_plant, settings, tmp_path, make_skill, publisher, state):
    """A plant with eight robots; ``stable`` is 1.0.0 of three versions."""
    closed = settings.model_copy(update={"open": False})
    if settings.database_url.startswith("sqlite"):
        made = first_plant.again(closed)
    else:
        made = Plant(closed, tmp_path / "skills", make_skill, publisher, state)
    yield made
    made.close()


# --- what runs


def test_an_operator_sees_what_runs(plant):
    assert plant.robots()["plant/arm-0"] == {
        "robot": "plant/arm-0",
        "since": plant.robots()["plant/arm-0"]["since"],
        "last_seen": None,
        "follows": [],
        "pins": [],
    }
    assert plant.say(0, "1.0.0").status_code == 204
    first = plant.install()
    assert {k: first[k] for k in ("runs", "state", "reason", "failed", "kept", "rollout")} == {
        "runs": {"version": "1.0.0", "digest": plant.skills[f"{NAME}@1.0.0"].digest},
        "state": "running",
        "reason": "",
        "failed": None,
        "kept": None,
        "rollout": None,
    }
    assert plant.robots()["plant/arm-0"]["last_seen"] >= first["since"]
    assert plant.say(0, "1.0.0", reason="still").status_code == 204
    again = plant.install()
    assert (again["since"], again["reason"]) == (first["since"], "still")
    assert again["reported"] >= first["reported"]
    plant.say(0, "1.1.0")
    assert plant.install()["since"] >= again["reported"]
    assert [each.version_id for each in plant.rows(select(runs))] == [1, 2]
    # A reference without a version means latest; who follows it no more is not shown with it.
    plant.say(0, "1.2.0", follows=NAME)
    assert plant.install(follows=f"{NAME}@latest")["runs"]["version"] == "1.2.0"
    for follows in (NAME, STABLE, STABLE):
        gone = plant.delete("/v1/fleet/installs", plant.robot(0), params={"follows": follows})
        assert gone.status_code == 204
    assert plant.robots()["plant/arm-0"]["follows"] == []
    assert plant.told(OPERATOR) == []


def test_what_a_robot_runs_after_each_state(plant):
    plant.say(0, "1.0.0")
    plant.say(0, "1.1.0", "refused", reason="no wrench\nsensor\0")
    found = plant.install()
    assert (found["runs"]["version"], found["state"], found["failed"]) == ("1.0.0", "refused", "1.1.0")
    assert found["reason"] == "no wrench sensor "
    plant.say(0, "1.1.0")
    assert (plant.install()["runs"]["version"], plant.install()["failed"]) == ("1.1.0", None)
    plant.say(0, "1.1.0", "rolled-back")
    assert (plant.install()["runs"]["version"], plant.install()["failed"]) == ("1.0.0", "1.1.0")
    plant.say(0, None, "stopped")
    assert plant.install()["runs"]["version"] == "1.0.0"
    plant.say(0, "1.0.0", "left")
    assert plant.install()["runs"] is None
    plant.say(1, "1.1.0", "refused")
    assert plant.install(1)["runs"] is None


def test_what_a_robot_cannot_say(plant, problem, monkeypatch):
    plant.release("1.0.0", "private", name="secret")
    secret = {"follows": "acme/secret@stable", "version": "1.0.0"}
    other = plant.skills[f"{NAME}@1.1.0"].digest
    digest = plant.skills[f"{NAME}@1.0.0"].digest
    good = {"follows": STABLE, "version": "1.0.0", "digest": digest, "state": "running"}
    for changes, status, kind in (
        ({"follows": "acme/never@stable"}, 404, "no-such-skill"),
        (secret | {"digest": plant.skills["acme/secret@1.0.0"].digest}, 404, "no-such-skill"),
        ({"digest": other}, 422, "other-digest"),
        ({"digest": None}, 422, "other-digest"),
        ({"version": "9.9.9"}, 422, "other-digest"),
        ({"version": None, "digest": None}, 422, "no-version"),
        ({"follows": f"{NAME}@>>1"}, 422, "reference"),
        ({"follows": f"{NAME}@~~"}, 422, "reference"),
        ({"follows": f"{NAME}@{'x' * 129}"}, 422, "invalid"),
        ({"follows": "weld-seam"}, 422, "invalid"),
        ({"state": "dancing"}, 422, "invalid"),
        ({"reason": "x" * 2001}, 422, "invalid"),
        ({"more": 1}, 422, "invalid"),
    ):
        problem(plant.put("/v1/fleet/installs", plant.robot(0), json=good | changes), status, kind)
    said = {"follows": STABLE, "state": "stopped"}
    problem(plant.put("/v1/fleet/installs", json=said), 401, "sign-in")
    problem(plant.put("/v1/fleet/installs", ("plant", "owner"), json=said), 403, "forbidden")
    problem(plant.delete("/v1/fleet/installs?follows=acme/x", ("plant", "owner")), 403, "forbidden")
    problem(plant.delete("/v1/fleet/installs?follows=x", plant.robot(0)), 400, "invalid")
    reader = plant.post("/v1/orgs/plant/robots/arm-0/tokens", OPERATOR, json={"scopes": ["read"]})
    problem(plant.put("/v1/fleet/installs", reader.json()["token"], json=said), 403, "forbidden")
    huge = b'{"follows": "' + b" " * 100_000 + b'"}'
    problem(plant.put("/v1/fleet/installs", plant.robot(1), content=huge), 413)
    monkeypatch.setattr(installs, "MAX_FOLLOWS", 2)
    for which in ("a", "b"):
        assert plant.say(1, "1.0.0", follows=f"{NAME}@{which}").status_code == 204
    problem(plant.say(1, "1.0.0", follows=f"{NAME}@c"), 409, "too-many")
    assert plant.say(1, "1.1.0", follows=f"{NAME}@b").status_code == 204


def test_only_what_a_robot_ran_last_is_remembered(plant, monkeypatch, problem):
    monkeypatch.setattr(installs, "MAX_RUNS", 2)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        plant.say(0, version)
    problem(plant.report(0, "1.0.0"), 409, "never-ran")
    assert plant.report(0, "1.1.0").status_code == plant.report(0, "1.2.0").status_code == 201


def test_a_fleet_is_seen_by_its_people_alone_and_by_pages(plant, problem):
    for who, status in (
        (None, 401),
        (("acme", "owner"), 404),
        (plant.robot(0), 403),
        (("plant", "reader"), 200),
    ):
        assert plant.get("/v1/orgs/plant/robots", who).status_code == status, who
    names, cursor = [], ""
    while cursor is not None:
        page = plant.get(f"/v1/orgs/plant/robots?limit=4&cursor={cursor}", OPERATOR).json()
        names += [each["robot"] for each in page["robots"]]
        cursor = page["next"]
    assert names == [*(f"plant/arm-{n}" for n in range(8)), "plant/r1"]
    problem(plant.get("/v1/orgs/plant/robots?limit=101", OPERATOR), 400)
    assert plant.delete("/v1/orgs/plant/robots/arm-0", OPERATOR).status_code == 204
    assert set(plant.robots()) == set(names[1:])


# --- pins and holds


@pytest.mark.storages
def test_a_pin_decides_what_a_robot_gets(plant):
    assert plant.gets(0) == ("1.0.0", "")
    assert plant.pin(0, "1.1.0", "wears\nless").status_code == 204
    for which in ("stable", "latest", "^1", "*", "never"):
        assert plant.gets(0, which) == ("1.1.0", "pinned: wears less")
    assert plant.gets(0, "1.2.0") == ("1.2.0", "")
    assert plant.gets(1) == ("1.0.0", "")
    assert plant.get(f"/v1/skills/{NAME}/stable", OPERATOR).json()["version"] == "1.0.0"
    seen = plant.robots()["plant/arm-0"]["pins"]
    assert [(p["skill"], p["version"], p["reason"]) for p in seen] == [(NAME, "1.1.0", "wears less")]
    plant.say(0, "1.1.0")
    assert plant.install()["kept"] == "pin"
    plant.restart()
    assert plant.pin(0, "1.2.0").status_code == 204
    assert plant.gets(0) == ("1.2.0", "pinned")
    assert plant.free(0).status_code == 204
    assert plant.gets(0) == ("1.0.0", "")
    assert plant.robots()["plant/arm-0"]["pins"] == []
    # The fleet is told, with nothing of which robot it is; and who did it is in the audit log.
    told = plant.told(plant.robot(1))
    assert [(e["change"], e["version"]) for e in told] == [("pin", "1.1.0"), ("pin", "1.2.0"), ("free", "")]
    assert told == plant.told(("plant", "reader"))
    assert "arm-0" not in json.dumps(told)
    assert plant.told(("acme", "owner")) == plant.told("nobody") == []
    lines = plant.get("/v1/orgs/plant/audit", ("plant", "owner")).json()["entries"]
    mine = [(e["action"], e["target"], e["actor"]) for e in lines if e["target"] == "plant/arm-0"][:3]
    assert mine == [
        (action, "plant/arm-0", "maintainer-plant") for action in ("robot.free", "robot.pin", "robot.pin")
    ]


def test_a_held_robot_stays_at_what_it_runs(plant, problem):
    assert plant.pin(0, None, "audit").status_code == 204
    assert plant.gets(0) == ("1.0.0", "")  # it runs nothing
    plant.say(0, "1.2.0")
    time.sleep(0.002)  # times are in milliseconds
    plant.say(0, "1.0.0")
    plant.state("alias", alias="stable", version="1.1.0")
    assert plant.gets(0) == ("1.0.0", "held: audit")
    assert plant.gets(1) == ("1.1.0", "")
    assert plant.install()["kept"] == "hold"
    plant.say(0, "1.1.0", "refused")
    assert plant.gets(0) == ("1.0.0", "held: audit")
    # What it follows otherwise, it ran last.
    assert plant.gets(0, "latest") == ("1.0.0", "held: audit")
    plant.delete("/v1/fleet/installs", plant.robot(0), params={"follows": STABLE})
    assert plant.gets(0) == ("1.0.0", "held: audit")
    plant.state("yank", version="1.0.0", reason="too fast")
    assert plant.gets(0) == ("1.1.0", "")
    assert plant.free(0).status_code == 204
    problem(plant.free(0), 404, "no-such-pin")


def test_a_revoked_version_is_gone_pinned_or_not(plant, problem):
    plant.pin(0, "1.2.0")
    plant.pin(1, None)
    plant.say(1, "1.2.0")
    assert plant.gets(1)[0] == "1.2.0"
    plant.state("yank", version="1.2.0")
    assert plant.gets(0)[0] == "1.2.0"  # as one who asks for it by name
    plant.state("revoke", version="1.2.0", reason="unsafe")
    problem(plant.get(f"/v1/skills/{NAME}/stable", plant.robot(0)), 410, "revoked")
    assert plant.gets(1) == ("1.0.0", "")
    problem(plant.pin(0, "1.2.0"), 410, "revoked")


def test_pins_that_cannot_be(plant, problem, monkeypatch):
    plant.release("1.0.0", "private", name="secret")
    for number, version, name, status, kind in (
        (9, "1.0.0", NAME, 404, "no-such-robot"),
        (0, "9.9.9", NAME, 404, "no-such-version"),
        (0, "stable", NAME, 422, "invalid"),
        (0, "1.0.0", "acme/never", 404, "no-such-skill"),
        (0, "1.0.0", "acme/secret", 404, "no-such-skill"),
    ):
        problem(plant.pin(number, version, name=name), status, kind)
    for who, status in ((None, 401), (("plant", "publisher"), 403), (plant.robot(0), 403)):
        problem(plant.pin(0, "1.0.0", who=who), status)
        problem(plant.free(0, who=who), status)
    problem(plant.pin(0, "1.0.0", who=("acme", "owner")), 404, "no-such-org")
    # Who belongs to both organisations sees more than the robots do, and does not show it to them.
    code = plant.post("/v1/orgs/acme/invitations", ("acme", "owner"), json={"role": "reader"}).json()["code"]
    assert plant.post("/v1/login", OPERATOR, json={"code": code}).status_code == 200
    problem(plant.pin(0, "1.0.0", name="acme/secret"), 409, "not-theirs")
    monkeypatch.setattr(installs, "MAX_FOLLOWS", 0)
    problem(plant.pin(0, "1.0.0"), 409, "too-many")
    assert plant.told(OPERATOR) == []
    plant.patch("/v1/orgs/plant", "operator", json={"quota_events": 1})
    monkeypatch.setattr(installs, "MAX_FOLLOWS", 9)
    assert plant.pin(0, "1.0.0").status_code == 204
    problem(plant.pin(0, "1.1.0"), 429, "quota")


# --- field reports


@pytest.mark.storages
def test_reports_are_summed_and_shown_beside_simulation(plant):
    plant.say(0, "1.0.0")
    plant.say(1, "1.0.0")
    tip = {"unit": "m", "n": 20, "mean": 0.0004, "max": 0.0011}
    made = plant.report(0, "1.0.0", 20, 19, aborts=1, errors={"tip_error": tip}, software={"neuraverse": "1"})
    assert made.status_code == 201, made.text
    assert made.json() == {
        "name": NAME,
        "version": "1.0.0",
        "digest": plant.skills[f"{NAME}@1.0.0"].digest,
        "field": {"n": 20, "successes": 19, "lower": wilson_lower(19, 20)},
    }
    more = {"unit": "m", "n": 30, "mean": 0.0014, "max": 0.002}
    plant.report(0, "1.0.0", 30, 30, errors={"tip_error": more}, software={"neuraverse": "2"})
    plant.report(0, "1.0.0", 10, 0, body="sha256:" + "b1" * 32)
    plant.report(1, "1.0.0", 40, 40)
    score = {"n": 100, "successes": 89, "lower": wilson_lower(89, 100)}
    found = plant.get(f"/v1/skills/{NAME}/stable").json()
    sim = plant.skills[f"{NAME}@1.0.0"].manifest.evaluation
    assert found["field"] == score
    assert found["evaluation"] == {"rate": sim.rate, "lower": sim.lower, "n": sim.episodes}
    shown = {v["version"]: v for v in plant.get(f"/v1/skills/{NAME}").json()["versions"]}
    assert (shown["1.0.0"]["field"], shown["1.1.0"]["field"]) == (score, None)
    assert shown["1.1.0"]["evaluation"]["n"] == sim.episodes
    rows = plant.rows(select(field).order_by(field.c.robot_id, field.c.body))
    assert [(r.episodes, r.successes, r.aborts, r.reports) for r in rows] == [
        (50, 49, 1, 2),
        (10, 0, 0, 1),
        (40, 40, 0, 1),
    ]
    summed = rows[0].errors["tip_error"]
    assert summed == {"unit": "m", "n": 50, "sum": pytest.approx(0.05), "max": 0.002}
    assert rows[0].software == {"neuraverse": "2"}
    # Who is removed leaves what was reported.
    plant.delete("/v1/orgs/plant/robots/arm-1", OPERATOR)
    assert plant.report(1, "1.0.0").status_code == 401
    assert plant.get(f"/v1/skills/{NAME}/stable").json()["field"] == score
    listed = plant.get(f"/v1/orgs/plant/reports?skill={NAME}", OPERATOR).json()["reports"]
    assert [(r["robot"], r["field"]["n"]) for r in listed] == [
        ("plant/arm-1", 40),
        ("plant/arm-0", 10),
        ("plant/arm-0", 50),
    ]
    assert listed[2]["errors"] == {
        "tip_error": {"unit": "m", "n": 50, "mean": pytest.approx(0.001), "max": 0.002}
    }
    assert (listed[2]["aborts"], listed[2]["reports"], listed[2]["software"]) == (1, 2, {"neuraverse": "2"})


@pytest.mark.storages
def test_a_report_that_is_sent_again_counts_once(plant, problem):
    plant.say(0, "1.0.0")
    plant.say(1, "1.0.0")
    assert plant.report(0, "1.0.0", 10, 9, key="first").json()["field"]["n"] == 10
    assert plant.report(0, "1.0.0", 10, 9, key="first").json()["field"]["n"] == 10
    assert plant.report(1, "1.0.0", 10, 9, key="first").json()["field"]["n"] == 20  # another robot's
    assert plant.report(0, "1.0.0", 10, 9, key="next").json()["field"]["n"] == 30
    for _ in range(2):  # without a key, each is another one
        plant.report(0, "1.0.0", 10, 9)
    assert plant.report(0, "1.0.0", 10, 9, key="next").json()["field"]["n"] == 60  # others came in between
    assert plant.report(0, "1.0.0", 20, 19, key="next").json()["field"]["n"] == 80  # it is not the same
    assert plant.get(f"/v1/skills/{NAME}/1.0.0").json()["field"] == {
        "n": 80,
        "successes": 73,
        "lower": wilson_lower(73, 80),
    }
    rows = plant.rows(select(field).order_by(field.c.robot_id))
    assert [(r.episodes, r.reports) for r in rows] == [(70, 6), (10, 1)]
    problem(plant.report(0, "1.0.0", key="no key"), 400)


def test_who_may_report_what(plant, problem):
    plant.release("1.0.0", "private", name="secret")
    problem(plant.report(0, "1.0.0"), 409, "never-ran")
    plant.say(0, "1.0.0")
    problem(plant.report(1, "1.0.0"), 409, "never-ran")
    problem(plant.report(0, "1.1.0"), 409, "never-ran")
    plant.say(0, "1.1.0", "refused")
    problem(plant.report(0, "1.1.0"), 409, "never-ran")
    problem(plant.report(0, "1.0.0", digest=BODY), 404, "no-such-skill")
    secret = plant.skills["acme/secret@1.0.0"].digest
    problem(plant.report(0, "1.0.0", digest=secret), 404, "no-such-skill")
    body = {"digest": BODY, "episodes": 1, "successes": 1, "body": BODY}
    problem(plant.post("/v1/fleet/reports", json=body), 401, "sign-in")
    problem(plant.post("/v1/fleet/reports", ("plant", "owner"), json=body), 403, "forbidden")
    # What happened before a version was revoked is worth knowing all the same.
    plant.state("revoke", version="1.0.0")
    assert plant.report(0, "1.0.0").status_code == 201


TIP = {"unit": "m", "n": 1, "mean": 1.0, "max": 1.0}


@pytest.mark.parametrize(
    ("changes", "field_named"),
    [
        ({"episodes": 20, "successes": 18, "aborts": 3}, "successes"),
        ({"episodes": 0, "successes": 0}, "episodes"),
        ({"episodes": -1}, "episodes"),
        ({"episodes": 10_001}, "episodes"),
        ({"episodes": True}, "episodes"),
        ({"episodes": 1.5}, "episodes"),
        ({"successes": -1}, "successes"),
        ({"aborts": -1}, "aborts"),
        ({"body": "arm"}, "body"),
        ({"errors": {"tip": TIP | {"mean": float("nan")}}}, "errors.tip.mean"),
        ({"errors": {"tip": TIP | {"max": float("inf")}}}, "errors.tip.max"),
        ({"errors": {"tip": TIP | {"mean": -1.0}}}, "errors.tip.mean"),
        ({"errors": {"tip": TIP | {"mean": 2.0}}}, "errors.tip.mean"),
        ({"errors": {"tip": TIP | {"n": 0}}}, "errors.tip.n"),
        ({"errors": {"tip": TIP | {"unit": "furlong"}}}, "errors.tip.unit"),
        ({"errors": {"tip": TIP | {"raw": [1]}}}, "errors.tip.raw"),
        ({"errors": {f"e{i}": TIP for i in range(21)}}, "errors"),
        ({"errors": {"<b>": TIP}}, "errors.<b>.[key]"),
        ({"software": {"a": "\0"}}, "software.a"),
        ({"software": {f"s{i}": "1" for i in range(21)}}, "software"),
        ({"trajectory": [0.0]}, "trajectory"),
    ],
)
def test_reports_that_cannot_be(report_to, problem, changes, field_named):
    said = {"digest": BODY, "episodes": 20, "successes": 19, "body": BODY} | changes
    assert problem(report_to(json.dumps(said)), 422)["field"] == field_named


@pytest.fixture(scope="module")
def report_to(tmp_path_factory):
    """``report_to(text)``: send it as a robot."""
    settings = Settings.load(data=tmp_path_factory.mktemp("data"), open=False, collect_hours=0)
    world = World(settings, orgs=("plant",))
    kind = {"Content-Type": "application/json"}
    yield lambda text: world.post("/v1/fleet/reports", ("plant", "robot"), content=text, headers=kind)
    world.close()


def test_a_robot_sends_so_many_reports_an_hour(plant, problem, monkeypatch):
    monkeypatch.setattr(reports, "MAX_REPORTS", 3)
    plant.say(0, "1.0.0")
    plant.say(1, "1.0.0")
    for _ in range(3):
        assert plant.report(0, "1.0.0").status_code == 201
    answer = plant.report(0, "1.0.0")
    problem(answer, 429, "quota")
    assert 3590 <= int(answer.headers["retry-after"]) <= 3600
    assert plant.report(1, "1.0.0").status_code == 201
    plant.restart()
    assert plant.report(0, "1.0.0").status_code == 429
    assert plant.get(f"/v1/skills/{NAME}/stable").json()["field"]["n"] == 80
    for hours in (-1.0, 5.0):  # an hour later; and when the clock was put back
        plant.write(lambda db, at: db.execute(update(robots).values(reports_from=at, reports=3)), now(hours))
        assert plant.report(0, "1.0.0").status_code == 201
        assert plant.report(0, "1.0.0").status_code == 201


def test_sums_are_bounded_and_in_one_unit(plant, problem, monkeypatch):
    monkeypatch.setattr(reports, "MAX_FIELD_BODIES", 2)
    monkeypatch.setattr(reports, "MAX_ERRORS", 2)
    plant.say(0, "1.0.0")
    bodies = [f"sha256:{i:064x}" for i in range(3)]
    for body in bodies[:2]:
        assert plant.report(0, "1.0.0", body=body, errors={"tip": TIP}).status_code == 201
    problem(plant.report(0, "1.0.0", body=bodies[2]), 409, "too-many")
    wrong = plant.report(0, "1.0.0", body=bodies[0], errors={"tip": TIP | {"unit": "rad"}})
    assert problem(wrong, 422, "unit")["field"] == "errors.tip.unit"
    more = {"other": TIP, "third": TIP}
    assert problem(plant.report(0, "1.0.0", body=bodies[0], errors=more), 422)["field"] == "errors"
    assert plant.report(0, "1.0.0", body=bodies[0], errors={"other": TIP}).status_code == 201
    assert plant.get(f"/v1/skills/{NAME}/stable").json()["field"]["n"] == 60
