"""Any sequence of what publishers and operators do, against a model that fits on a page."""

from __future__ import annotations

import functools
import itertools
import shutil
import tempfile
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
from neuraverse.registry.scrub import check
from neuraverse.versions import order_key
from tests.registry.test_crash import whole
from tests.registry.test_keeping import run
from tests.registry.test_publish import TAR, parcel

VERSIONS = ("1.0.0", "1.1.0", "1.2.0-rc.1", "2.0.0")
ALIASES = ("stable", "candidate")
NAME = "acme/weld-seam"
REF = f"/v1/skills/{NAME}"


def machine(make_skill, publisher, submission, state, upload):
    made = Path(tempfile.mkdtemp(prefix="neuraverse-skills-"))

    @functools.cache
    def skill(version, seed):
        return make_skill(made / f"{version}-{seed}", version=version, seed=seed)

    class Registry(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.root = Path(tempfile.mkdtemp(prefix="neuraverse-stateful-"))
            self.count = itertools.count()
            self.digests: dict[str, str] = {}
            self.states: dict[str, str] = {}
            self.aliases: dict[str, str] = {}
            self.events = 0
            self.saved = None
            self._open(self.root / "data")

        def _open(self, folder):
            self.settings = Settings.load(data=folder, collect_hours=0, grace_hours=1e-9)
            self.api = TestClient(create_app(self.settings)).__enter__()

        def _close(self):
            self.api.__exit__(None, None, None)

        @rule(version=st.sampled_from(VERSIONS), seed=st.integers(0, 2), in_pieces=st.booleans())
        def publish(self, version, seed, in_pieces):
            one = skill(version, seed)
            if in_pieces:
                upload(self.api, one)
                answer = self.api.post("/v1/skills", json=submission(one))
            else:
                answer = self.api.post("/v1/skills", content=parcel(one, publisher), headers=TAR)
            taken = self.digests.get(version)
            if taken is None:
                assert answer.status_code == 201, answer.text
                self.digests[version], self.states[version] = one.digest, "active"
                self.events += 1
            else:
                assert answer.status_code == (200 if taken == one.digest else 409), answer.text

        @precondition(lambda self: self.digests)
        @rule(version=st.sampled_from(VERSIONS), alias=st.sampled_from(ALIASES))
        def alias(self, version, alias):
            answer = state(self.api, "alias", alias=alias, version=version)
            expected = {None: 404, "active": 200}.get(self.states.get(version), 409)
            assert answer.status_code == expected, answer.text
            if expected == 200:
                self.aliases[alias] = version
                self.events += 1

        @precondition(lambda self: self.digests)
        @rule(alias=st.sampled_from(ALIASES))
        def unalias(self, alias):
            answer = state(self.api, "unalias", alias=alias)
            assert answer.status_code == (200 if alias in self.aliases else 404), answer.text
            if self.aliases.pop(alias, None):
                self.events += 1

        @precondition(lambda self: self.digests)
        @rule(version=st.sampled_from(VERSIONS), action=st.sampled_from(["yank", "unyank", "revoke"]))
        def change(self, version, action):
            answer = state(self.api, action, version=version, reason="because" if action != "unyank" else "")
            now = self.states.get(version)
            expected = 404 if now is None else 409 if now == "revoked" and action != "revoke" else 200
            assert answer.status_code == expected, answer.text
            if expected == 200:
                self.states[version] = {"yank": "yanked", "unyank": "active", "revoke": "revoked"}[action]
                self.events += 1

        @rule()
        def collect(self):
            run(self.settings, collect)

        @rule()
        def crash(self):
            """The process is gone, and what it had not committed with it."""
            self._close()
            self._open(self.settings.data)

        @rule()
        def save(self):
            run(self.settings, backup, folder=self.root / "backups")
            self.saved = (dict(self.digests), dict(self.states), dict(self.aliases), self.events)

        @precondition(lambda self: self.saved is not None)
        @rule()
        def start_over_from_the_backup(self):
            self._close()
            folder = self.root / f"restored-{next(self.count)}"
            run(Settings.load(data=folder), restore, folder=self.root / "backups")
            self.digests, self.states, self.aliases, self.events = (
                dict(part) if isinstance(part, dict) else part for part in self.saved
            )
            self._open(folder)

        @invariant()
        def it_says_what_the_model_says(self):
            answer = self.api.get(REF)
            if not self.digests:
                assert answer.status_code == 404
                return
            found = answer.json()
            assert {v["version"]: v["state"] for v in found["versions"]} == self.states
            assert found["aliases"] == self.aliases
            for version, now in self.states.items():
                one = self.api.get(f"{REF}/{version}/archive")
                assert one.status_code == (410 if now == "revoked" else 200)
                if now != "revoked":
                    assert whole(one.content) == self.digests[version]
            for alias, version in self.aliases.items():
                code = {"active": 200, "yanked": 409, "revoked": 410}[self.states[version]]
                assert self.api.get(f"{REF}/{alias}").status_code == code
            active = [v for v, now in self.states.items() if now == "active"]
            latest = self.api.get(f"{REF}/latest")
            if active:
                best = max(active, key=lambda v: ("-" not in v, order_key(v)))
                assert latest.json()["version"] == best
            else:
                assert latest.status_code == 404
            events = self.api.get("/v1/events?after=0&limit=1000").json()["events"]
            ids = [e["id"] for e in events]
            assert len(events) == self.events
            assert ids == sorted(set(ids))

        def teardown(self):
            self._close()
            try:
                assert run(self.settings, check).faults == ()
            finally:
                shutil.rmtree(self.root, ignore_errors=True)

    return Registry


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("examples", "steps"), [(8, 20), pytest.param(150, 50, marks=pytest.mark.slow)])
def test_any_sequence(examples, steps, make_skill, publisher, submission, state, upload):
    run_state_machine_as_test(
        machine(make_skill, publisher, submission, state, upload),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
