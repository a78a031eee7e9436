"""Who may do what: every route with every role on skills of every visibility, from the table of routes.

A route without a rule here fails, so that nobody adds one without saying who may use it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.routing import APIRoute

from neuraverse.registry.tenants.access import ROLES
from tests.registry.test_publish import TAR, parcel
from tests.registry.test_tenants import ROLE_NAMES, World

VISIBILITIES = ("public", "network", "private")
CALLERS = (
    "nobody",
    "operator",
    *(("rival", role) for role in ROLE_NAMES),
    *(("acme", role) for role in ROLE_NAMES),
)
REFUSED = {401, 403, 404}


@dataclass
class Rule:
    """Who may use a route.

    Attributes:
        about: ``skill`` (one of acme's, of each visibility), ``org`` (acme), ``own`` (the caller's),
            ``publish`` (into acme), ``robot`` (a robot, about a skill), ``host`` or ``all``.
        right: What it takes, besides seeing it.
        fine: Answers to who may, besides those below 300.
        request: Keyword arguments of httpx, or a function of the world that makes them.
        path: Values of path parameters.
        host_too: Whether operators may, of any organisation.
        people: Whether robots may not.
    """

    about: str
    right: str | None = None
    fine: tuple[int, ...] = ()
    request: Any = field(default_factory=dict)
    path: dict[str, str] = field(default_factory=dict)
    host_too: bool = False
    people: bool = False

    def expected(self, caller, visibility):
        """The status of a refusal, or None if the caller may."""
        org, role = caller if isinstance(caller, tuple) else (None, caller)
        signed_in = role != "nobody"
        ours = org == "acme"
        has = ours and self.right in ROLES[role] and not (self.people and role == "robot")
        denied = 403 if signed_in else 401
        match self.about:
            case "all":
                return None
            case "own":
                return None if signed_in and (self.right is None or role not in ("robot",)) else denied
            case "host":
                return None if role == "operator" else denied
            case "publish":
                return None if has else denied
            case "robot":
                if role != "robot":
                    return denied
                return None if ours or visibility != "private" else 404
            case "org":
                if not signed_in:
                    return 401
                if self.host_too and role == "operator":
                    return None if self.right == "read" else 403
                return 404 if not ours else None if has else 403
            case "skill":
                seen = ours or visibility == "public" or (visibility == "network" and signed_in)
                if not seen:
                    return 404
                return None if self.right is None or has else denied
        raise AssertionError(self.about)


def skill(right=None, fine=(), request=None, **path):
    return Rule("skill", right, fine, request or {}, path)


def org(right, fine=(), request=None, **path):
    return Rule("org", right, fine, request or {}, {"org": "acme", **path})


def body(**fields):
    return {"json": fields}


NAMES = itertools.count()
NONE_ID, NONE_HEX = "0" * 16, "0" * 64
PINS = "/v1/orgs/{org}/robots/{robot}/pins/{skill_org}/{skill}"
PINNED = {"org": "acme", "robot": "r2", "skill_org": "acme", "skill": "public-one"}
ALL = Rule("all")
RULES = {
    ("GET", "/"): ALL,
    ("GET", "/health/live"): ALL,
    ("GET", "/health/ready"): ALL,
    ("GET", "/metrics"): Rule("host"),
    # Skills.
    ("GET", "/v1/skills"): ALL,  # whom it shows what, is for test_finding
    ("POST", "/v1/skills/runnable"): Rule(
        "all",
        request=body(robot="r", max_rate_hz=1, reach_m=1, linear_speed_m_s=1, angular_speed_rad_s=1),
    ),
    ("POST", "/v1/skills"): Rule("publish", "publish", request=lambda w: w.new_parcel()),
    ("GET", "/v1/skills/{org}/{name}"): skill(),
    ("PATCH", "/v1/skills/{org}/{name}"): skill("curate", request=lambda w: body(visibility=w.visibility)),
    ("POST", "/v1/skills/{org}/{name}/statements"): skill("publish", request=lambda w: w.statement()),
    ("GET", "/v1/skills/{org}/{name}/diff"): skill(request={"params": {"from": "1.0.0", "to": "latest"}}),
    ("GET", "/v1/skills/{org}/{name}/aliases/{alias}"): skill(alias="beta"),
    ("GET", "/v1/skills/{org}/{name}/{version}"): skill(version="1.0.0"),
    ("GET", "/v1/skills/{org}/{name}/{version}/lineage"): skill(version="latest"),
    ("GET", "/v1/skills/{org}/{name}/{version}/archive"): skill(version="^1"),
    ("GET", "/v1/manifests/{digest}"): skill(digest="manifest"),
    ("GET", "/v1/manifests/{digest}/signature"): skill(digest="manifest"),
    ("GET", "/v1/blobs/{digest}"): skill(digest="weights"),
    ("HEAD", "/v1/blobs/{digest}"): skill(digest="weights"),
    ("GET", "/v1/orgs/{org}/key"): Rule("all", path={"org": "acme"}),  # it has a public skill
    # Uploads, for acme.
    ("POST", "/v1/blobs/missing"): Rule(
        "publish", "publish", request={"json": {"sha256": [NONE_HEX]}, "params": {"org": "acme"}}
    ),
    ("PUT", "/v1/blobs/{digest}"): Rule("publish", "publish", request=lambda w: w.new_blob()),
    ("POST", "/v1/uploads"): Rule(
        "publish", "publish", request={"json": {"sha256": NONE_HEX, "size": 5}, "params": {"org": "acme"}}
    ),
    # Events: each sees their own; what, is for test_tenants.
    ("GET", "/v1/events"): ALL,
    # Accounts.
    ("POST", "/v1/login"): Rule("all", request=lambda w: w.invitation(), fine=(403,)),  # not robots
    ("GET", "/v1/whoami"): ALL,
    ("POST", "/v1/logout"): Rule("own", request={"headers": {}}, fine=()),
    ("GET", "/v1/tokens"): Rule("own", "person"),
    ("POST", "/v1/tokens"): Rule("own", "person", request=body(scopes=["read"])),
    ("DELETE", "/v1/tokens/{token}"): Rule("own", "person", path={"token": NONE_ID}, fine=(404,)),
    ("GET", "/v1/audit"): Rule("host"),
    ("POST", "/v1/orgs"): Rule("host", request=lambda w: body(name=f"new-{next(NAMES)}")),
    ("GET", "/v1/orgs/{org}"): Rule("org", "read", path={"org": "acme"}, host_too=True),
    ("PATCH", "/v1/orgs/{org}"): Rule(
        "org", "admin", request=body(visibility="private"), path={"org": "acme"}, host_too=True
    ),
    ("GET", "/v1/orgs/{org}/audit"): org("admin"),
    ("GET", "/v1/orgs/{org}/members"): org("read"),
    ("PUT", "/v1/orgs/{org}/members/{account}"): org(
        "admin", account="reader-acme", request=body(role="reader")
    ),
    ("DELETE", "/v1/orgs/{org}/members/{account}"): org("admin", account="nobody-here", fine=(404,)),
    ("GET", "/v1/orgs/{org}/invitations"): org("admin"),
    ("POST", "/v1/orgs/{org}/invitations"): org("admin", request=body(role="reader")),
    ("DELETE", "/v1/orgs/{org}/invitations/{invitation}"): org("admin", (404,), invitation=NONE_ID),
    ("POST", "/v1/orgs/{org}/robots"): org("fleet", request=lambda w: body(name=f"new-{next(NAMES)}")),
    ("POST", "/v1/orgs/{org}/robots/{robot}/tokens"): org("fleet", robot="r2", request=body()),
    ("DELETE", "/v1/orgs/{org}/robots/{robot}"): org("fleet", (404,), robot="nobody-here"),
    # The fleet.
    ("PUT", "/v1/fleet/installs"): Rule(
        "robot", request=lambda w: body(follows=f"{w.skill.name}@beta", state="stopped")
    ),
    ("POST", "/v1/fleet/reports"): Rule(
        "robot",
        request=lambda w: body(digest=w.skill.digest, body=w.skill.digest, episodes=1, successes=1),
        fine=(409,),  # it never ran
    ),
    ("GET", "/v1/orgs/{org}/reports"): Rule(
        "org",
        "read",
        request={"params": {"skill": "acme/public-one"}},
        path={"org": "acme"},
        people=True,
    ),
    ("GET", "/v1/orgs/{org}/robots"): Rule("org", "read", path={"org": "acme"}, people=True),
    ("PUT", PINS): Rule("org", "fleet", request=body(version="1.0.0"), path=PINNED),
    ("DELETE", PINS): Rule("org", "fleet", path=PINNED, fine=(404,)),
    ("GET", "/v1/orgs/{org}/rollouts"): Rule("org", "read", path={"org": "acme"}, people=True),
    ("POST", "/v1/orgs/{org}/rollouts"): org(
        "fleet", (409,), request=body(follows="acme/public-one@beta", version="1.0.0")
    ),
    ("GET", "/v1/orgs/{org}/rollouts/{rollout}"): Rule(
        "org", "read", (404,), path={"org": "acme", "rollout": NONE_ID}, people=True
    ),
    ("POST", "/v1/orgs/{org}/rollouts/{rollout}/steps"): org(
        "fleet", (404,), rollout=NONE_ID, request=body(to="end")
    ),
    # Webhooks; of an organisation that is not there, so that nothing is ever sent.
    ("GET", "/v1/orgs/{org}/webhooks"): org("admin"),
    ("POST", "/v1/orgs/{org}/webhooks"): org("admin", request=body(url="https://1.1.1.1/", org="nowhere")),
    ("DELETE", "/v1/orgs/{org}/webhooks/{webhook}"): org("admin", (404,), webhook=NONE_ID),
    ("GET", "/v1/orgs/{org}/webhooks/{webhook}/dead-letters"): org("admin", (404,), webhook=NONE_ID),
    ("POST", "/v1/orgs/{org}/webhooks/{webhook}/dead-letters/retry"): org("admin", (404,), webhook=NONE_ID),
    ("POST", "/v1/orgs/{org}/webhooks/{webhook}/test"): org("admin", (404,), webhook=NONE_ID),
    ("GET", "/v1/orgs/{org}/keys"): org("read"),
    ("POST", "/v1/orgs/{org}/keys"): org("admin", request=lambda w: body(public_key=w.pem)),
    ("DELETE", "/v1/orgs/{org}/keys/{fingerprint}"): org("admin", (404,), fingerprint=NONE_HEX),
}
ELSEWHERE = {
    ("DELETE", "/v1/fleet/installs"): "test_fleet: every robot's own",
    ("GET", "/v1/events/stream"): "test_tenants: a stream has no end",
    ("GET", "/v1/uploads/{upload}"): "test_uploads_are_their_own",
    ("HEAD", "/v1/uploads/{upload}"): "test_uploads_are_their_own",
    ("PATCH", "/v1/uploads/{upload}"): "test_uploads_are_their_own",
    ("PUT", "/v1/uploads/{upload}"): "test_uploads_are_their_own",
    ("DELETE", "/v1/uploads/{upload}"): "test_uploads_are_their_own",
}


class Matrix(World):
    """Tenants with one skill of each visibility, and requests that can be made again and again."""

    def __init__(self, settings, folder, make_skill, publisher, state):
        super().__init__(settings)
        self.post("/v1/orgs", "operator", json={"name": "hall"})
        self.publisher, self._state = publisher, state
        self.pem = publisher.public_key().pem.decode()
        self._make = lambda **fields: make_skill(folder / f"{next(NAMES)}", org="acme", **fields)
        self.skills = {}
        self.visibility = ""
        for number, visibility in enumerate(VISIBILITIES):
            made = self._make(name=f"{visibility}-one", seed=number)
            self.skills[visibility] = made
            answer = self.publish(made, publisher, ("acme", "owner"), visibility=visibility)
            assert answer.status_code == 201, answer.text
            state(self.as_(("acme", "owner")), "alias", name=made.name, alias="beta", version="1.0.0")
        self.post("/v1/orgs/acme/robots", ("acme", "owner"), json={"name": "r2"})

    @property
    def skill(self):
        return self.skills[self.visibility]

    def new_parcel(self):
        made = self._make(name=f"new-{next(NAMES)}")
        return {"content": parcel(made, self.publisher), "headers": TAR}

    def new_blob(self):
        return {"content": b"", "params": {"org": "acme"}}

    def invitation(self):
        made = self.post("/v1/orgs/hall/invitations", "operator", json={"role": "reader"}).json()
        return body(code=made["code"], name=f"new-{next(NAMES)}")

    def statement(self):
        """A signed statement; whoever sends it, it is the publisher's, and moves an unprotected alias."""
        from neuraverse import statement

        now = self.get(f"/v1/skills/{self.skill.name}", ("acme", "owner")).json()
        said = {"registry": now["registry"], "name": self.skill.name, "serial": now["serial"] + 1}
        text = statement.build(**said, action="alias", alias="beta", version="1.0.0")
        signature = statement.sign(text, self.publisher.private_key_path())
        return body(statement=text, signature=signature)

    def address(self, path, rule):
        values = {"org": "acme", "name": self.skill.name.partition("/")[2], **rule.path}
        named = {
            "manifest": self.skill.digest.removeprefix("sha256:"),
            "weights": self.skill.manifest.files["model.safetensors"].sha256,
        }
        if path == "/v1/blobs/{digest}" and rule.about == "publish":
            values["digest"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        elif "digest" in values:
            values["digest"] = named[values["digest"]]
        return path.format(**values)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, make_skill, publisher, state):
    from neuraverse.registry import Settings

    folder = tmp_path_factory.mktemp("matrix")
    settings = Settings.load(data=folder / "data", open=False, collect_hours=0)
    made = Matrix(settings, folder, make_skill, publisher, state)
    yield made
    made.close()


def routes(router):
    """Method and path of every route, of the routers that were included too."""
    found = set()
    for route in router.routes:
        if isinstance(route, APIRoute):
            found |= {(method, route.path) for method in route.methods}
        elif hasattr(route, "original_router"):
            found |= routes(route.original_router)
    return found


def test_every_route_has_a_rule(matrix):
    known = {*RULES, *ELSEWHERE}
    assert len(routes(matrix.app)) > 40
    assert routes(matrix.app) - known == set(), "say in RULES who may use it"
    assert known - routes(matrix.app) == set(), "these are no routes any more"


@pytest.mark.parametrize(("method", "path"), RULES, ids=lambda each: each)
def test_the_rule_of_each_route(matrix, method, path):
    rule = RULES[method, path]
    for visibility in VISIBILITIES if rule.about in ("skill", "robot") else VISIBILITIES[:1]:
        matrix.visibility = visibility
        for caller in CALLERS:
            request = rule.request(matrix) if callable(rule.request) else rule.request
            who = caller
            if path == "/v1/logout" and caller != "nobody":
                who = one_more_token(matrix, caller)
            answer = matrix.ask(method, matrix.address(path, rule), who, **request)
            told = (caller, visibility, answer.status_code, answer.text[:300])
            expected = rule.expected(caller, visibility)
            if expected is None:
                assert answer.status_code < 300 or answer.status_code in rule.fine, told
            else:
                assert answer.status_code == expected, told


def one_more_token(matrix, caller):
    """A token that may be ended."""
    if isinstance(caller, tuple) and caller[1] == "robot":
        matrix.post(f"/v1/orgs/{caller[0]}/robots", (caller[0], "owner"), json={"name": "r3"})
        made = matrix.post(f"/v1/orgs/{caller[0]}/robots/r3/tokens", (caller[0], "owner"), json={})
    else:
        made = matrix.post("/v1/tokens", caller, json={"scopes": ["read"]})
    return made.json()["token"]


def test_uploads_are_their_own(matrix):
    """An upload of acme's exists for those who publish there, and for nobody else."""
    data = b"hello"
    for caller in CALLERS:
        begun = matrix.post(
            "/v1/uploads",
            ("acme", "owner"),
            json={"sha256": NONE_HEX, "size": len(data)},
            params={"org": "acme"},
        )
        path = begun.headers["location"]
        may = isinstance(caller, tuple) and caller[0] == "acme" and "publish" in ROLES[caller[1]]
        for method, kwargs, fine in (
            ("GET", {}, 200),
            ("HEAD", {}, 200),
            ("PATCH", {"content": data, "headers": {"Upload-Offset": "0"}}, 200),
            ("PUT", {}, 422),  # other bytes than it was announced for, which ends it
        ):
            answer = matrix.ask(method, path, caller, **kwargs)
            assert answer.status_code == (fine if may else 404), (caller, method, answer.text)
        if not may:
            assert matrix.delete(path, caller).status_code == 404
            assert matrix.delete(path, ("acme", "owner")).status_code == 204
