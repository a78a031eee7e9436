"""A registry without sockets, on each kind of storage, and ways to fill it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from neuraverse import statement
from neuraverse.registry import Settings, create_app
from tests import servers

SERVE = (
    "import sys; from neuraverse.registry import Settings, serve\n"
    "serve(Settings.load(), ready_file=sys.argv[1])"
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette would rather have httpx2; the client room uses httpx
    from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def postgres():
    with servers.postgres() as found:
        yield found


@pytest.fixture(scope="session")
def s3():
    with servers.s3() as found:
        yield found


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def plain(data_dir):
    """Settings for SQLite and files."""
    return Settings.load(data=data_dir, collect_hours=0)


def pytest_generate_tests(metafunc):
    """Tests that are marked with `storages` run on each kind of storage, others on SQLite and files."""
    if "settings" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("storages") is not None
        kinds = ["sqlite+files", "postgres+s3"] if both else ["sqlite+files"]
        metafunc.parametrize("settings", kinds, indirect=True)


@pytest.fixture
def settings(request, data_dir):
    """Settings for one kind of storage; the one with servers of its own starts them once."""
    if request.param == "sqlite+files":
        return Settings.load(data=data_dir, collect_hours=0)
    database = request.getfixturevalue("postgres").new()
    return Settings.load(
        data=data_dir,
        database=database,
        collect_hours=0,
        presign=False,
        **request.getfixturevalue("s3").new(),
    )


@pytest.fixture
def start(tmp_path):
    """Start server processes: ``start(data=…, **settings)`` gives the process and its URL."""
    running = []

    def run(**settings):
        ready = tmp_path / f"ready-{len(running)}.json"
        prefix = "NEURAVERSE_REGISTRY_"
        given = {"port": 0, "open": True, "collect_hours": 0, "log_level": "warning", **settings}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(ready)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean | {f"{prefix}{name.upper()}": str(value) for name, value in given.items()},
        )
        running.append(process)
        servers.until(ready.exists, "the registry", lambda: process.poll() is None)
        return process, json.loads(ready.read_text())["url"]

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def first_plant(tmp_path_factory, make_skill, publisher, state):
    """A plant with robots, closed, as whose copies the tests of fleets begin."""
    from tests.registry.test_fleet import Plant

    folder = tmp_path_factory.mktemp("plant")
    settings = Settings.load(data=folder / "data", open=False, collect_hours=0)
    made = Plant(settings, folder / "skills", make_skill, publisher, state)
    made.close()
    return made


@pytest.fixture
def api(settings):
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def local_api(plain):
    """The same on SQLite and files alone, for what does not depend on storage."""
    with TestClient(create_app(plain)) as client:
        yield client


@pytest.fixture(scope="session")
def submission(publisher):
    """The body of a publish: ``submission(skill)``; keywords replace parts of it."""

    def make(skill, **changes):
        body = {
            "manifest": skill.read("manifest.json").decode(),
            "signature": skill.read("signature.json").decode(),
            "public_key": publisher.public_key().pem.decode(),
        }
        return body | changes

    return make


@pytest.fixture(scope="session")
def upload():
    """``upload(api, skill)``: every file of it."""

    def put(api, skill):
        for name, entry in skill.manifest.files.items():
            answer = api.put(f"/v1/blobs/{entry.sha256}", content=skill.read(name))
            assert answer.status_code in (200, 201), answer.text

    return put


@pytest.fixture
def publish(api, upload, submission):
    """Upload and publish a skill; the answer."""

    def run(skill, **changes):
        upload(api, skill)
        return api.post("/v1/skills", json=submission(skill, **changes))

    return run


@pytest.fixture
def publish_new(tmp_path, make_skill, publish):
    """Make and publish: ``publish_new(version="1.0.0", ...)``; the skill."""

    def run(**fields):
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        skill = make_skill(folder, **fields)
        answer = publish(skill)
        assert answer.status_code == 201, answer.text
        return skill

    return run


@pytest.fixture(scope="session")
def state(publisher):
    """Sign and send a statement: ``state(api, "alias", alias="stable", version="1.0.0")``; the answer.

    `http` is anything with httpx's get and post; `said` replaces fields, `key` is a private key's path.
    """

    def run(http, action, name="acme/weld-seam", key=None, said=None, **fields):
        now = http.get(f"/v1/skills/{name}").json()
        made = statement.Statement(
            **{
                "registry": now.get("registry", "0" * 36),
                "name": name,
                "serial": now.get("serial", 0) + 1,
                "action": action,
                **fields,
                **(said or {}),
            }
        )
        text = made.text()
        signature = statement.sign(text, key or publisher.private_key_path())
        return http.post(f"/v1/skills/{name}/statements", json={"statement": text, "signature": signature})

    return run


def problem(answer, status, kind=None):
    """The problem document of a refusal with this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail", "remedy"} <= set(body)
    assert body["status"] == status
    assert body["remedy"], body
    assert kind is None or body["type"] == f"urn:neuraverse:problem:{kind}", body
    return body


@pytest.fixture(scope="session", name="problem")
def problem_fixture():
    return problem
