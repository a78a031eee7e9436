"""Organisations share one registry and see nothing of each other: roles, visibility, blobs, quotas."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from neuraverse.registry import Settings, create_app
from neuraverse.registry.tenants import accounts
from neuraverse.registry.tenants.access import RIGHTS, ROLES
from tests.registry.test_publish import TAR, parcel

ROLE_NAMES = ("reader", "publisher", "maintainer", "owner", "robot")


class World:
    """A closed registry with organisations; a token for each role in each, ``world.token[org, role]``."""

    def __init__(self, settings, orgs=("acme", "rival")):
        self.app = create_app(settings)
        self.api = TestClient(self.app).__enter__()
        self.registry = self.app.state.registry
        self.settings = settings
        self.token: dict[object, str | None] = {"nobody": None}
        code = self.write(accounts.first_operator)
        self.token["operator"] = self.join(code, "root")
        for org in orgs:
            self.make_org(org)

    def write(self, change, *args):
        """What an operator does on the server's machine."""
        return self.api.portal.call(self.registry.database.write, change, *args)

    def make_org(self, org, visibility="private"):
        made = self.post("/v1/orgs", "operator", json={"name": org, "visibility": visibility})
        assert made.status_code == 201, made.text
        for role in ("reader", "publisher", "maintainer", "owner"):
            code = self.post(f"/v1/orgs/{org}/invitations", "operator", json={"role": role}).json()["code"]
            self.token[org, role] = self.join(code, f"{role}-{org}")
        robot = self.post(f"/v1/orgs/{org}/robots", "operator", json={"name": "r1"})
        self.token[org, "robot"] = robot.json()["token"]
        assert self.delete(f"/v1/orgs/{org}/members/root", "operator").status_code == 204

    def join(self, code, name):
        answer = self.api.post("/v1/login", json={"code": code, "name": name})
        assert answer.status_code == 200, answer.text
        return answer.json()["token"]

    def ask(self, method, path, who="nobody", **kwargs):
        token = self.token.get(who, who) if not isinstance(who, str) or who in self.token else who
        headers = dict(kwargs.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.api.request(method, path, headers=headers, **kwargs)

    def get(self, path, who="nobody", **kwargs):
        return self.ask("GET", path, who, **kwargs)

    def post(self, path, who="nobody", **kwargs):
        return self.ask("POST", path, who, **kwargs)

    def put(self, path, who="nobody", **kwargs):
        return self.ask("PUT", path, who, **kwargs)

    def patch(self, path, who="nobody", **kwargs):
        return self.ask("PATCH", path, who, **kwargs)

    def delete(self, path, who="nobody", **kwargs):
        return self.ask("DELETE", path, who, **kwargs)

    def as_(self, who):
        """Something with `get` and `post` that sends this token, for the fixtures of one publisher."""
        return SimpleNamespace(
            get=lambda path, **kw: self.get(path, who, **kw),
            post=lambda path, **kw: self.post(path, who, **kw),
        )

    def publish(self, skill, publisher, who, **query):
        content = parcel(skill, publisher)
        return self.post("/v1/skills", who, content=content, headers=TAR, params=query)

    def close(self):
        self.api.__exit__(None, None, None)


@pytest.fixture
def settings_closed(settings):
    return settings.model_copy(update={"open": False})


@pytest.fixture
def world(settings_closed):
    made = World(settings_closed)
    yield made
    made.close()


@pytest.fixture
def skill_of(tmp_path, make_skill):
    """``skill_of("acme")``: a skill of an organisation; keywords as `make_skill`."""
    numbers = itertools.count()

    def make(org, **fields):
        return make_skill(tmp_path / f"skill-{next(numbers)}", org=org, **fields)

    return make


@pytest.fixture
def shared(world, skill_of, publisher):
    """Three skills of acme, one of each visibility, published by its owner's first key."""
    made = {}
    for number, visibility in enumerate(("public", "network", "private")):
        made[visibility] = skill_of("acme", name=f"{visibility}-one", seed=number)
        answer = world.publish(made[visibility], publisher, ("acme", "owner"), visibility=visibility)
        assert answer.status_code == 201, answer.text
    return made


OF_OTHERS = ("nobody", "operator", *(("rival", role) for role in ROLE_NAMES))
OURS = tuple(("acme", role) for role in ROLE_NAMES)


def test_every_role_has_rights_that_are_named():
    assert set(ROLE_NAMES) == set(ROLES)
    assert set().union(*ROLES.values()) | {"host"} == set(RIGHTS)
    for less, more in itertools.pairwise(ROLE_NAMES[:4]):
        assert ROLES[less] < ROLES[more]


# --- fault 17: what is not yours does not exist


OWN = ("model.safetensors", "policy.onnx")  # files that no other skill of these tests has


def paths_of(skill):
    """Every address under which something of a skill can be read."""
    base = f"/v1/skills/{skill.name}"
    hexadecimal = skill.digest.removeprefix("sha256:")
    return [
        base,
        *(
            f"{base}/{which}{tail}"
            for which in ("1.0.0", "latest", "^1")
            for tail in ("", "/archive", "/lineage")
        ),
        f"{base}/diff?from=1.0.0&to=1.0.0",
        f"/v1/manifests/{hexadecimal}",
        f"/v1/manifests/{hexadecimal}/signature",
        *(f"/v1/blobs/{skill.manifest.files[name].sha256}" for name in OWN),
    ]


def without_names(answer, skill):
    """A refusal with what was asked for taken out, so that refusals can be compared."""
    text = answer.text
    for part in (skill.name, skill.digest, skill.digest.removeprefix("sha256:")):
        text = text.replace(part, "X")
    for entry in skill.manifest.files.values():
        text = text.replace(entry.sha256, "X")
    kept = {
        k: v for k, v in answer.headers.items() if k not in ("x-request-id", "ratelimit", "content-length")
    }
    return answer.status_code, text, kept


@pytest.mark.storages
def test_fault_17_a_private_skill_does_not_exist_for_others(world, shared, skill_of):
    """Each address of it answers as that of a skill that was never there, to the last byte."""
    never = skill_of("acme", name="never-was", seed=9)
    for who in OF_OTHERS:
        for there, nowhere in zip(paths_of(shared["private"]), paths_of(never), strict=True):
            theirs, none = world.get(there, who), world.get(nowhere, who)
            assert theirs.status_code == 404, (who, there)
            assert without_names(theirs, shared["private"]) == without_names(none, never), (who, there)
    for who in OURS:
        for path in paths_of(shared["private"]):
            assert world.get(path, who).status_code == 200, (who, path)


def test_fault_17_network_skills_exist_for_whoever_signs_in(world, shared):
    for path in paths_of(shared["network"]):
        assert world.get(path).status_code == 404
        for who in (*OF_OTHERS[1:], *OURS):
            assert world.get(path, who).status_code == 200, (who, path)


def test_fault_17_lists_events_and_counts_hold_nothing_of_others(world, shared, state):
    state(world.as_(("acme", "owner")), "alias", name="acme/private-one", alias="beta", version="1.0.0")
    expected = {
        "nobody": {"public"},
        ("rival", "reader"): {"public", "network"},
        ("acme", "robot"): set(shared),
    }
    for who, seen in expected.items():
        names = {f"acme/{each}-one" for each in seen}
        page = world.get("/v1/skills", who)
        assert {s["name"] for s in page.json()["skills"]} == names
        events = world.get("/v1/events?after=0", who).json()
        assert {e["name"] for e in events["events"]} == names
        assert world.get("/v1/events", who).json()["next"] == events["next"]
        assert ("private" in page.text + str(events)) == (who == ("acme", "robot"))
    assert world.get("/metrics", ("rival", "owner")).status_code == 403
    assert world.get("/metrics").status_code == 401
    assert "neuraverse_skills 3.0" in world.get("/metrics", "operator").text


def test_fault_17_lineage_leads_to_no_hidden_skill(world, shared, skill_of, publisher):
    """A private child of a public parent: whoever may not see it is not told of it."""
    child = skill_of("acme", name="child", seed=5, parents=[shared["public"].digest])
    assert world.publish(child, publisher, ("acme", "publisher")).status_code == 201
    path = "/v1/skills/acme/public-one/1.0.0"
    assert world.get(path, ("acme", "reader")).json()["children"] == [child.digest]
    assert len(world.get(f"{path}/lineage", ("acme", "reader")).json()["nodes"]) == 2
    for who in OF_OTHERS:
        assert world.get(path, who).json()["children"] == []
        graph = world.get(f"{path}/lineage", who).json()
        assert (len(graph["nodes"]), graph["edges"]) == (1, [])


@pytest.fixture
def other_key(tmp_path_factory):
    from neuraverse.trust import KeyStore

    store = KeyStore(tmp_path_factory.mktemp("rival"))
    store.new("default")
    return store


def test_a_parent_of_somebody_else_does_not_exist(world, shared, skill_of, other_key, problem):
    for digest in (shared["private"].digest, f"sha256:{'0' * 64}"):
        child = skill_of("rival", parents=[digest], key=other_key.private_key_path("default"))
        found = problem(world.publish(child, other_key, ("rival", "owner")), 422, "no-such-parent")
        assert found["detail"] == f"the parent {digest} is not in this registry"


@pytest.mark.storages
def test_fault_17_an_upload_tells_nobody_what_others_have(world, shared, problem):
    """What acme has uploaded has to be sent by rival all the same, and is not had by naming its digest."""
    data = shared["private"].read("model.safetensors")
    sha256 = hashlib.sha256(data).hexdigest()
    new = hashlib.sha256(b"new").hexdigest()
    rival, query = ("rival", "publisher"), {"org": "rival"}
    asked = world.post("/v1/blobs/missing", rival, json={"sha256": [sha256, new]}, params=query)
    assert asked.json()["missing"] == [sha256, new]
    begun = world.post("/v1/uploads", rival, json={"sha256": sha256, "size": len(data)}, params=query)
    assert begun.status_code == 201  # not "it is here"
    upload = begun.headers["location"]
    problem(world.put(upload, rival), 409, "incomplete")  # and nothing is had without sending it
    answers = {
        digest: world.put(f"/v1/blobs/{digest}", rival, content=body, params=query)
        for digest, body in ((sha256, data), (new, b"new"))
    }
    assert [a.json()["created"] for a in answers.values()] == [True, True]
    assert [a.status_code for a in answers.values()] == [201, 201]
    assert world.put(f"/v1/blobs/{sha256}", rival, content=data, params=query).status_code == 200
    assert (
        world.post("/v1/blobs/missing", rival, json={"sha256": [sha256]}, params=query).json()["missing"]
        == []
    )
    assert world.get(f"/v1/blobs/{sha256}", rival).content == data  # their own upload by now
    assert world.get(f"/v1/blobs/{sha256}").status_code == 404


def test_fault_17_no_blob_is_had_by_naming_its_digest(
    world, shared, skill_of, other_key, problem, submission
):
    """A manifest of rival's that lists acme's private blobs: they are missing, as if they were nowhere."""
    mine = skill_of(
        "rival", key=other_key.private_key_path("default"), seed=2
    )  # the same weights as the private one of acme
    private = shared["private"].manifest.files["model.safetensors"].sha256
    assert mine.manifest.files["model.safetensors"].sha256 == private
    body = submission(mine) | {"public_key": other_key.public_key().pem.decode()}
    for name, entry in mine.manifest.files.items():
        if name != "model.safetensors":
            sent = {"content": mine.read(name), "params": {"org": "rival"}}
            answer = world.put(f"/v1/blobs/{entry.sha256}", ("rival", "owner"), **sent)
            assert answer.status_code in (200, 201)  # some of them are public
    found = problem(world.post("/v1/skills", ("rival", "owner"), json=body), 422, "missing-blob")
    assert found["field"] == "files.model.safetensors"


@pytest.mark.timeout(120)
def test_fault_17_not_yours_takes_as_long_as_not_there(world, shared, skill_of):
    """Questions of both kinds in turn; the medians of many."""
    never = skill_of("acme", name="never-was", seed=9)
    for there, nowhere in list(zip(paths_of(shared["private"]), paths_of(never), strict=True))[::4]:
        times = {there: [], nowhere: []}
        for _ in range(150):
            for path in (there, nowhere):
                begun = time.perf_counter()
                assert world.get(path, ("rival", "reader")).status_code == 404
                times[path].append(time.perf_counter() - begun)
        a, b = (statistics.median(times[path]) for path in (there, nowhere))
        assert abs(a - b) < 0.25 * min(a, b) + 2e-4, (there, a, b)


# --- what may be done


def test_rights_follow_role_and_scope(world, shared, skill_of, publisher, state, problem):
    """Protected aliases, yanks and visibility are for maintainers; publishing for publishers."""
    for who in ("nobody", ("acme", "reader"), ("acme", "robot"), ("rival", "owner"), "operator"):
        answer = world.publish(skill_of("acme", name="more"), publisher, who)
        problem(answer, 401 if who == "nobody" else 403, "sign-in" if who == "nobody" else "forbidden")
    assert world.publish(skill_of("acme", name="more"), publisher, ("acme", "publisher")).status_code == 201
    name = {"name": "acme/public-one"}
    for role, stable, candidate, yank, hide in (
        ("reader", 403, 403, 403, 403),
        ("robot", 403, 403, 403, 403),
        ("publisher", 403, 200, 403, 403),
        ("maintainer", 200, 200, 200, 200),
        ("owner", 200, 200, 200, 200),
    ):
        api = world.as_(("acme", role))
        assert state(api, "alias", alias="stable", version="1.0.0", **name).status_code == stable, role
        assert state(api, "alias", alias="candidate", version="1.0.0", **name).status_code == candidate, role
        assert state(api, "yank", version="1.0.0", **name).status_code == yank, role
        if yank == 200:
            assert state(api, "unyank", version="1.0.0", **name).status_code == 200
        shown = world.patch("/v1/skills/acme/public-one", ("acme", role), json={"visibility": "public"})
        assert shown.status_code == hide, role


def test_a_token_does_no_more_than_its_scopes(world, shared, skill_of, publisher, problem):
    narrow = {"label": "ci", "scopes": ["read", "publish"], "org": "acme", "hours": 1}
    made = world.post("/v1/tokens", ("acme", "owner"), json=narrow).json()
    assert world.publish(skill_of("acme", name="more"), publisher, made["token"]).status_code == 201
    hidden = world.patch("/v1/skills/acme/public-one", made["token"], json={"visibility": "private"})
    problem(hidden, 403, "forbidden")
    problem(world.post("/v1/tokens", made["token"], json={"scopes": ["admin"]}), 403, "forbidden")
    problem(world.get("/v1/orgs/acme/audit", made["token"]), 403, "forbidden")
    both = world.post("/v1/orgs/rival/invitations", ("rival", "owner"), json={"role": "owner"}).json()["code"]
    assert world.post("/v1/login", ("acme", "owner"), json={"code": both}).status_code == 200
    assert [o["name"] for o in world.get("/v1/whoami", ("acme", "owner")).json()["orgs"]] == ["acme", "rival"]
    assert [o["name"] for o in world.get("/v1/whoami", made["token"]).json()["orgs"]] == ["acme"]
    problem(world.get("/v1/orgs/rival", made["token"]), 404, "no-such-org")


def test_keys_are_the_organisations(world, shared, skill_of, publisher, other_key, problem):
    """Whoever may publish still signs with a key that the organisation has registered."""
    foreign = skill_of("acme", name="more", key=other_key.private_key_path("default"))
    found = problem(world.publish(foreign, other_key, ("acme", "owner")), 403, "not-your-org")
    assert "org key add" in found["remedy"]
    pem = {"public_key": other_key.public_key().pem.decode()}
    problem(world.post("/v1/orgs/acme/keys", ("acme", "maintainer"), json=pem), 403)
    added = world.post("/v1/orgs/acme/keys", ("acme", "owner"), json=pem)
    assert added.status_code == 201
    assert world.publish(foreign, other_key, ("acme", "publisher")).status_code == 201
    assert world.get("/v1/orgs/acme/key").text.count("BEGIN PUBLIC KEY") == 2
    fingerprint = added.json()["fingerprint"]
    assert world.delete(f"/v1/orgs/acme/keys/{fingerprint}", ("acme", "owner")).status_code == 204
    again = skill_of("acme", name="more", version="1.1.0", key=other_key.private_key_path("default"))
    problem(world.publish(again, other_key, ("acme", "publisher")), 403, "not-your-org")
    assert (
        world.get("/v1/skills/acme/more/1.0.0", ("acme", "reader")).status_code == 200
    )  # what it signed stays
    problem(world.get("/v1/orgs/rival/key"), 404, "no-such-org")  # nothing public yet: not even a name
    problem(world.post("/v1/orgs/acme/keys", ("acme", "owner"), json={"public_key": "x"}), 400)


# --- accounts


def test_fault_19_a_token_that_ends_is_refused_at_once(world, shared, problem):
    who = ("acme", "owner")
    made = world.post("/v1/tokens", who, json={"scopes": ["read"], "hours": 1}).json()
    path = "/v1/skills/acme/private-one"
    assert world.get(path, made["token"]).status_code == 200
    assert world.delete(f"/v1/tokens/{made['id']}", who).status_code == 204
    assert "was revoked" in problem(world.get(path, made["token"]), 401, "token")["detail"]
    short = world.post("/v1/tokens", who, json={"scopes": ["read"], "hours": 0.3 / 3600}).json()
    assert world.get(path, short["token"]).status_code == 200
    time.sleep(0.35)
    assert "has expired" in problem(world.get(path, short["token"]), 401, "token")["detail"]
    for broken in (made["token"][:-1], "nvt_" + "A" * 43, "x", "nvi_" + "A" * 43):
        assert "not one of this registry" in problem(world.get(path, broken), 401, "token")["detail"]
    for header in ("Basic eDp5", "Bearer", "Bearer ", "\xff"):
        refused = world.api.get("/v1/skills", headers={"Authorization": header.encode("latin-1")})
        problem(refused, 401, "token")
        assert refused.headers["www-authenticate"].startswith("Bearer")


def test_fault_19_a_role_that_ends_ends_at_once(world, shared):
    path = "/v1/skills/acme/private-one"
    for role in ("reader", "publisher"):
        assert world.get(path, ("acme", role)).status_code == 200
        assert world.delete(f"/v1/orgs/acme/members/{role}-acme", ("acme", "owner")).status_code == 204
        assert world.get(path, ("acme", role)).status_code == 404
    assert world.get(path, ("acme", "robot")).status_code == 200
    assert world.delete("/v1/orgs/acme/robots/r1", ("acme", "maintainer")).status_code == 204
    assert world.get(path, ("acme", "robot")).status_code == 401
    taken = world.post("/v1/orgs/acme/robots", ("acme", "owner"), json={"name": "r1"})
    assert taken.status_code == 409  # its reports would be taken for those of the one before


def test_an_invitation_works_once(world, problem):
    owner = ("acme", "owner")
    made = world.post("/v1/orgs/acme/invitations", owner, json={"role": "reader"}).json()
    joined = world.post("/v1/login", json={"code": made["code"], "name": "carol"})
    assert joined.json()["account"] == "carol"
    used = problem(world.post("/v1/login", json={"code": made["code"], "name": "dave"}), 401, "code")
    assert "was used at" in used["detail"]
    other = world.post("/v1/orgs/acme/invitations", owner, json={}).json()
    problem(world.post("/v1/login", json={"code": other["code"], "name": "carol"}), 409, "name-taken")
    problem(world.post("/v1/login", json={"code": other["code"]}), 422, "no-name")
    assert world.delete(f"/v1/orgs/acme/invitations/{other['id']}", owner).status_code == 204
    late = problem(world.post("/v1/login", json={"code": other["code"], "name": "dave"}), 401, "code")
    assert "expired" in late["detail"]
    problem(world.post("/v1/login", json={"code": "nvi_none", "name": "dave"}), 401, "code")
    problem(world.delete(f"/v1/orgs/acme/invitations/{made['id']}", owner), 404, "no-such-invitation")


def test_the_last_owner_stays(world, problem):
    owner = ("acme", "owner")
    problem(world.delete("/v1/orgs/acme/members/owner-acme", owner), 409, "last-owner")
    problem(world.put("/v1/orgs/acme/members/owner-acme", owner, json={"role": "reader"}), 409, "last-owner")
    second = world.put("/v1/orgs/acme/members/reader-acme", owner, json={"role": "owner"})
    assert second.status_code == 204
    assert world.delete("/v1/orgs/acme/members/owner-acme", owner).status_code == 204
    problem(world.get("/v1/orgs/acme", owner), 404, "no-such-org")
    problem(world.delete("/v1/orgs/acme/members/reader-acme", ("acme", "reader")), 409, "last-owner")


def test_the_first_operator_is_made_once(settings_closed):
    with TestClient(create_app(settings_closed)) as api:
        database = api.app.state.registry.database
        codes = [api.portal.call(database.write, accounts.first_operator) for _ in range(2)]
        assert api.post("/v1/login", json={"code": codes[0], "name": "root"}).status_code == 401
        answer = api.post("/v1/login", json={"code": codes[1], "name": "root"})
        assert answer.status_code == 200
        assert api.portal.call(database.write, accounts.first_operator) is None
        mine = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert api.get("/v1/whoami", headers=mine).json()["operator"] is True
        assert api.post("/v1/orgs", json={"name": "acme"}, headers=mine).status_code == 201


# --- quotas, audit, settings


@pytest.mark.storages
def test_quotas_of_bytes_and_versions(world, skill_of, publisher, problem):
    owner, query = ("acme", "owner"), {"org": "acme"}
    problem(world.patch("/v1/orgs/acme", owner, json={"quota_bytes": 10**12}), 403, "forbidden")
    first = skill_of("acme")
    assert world.publish(first, publisher, owner).status_code == 201
    used = world.get("/v1/orgs/acme", owner).json()["used"]
    assert used == {"bytes": sum(e.size for e in first.manifest.files.values()), "versions": 1}
    limits = {"quota_bytes": used["bytes"] + 1000, "quota_versions": 2}
    assert world.patch("/v1/orgs/acme", "operator", json=limits).status_code == 200
    data = b"x" * 600
    sha256 = hashlib.sha256(data).hexdigest()
    upload = world.post("/v1/uploads", owner, json={"sha256": sha256, "size": 600}, params=query)
    path = upload.headers["location"]
    sent = world.ask("PATCH", path, owner, content=data[:300], headers={"Upload-Offset": "0"})
    assert sent.status_code == 200
    other = b"y" * 600
    digest = hashlib.sha256(other).hexdigest()
    assert world.put(f"/v1/blobs/{digest}", owner, content=other, params=query).status_code == 201
    # The quota is reached in the middle of the upload.
    rest = world.ask("PATCH", path, owner, content=data[300:], headers={"Upload-Offset": "300"})
    found = problem(rest, 413, "quota")
    assert (found["quota"], found["limit"]) == ("bytes", limits["quota_bytes"])
    assert rest.headers["neuraverse-quota"].startswith("bytes; used=")
    assert world.patch("/v1/orgs/acme", "operator", json={"quota_bytes": None}).status_code == 200
    rest = world.ask("PATCH", path, owner, content=data[300:], headers={"Upload-Offset": "300"})
    assert rest.status_code == 200
    assert world.put(path, owner).status_code == 201
    second = skill_of("acme", version="1.1.0")
    assert world.publish(second, publisher, owner).status_code == 201
    found = problem(world.publish(skill_of("acme", version="1.2.0"), publisher, owner), 413, "quota")
    assert found["quota"] == "versions"


def test_quotas_of_requests_and_events(world, skill_of, publisher, state, problem):
    owner = ("acme", "owner")
    assert world.publish(skill_of("acme"), publisher, owner).status_code == 201
    world.patch("/v1/orgs/acme", "operator", json={"quota_events": 3})
    codes = [
        state(world.as_(owner), "alias", alias=f"a{i}", version="1.0.0", name="acme/weld-seam").status_code
        for i in range(3)
    ]
    assert codes == [200, 200, 429]
    late = state(world.as_(owner), "alias", alias="b", version="1.0.0", name="acme/weld-seam")
    assert problem(late, 429, "quota")["quota"] == "events"
    assert 3000 < int(late.headers["retry-after"]) <= 3600
    world.patch("/v1/orgs/rival", "operator", json={"quota_requests": 5})
    answers = [world.get("/v1/skills", ("rival", "reader")) for _ in range(6)]
    assert [a.status_code for a in answers] == [200] * 5 + [429]
    assert answers[0].headers["ratelimit"].startswith('"requests";r=4;')
    assert answers[5].headers["ratelimit-policy"] == '"requests";q=5;w=60'
    assert int(answers[5].headers["retry-after"]) > 0
    problem(world.get("/v1/skills", ("rival", "robot")), 429, "quota")  # the organisation's, not the token's
    assert world.get("/v1/skills", owner).status_code == 200
    assert world.get("/v1/skills").status_code == 200


@pytest.mark.storages
def test_the_audit_log_only_grows(world, shared):
    entries = world.get("/v1/orgs/acme/audit", ("acme", "owner")).json()["entries"]
    told = [(e["actor"], e["action"], e["target"]) for e in entries]
    assert ("owner-acme", "publish", "acme/private-one@1.0.0") in told
    assert ("root", "org.make", "acme") in told
    assert ("root", "robot.add", "acme/r1") in told
    secrets = [token for token in world.token.values() if token]
    assert not any(secret in str(entries) for secret in secrets)
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit", "DELETE FROM events"):
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        with pytest.raises(DBAPIError, match="only grows"):
            world.write(lambda db, line=statement: db.execute(text(line)))
    assert world.get("/v1/orgs/acme/audit", ("acme", "owner")).json()["entries"] == entries
    assert world.get("/v1/audit", "operator").status_code == 200
    assert world.get("/v1/audit", ("acme", "owner")).status_code == 403


def test_a_registry_that_nobody_reads_without_signing_in(settings_closed, problem):
    closed = World(settings_closed.model_copy(update={"anonymous": False}))
    try:
        for path in ("/v1/skills", "/v1/events", "/", "/v1/whoami", "/nothing"):
            problem(closed.get(path), 401, "sign-in")
        assert closed.get("/health/live").status_code == 200
        assert closed.get("/v1/skills", ("acme", "reader")).status_code == 200
    finally:
        closed.close()


def test_an_open_registry_keeps_organisations_with_members_apart(
    data_dir, skill_of, publisher, other_key, problem
):
    """Names without members are for whoever comes first; those with members are not."""
    mixed = World(Settings.load(data=data_dir, open=True, collect_hours=0), orgs=("acme",))
    try:
        assert mixed.publish(skill_of("free"), publisher, "nobody").status_code == 201
        problem(
            mixed.publish(
                skill_of("free", version="2.0.0", key=other_key.private_key_path("default")),
                other_key,
                "nobody",
            ),
            403,
        )
        problem(mixed.publish(skill_of("acme"), publisher, "nobody"), 401, "sign-in")
        problem(
            mixed.publish(skill_of("free2"), publisher, "nobody", visibility="private"), 422, "visibility"
        )
        # An operator takes a name over, with its keys.
        assert mixed.post("/v1/orgs", "operator", json={"name": "free"}).status_code == 201
        problem(mixed.publish(skill_of("free", version="2.0.0"), publisher, "nobody"), 401, "sign-in")
        assert mixed.publish(skill_of("free", version="2.0.0"), publisher, "operator").status_code == 201
    finally:
        mixed.close()
