"""A registry without sockets, and ways to fill it."""

from __future__ import annotations

import warnings

import pytest

from neuraverse.registry import create_app

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette would rather have httpx2; the client room uses httpx
    from starlette.testclient import TestClient


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def api(data_dir):
    with TestClient(create_app(data_dir)) as client:
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


@pytest.fixture
def upload(api):
    def put(skill):
        for name, entry in skill.manifest.files.items():
            answer = api.put(f"/v1/blobs/{entry.sha256}", content=skill.read(name))
            assert answer.status_code in (200, 201), answer.text

    return put


@pytest.fixture
def publish(api, upload, submission):
    """Upload and publish a skill; the answer."""

    def run(skill, **changes):
        upload(skill)
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


def problem(answer, status):
    """The problem document of a refusal with this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "remedy"}
    assert body["status"] == status
    return body


@pytest.fixture(scope="session", name="problem")
def problem_fixture():
    return problem
