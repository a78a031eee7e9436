"""Any sequence of what tenants do: nobody is ever shown anything of what is not theirs to see."""

from __future__ import annotations

import functools
import shutil
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from starlette.testclient import TestClient

from neuraverse.registry import Settings, create_app
from neuraverse.registry.backup import backup, restore
from neuraverse.registry.collect import collect
from tests.registry.test_keeping import run
from tests.registry.test_tenants import World

ORGS = ("acme", "rival")
NAMES = ("one", "two")
VERSIONS = ("1.0.0", "1.1.0")
SEEN = ("public", "network", "private")
READERS = ("nobody", *((org, role) for org in ORGS for role in ("reader", "robot")))


def machine(make_skill, publisher, state):
    made = Path(tempfile.mkdtemp(prefix="neuraverse-skills-"))

    @functools.cache
    def skill(org, name, version):
        """Weights of their own, so that a blob tells whose it is."""
        seed = zlib.crc32(f"{org}{name}{version}".encode())
        return make_skill(made / f"{org}-{name}-{version}", org=org, name=name, version=version, seed=seed)

    class Tenants(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.root = Path(tempfile.mkdtemp(prefix="neuraverse-tenants-"))
            self.world = World(self._settings("data"), ORGS)
            self.versions: dict[str, dict[str, str]] = {}  # of each skill: states
            self.seen: dict[str, str] = {}
            self.gone: set[object] = set()  # readers without rights
            self.told: dict[str, int] = {}  # events of each skill

        def _settings(self, name):
            return Settings.load(data=self.root / name, open=False, collect_hours=0, grace_hours=1e-9)

        @rule(
            org=st.sampled_from(ORGS),
            name=st.sampled_from(NAMES),
            version=st.sampled_from(VERSIONS),
            visibility=st.sampled_from(SEEN),
        )
        def publish(self, org, name, version, visibility):
            one = skill(org, name, version)
            answer = self.world.publish(one, publisher, (org, "owner"), visibility=visibility)
            known = self.versions.setdefault(one.name, {})
            assert answer.status_code == (200 if version in known else 201), answer.text
            if not known:
                self.seen[one.name] = visibility
            if version not in known:
                known[version] = "active"
                self.told[one.name] = self.told.get(one.name, 0) + 1

        @rule(org=st.sampled_from(ORGS), name=st.sampled_from(NAMES), version=st.sampled_from(VERSIONS))
        def publish_for_others(self, org, name, version):
            """A signature of the right key does not make a stranger a publisher."""
            other = ORGS[1 - ORGS.index(org)]
            answer = self.world.publish(skill(org, name, version), publisher, (other, "owner"))
            assert answer.status_code == 403, answer.text

        @precondition(lambda self: self.versions)
        @rule(data=st.data(), visibility=st.sampled_from(SEEN))
        def show(self, data, visibility):
            name = data.draw(st.sampled_from(sorted(self.versions)))
            owner = (name.partition("/")[0], "owner")
            answer = self.world.patch(f"/v1/skills/{name}", owner, json={"visibility": visibility})
            assert answer.status_code == 200, answer.text
            if self.seen[name] != visibility:
                self.seen[name] = visibility
                self.told[name] += 1

        @precondition(lambda self: self.versions)
        @rule(data=st.data(), action=st.sampled_from(["yank", "unyank", "revoke", "alias"]))
        def change(self, data, action):
            name = data.draw(st.sampled_from(sorted(self.versions)))
            version = data.draw(st.sampled_from(sorted(self.versions[name])))
            api = self.world.as_((name.partition("/")[0], "owner"))
            said = {"alias": "beta"} if action == "alias" else {}
            now = self.versions[name][version]
            answer = state(api, action, name=name, version=version, **said)
            refused = now != "active" if action == "alias" else now == "revoked" and action != "revoke"
            assert answer.status_code == (409 if refused else 200), answer.text
            if not refused:
                self.told[name] += 1
                states = {"yank": "yanked", "unyank": "active", "revoke": "revoked", "alias": now}
                self.versions[name][version] = states[action]

        @rule(org=st.sampled_from(ORGS))
        def withdraw(self, org):
            """The reader's membership ends; from the next request on, they are a stranger who signs in."""
            answer = self.world.delete(f"/v1/orgs/{org}/members/reader-{org}", (org, "owner"))
            assert answer.status_code == (404 if (org, "reader") in self.gone else 204)
            self.gone.add((org, "reader"))

        @precondition(lambda self: self.gone)
        @rule(data=st.data())
        def take_back(self, data):
            org, role = data.draw(st.sampled_from(sorted(self.gone)))
            code = self.world.post(f"/v1/orgs/{org}/invitations", (org, "owner"), json={"role": role}).json()
            joined = self.world.post("/v1/login", (org, role), json={"code": code["code"]})
            assert joined.status_code == 200, joined.text
            self.gone.discard((org, role))

        @rule()
        def collect(self):
            run(self.world.settings, collect)

        @rule(restored=st.booleans())
        def begin_anew(self, restored):
            """The server is started again, on its data or on a backup of them."""
            self.world.api.__exit__(None, None, None)
            if restored:
                run(self.world.settings, backup, folder=self.root / "backups")
                shutil.rmtree(self.root / "fresh", ignore_errors=True)
                fresh = self._settings("fresh")
                run(fresh, restore, folder=self.root / "backups")
                shutil.rmtree(self.root / "data")
                shutil.move(self.root / "fresh", self.root / "data")
            self.world.app = create_app(self.world.settings)
            self.world.api = TestClient(self.world.app).__enter__()
            self.world.registry = self.world.app.state.registry

        def sees(self, reader, name):
            visibility = self.seen[name]
            if visibility == "public" or (visibility == "network" and reader != "nobody"):
                return True
            return reader not in self.gone and reader[0] == name.partition("/")[0]

        @invariant()
        def everybody_sees_what_is_theirs(self):
            for reader in READERS:
                mine = {name for name in self.versions if self.sees(reader, name)}
                listed = self.world.get("/v1/skills", reader)
                with_active = {n for n in mine if "active" in self.versions[n].values()}
                assert {s["name"] for s in listed.json()["skills"]} == with_active, reader
                feed = self.world.get("/v1/events?after=0&limit=1000", reader)
                names = [event["name"] for event in feed.json()["events"]]
                assert {n: names.count(n) for n in mine} == {n: self.told[n] for n in mine}, reader
                for name in self.versions:
                    self._one(reader, name)
                    if name not in mine:
                        assert name not in listed.text + feed.text

        def _one(self, reader, name):
            seen = self.sees(reader, name)
            assert self.world.get(f"/v1/skills/{name}", reader).status_code == (200 if seen else 404)
            for version, now in self.versions[name].items():
                one = skill(*name.split("/"), version)
                code = 404 if not seen else 410 if now == "revoked" else 200
                for path in (
                    f"/v1/skills/{name}/{version}",
                    f"/v1/manifests/{one.digest.removeprefix('sha256:')}",
                    f"/v1/blobs/{one.manifest.files['model.safetensors'].sha256}",
                ):
                    assert self.world.get(path, reader).status_code == code, (reader, path, now)

        def teardown(self):
            self.world.close()
            shutil.rmtree(self.root, ignore_errors=True)

    return Tenants


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("examples", "steps"), [(4, 12), pytest.param(60, 40, marks=pytest.mark.slow)])
def test_no_sequence_shows_a_tenant_anything_of_another(examples, steps, make_skill, publisher, state):
    run_state_machine_as_test(
        machine(make_skill, publisher, state),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
