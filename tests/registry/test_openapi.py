"""The OpenAPI document against the server: no failure, no answer that it does not tell of."""

from __future__ import annotations

import warnings

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from neuraverse.registry import Settings, background
from tests.registry.test_publish import TAR, parcel
from tests.registry.test_tenants import ROLE_NAMES, World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# 405 and 404 for paths and methods that are not there belong to no operation.
ENDLESS = {"/v1/events/stream", "/v1/logout"}  # and this one ends the token


@pytest.fixture(scope="module")
def url(tmp_path_factory, make_skill, publisher):
    folder = tmp_path_factory.mktemp("openapi")
    with background(Settings.load(data=folder / "data", collect_hours=0, body_idle_s=1.0)) as address:
        content = parcel(make_skill(folder / "skill"), publisher)
        assert httpx.post(f"{address}/v1/skills", content=content, headers=TAR).status_code == 201
        yield address


@pytest.fixture(scope="module")
def document(url):
    return httpx.get(f"{url}/openapi.json").json()


def operations(document):
    return [
        (path, method)
        for path, methods in document["paths"].items()
        for method in methods
        if path not in ENDLESS
    ]


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )


@pytest.fixture(scope="module")
def tenants(tmp_path_factory, make_skill, publisher):
    """A closed registry with a skill of each visibility: its address, and a token for each role."""
    folder = tmp_path_factory.mktemp("openapi-tenants")
    world = World(Settings.load(data=folder / "data", open=False, collect_hours=0, body_idle_s=1.0))
    for number, visibility in enumerate(("public", "network", "private")):
        skill = make_skill(folder / visibility, name=f"{visibility}-one", seed=number)
        world.publish(skill, publisher, ("acme", "owner"), visibility=visibility)
    world.close()
    with background(world.settings) as address:
        yield address, world.token


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [6, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_every_answer_is_documented(url, document, count):
    assert ask_all(url, count) == len(operations(document))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", [*ROLE_NAMES, "operator"])
@pytest.mark.parametrize("count", [1, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_every_answer_to_each_role_is_documented(tenants, document, role, count):
    address, tokens = tenants
    token = tokens.get(role) or tokens["acme", role]
    assert ask_all(address, count, {"Authorization": f"Bearer {token}"}) == len(operations(document))


def ask_all(url, count, headers=None):
    """Call every operation with what its description allows, and with what it does not; how many."""
    done = 0
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        if operation.path not in ENDLESS:
            ask(operation, count, headers or {})
            done += 1
    return done


def ask(operation, count, headers):
    @examples(count)
    @given(case=operation.as_strategy())
    def run(case):
        if operation.path == "/v1/events":
            (case.query or {}).pop("wait", None)
        case.validate_response(case.call(timeout=20, headers=headers), checks=CHECKS)

    run()


def test_every_operation_tells_what_it_is_for(document):
    assert document["components"]["schemas"]["ProblemDocument"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description") or operation.get("summary"), (method, path)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    schema = parameter["schema"]
                    assert parameter.get("examples") or schema.get("examples"), (path, parameter["name"])
