"""Publishing: what is checked, who may, and that all of it or nothing becomes visible."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from model_signing import hashing, signing

from neuraverse.manifest import digest_of
from neuraverse.trust import KeyStore

REF = "/v1/skills/acme/weld-seam"


@pytest.fixture
def stranger(tmp_path):
    store = KeyStore(tmp_path / "stranger")
    store.new("default")
    return store


def test_publish_and_read_back(api, tiny_skill, publish, publisher):
    answer = publish(tiny_skill)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{REF}/1.0.0"
    assert answer.json() == {
        "name": "acme/weld-seam",
        "version": "1.0.0",
        "digest": tiny_skill.digest,
        "url": f"{REF}/1.0.0",
    }
    found = api.get(f"{REF}/1.0.0").json()
    assert found == {
        "name": "acme/weld-seam",
        "version": "1.0.0",
        "digest": tiny_skill.digest,
        "publisher": publisher.public_key().fingerprint,
        "parents": [],
        "children": [],
    }
    hexadecimal = tiny_skill.digest.removeprefix("sha256:")
    manifest = api.get(f"/v1/manifests/{hexadecimal}")
    assert manifest.content == tiny_skill.read("manifest.json")
    assert manifest.headers["etag"] == f'"{hexadecimal}"'
    assert "immutable" in manifest.headers["cache-control"]
    again = api.get(f"/v1/manifests/{hexadecimal}", headers={"If-None-Match": f'"{hexadecimal}"'})
    assert again.status_code == 304
    assert api.get(f"/v1/manifests/{hexadecimal}/signature").content == tiny_skill.read("signature.json")
    assert api.get("/v1/orgs/acme/key").content == publisher.public_key().pem


def test_the_same_bytes_again_change_nothing(api, tiny_skill, publish):
    first = publish(tiny_skill)
    again = publish(tiny_skill)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(api.get("/v1/events?after=0").json()["events"]) == 1


def test_other_bytes_under_a_taken_version(api, tmp_path, make_skill, tiny_skill, publish, problem):
    publish(tiny_skill)
    other = make_skill(tmp_path / "other", seed=1)
    body = problem(publish(other), 409)
    assert tiny_skill.digest in body["detail"]
    assert "never reused" in body["remedy"]
    assert api.get(f"{REF}/1.0.0").json()["digest"] == tiny_skill.digest


def test_a_missing_blob(api, tiny_skill, submission, problem):
    body = problem(api.post("/v1/skills", json=submission(tiny_skill)), 422)
    assert body["type"].endswith("missing-blob")
    assert "model.safetensors" in body["detail"]
    problem(api.get(REF), 404)


def test_a_blob_of_another_size_than_the_manifest_says(
    api, tiny_skill, upload, submission, problem, data_dir
):
    upload(tiny_skill)
    entry = tiny_skill.manifest.files["README.md"]
    blob = data_dir / "blobs" / "sha256" / entry.sha256[:2] / entry.sha256
    blob.chmod(0o644)
    blob.write_bytes(b"shorter")
    assert (
        "README.md has 7 bytes" in problem(api.post("/v1/skills", json=submission(tiny_skill)), 422)["detail"]
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", pickle.dumps({"w": [1.0] * 9}), "is a pickle"),
        ("model.safetensors", b"\xff" * 7 + b"\x7f{}", "the header claims"),
        ("model.safetensors", safetensors.numpy.save({"w": np.zeros(3, np.float32)}), "holds 3 numbers"),
        ("policy.onnx", b"<html>", "not an ONNX file"),
        ("policy.onnx", b"\x3a\xfe\xff\x7f" + b"\x0a\0" * 500_000, "parts"),
    ],
)
def test_weights_and_graphs_that_no_robot_would_take(
    api, tiny_skill, publisher, problem, name, content, says
):
    """Signed by the publisher, but wrong: nothing of it becomes visible."""
    tiny_skill.path.joinpath(name).write_bytes(content)
    manifest = json.loads(tiny_skill.read("manifest.json"))
    manifest["files"][name] = {"sha256": digest_of(content)[7:], "size": len(content)}
    tiny_skill.path.joinpath("manifest.json").write_text(json.dumps(manifest))
    config = signing.Config().use_elliptic_key_signer(private_key=publisher.private_key_path())
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["signature.json"]))
    config.sign(tiny_skill.path, tiny_skill.path / "signature.json")
    for file in manifest["files"]:
        data = (tiny_skill.path / file).read_bytes()
        assert api.put(f"/v1/blobs/{digest_of(data)[7:]}", content=data).status_code == 201
    body = {
        "manifest": (tiny_skill.path / "manifest.json").read_text(),
        "signature": (tiny_skill.path / "signature.json").read_text(),
        "public_key": publisher.public_key().pem.decode(),
    }
    refused = problem(api.post("/v1/skills", json=body), 422)
    assert refused["type"].endswith("weights")
    assert says in refused["detail"]
    problem(api.get(REF), 404)


def test_names_of_blobs_last_before_the_row(api, tiny_skill, upload, submission, data_dir, monkeypatch):
    """Another client may have brought them, and not be done yet."""
    upload(tiny_skill)
    synced, fsync = set(), os.fsync

    def spy(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    assert api.post("/v1/skills", json=submission(tiny_skill)).status_code == 201
    root = data_dir.resolve() / "blobs" / "sha256"
    assert synced >= {str(root)} | {str(root / e.sha256[:2]) for e in tiny_skill.manifest.files.values()}


def test_a_changed_manifest_has_no_signature(api, tiny_skill, upload, submission, problem):
    upload(tiny_skill)
    text = tiny_skill.read("manifest.json").decode().replace("Follow a seam", "Follow a beam")
    body = problem(api.post("/v1/skills", json=submission(tiny_skill, manifest=text)), 422)
    assert body["type"].endswith("signature")


def test_a_key_that_did_not_sign(api, tiny_skill, upload, submission, problem, stranger):
    upload(tiny_skill)
    pem = stranger.public_key().pem.decode()
    body = problem(api.post("/v1/skills", json=submission(tiny_skill, public_key=pem)), 422)
    assert body["type"].endswith("signature")
    problem(api.get("/v1/orgs/acme/key"), 404)


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("manifest", "{}", 422),
        ("manifest", "no json", 422),
        ("manifest", "x" * (1 << 20) + "x", 422),
        ("signature", "{}", 422),
        ("signature", "x" * 70_000, 422),
        ("public_key", "no key", 400),
        ("public_key", "x" * 20_000, 422),
        ("manifest", 5, 422),
        ("surprise", "x", 422),
    ],
)
def test_malformed_parts(api, tiny_skill, upload, submission, problem, field, value, status):
    upload(tiny_skill)
    body = problem(api.post("/v1/skills", json=submission(tiny_skill, **{field: value})), status)
    assert len(body["detail"]) < 1000
    problem(api.get(REF), 404)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10_000])
def test_bodies_that_are_no_object(api, problem, content):
    problem(api.post("/v1/skills", content=content), 422)


def test_a_private_key_is_not_taken(api, tiny_skill, upload, submission, publisher, problem):
    upload(tiny_skill)
    pem = publisher.private_key_path().read_text()
    answer = api.post("/v1/skills", json=submission(tiny_skill, public_key=pem))
    assert "private key" in problem(answer, 400)["detail"]
    assert pem.splitlines()[1] not in answer.text


def test_an_organisation_belongs_to_its_first_key(
    api, tmp_path, make_skill, publish, publish_new, problem, stranger
):
    publish_new()
    foreign = make_skill(tmp_path / "foreign", version="2.0.0", key=stranger.private_key_path())
    pem = stranger.public_key().pem.decode()
    body = problem(publish(foreign, public_key=pem), 403)
    assert "'acme'" in body["detail"]
    assert [v["version"] for v in api.get(REF).json()["versions"]] == ["1.0.0"]
    own = make_skill(tmp_path / "own", org="other", key=stranger.private_key_path())
    assert publish(own, public_key=pem).status_code == 201


def test_parents_must_exist_and_get_their_children(api, tmp_path, make_skill, publish, publish_new, problem):
    missing = digest_of(b"nothing")
    orphan = make_skill(tmp_path / "orphan", version="2.0.0", parents=[missing])
    assert missing in problem(publish(orphan), 422)["detail"]
    parent = publish_new()
    child = publish_new(version="1.1.0", seed=1, parents=[parent.digest])
    assert api.get(f"{REF}/1.0.0").json()["children"] == [child.digest]
    assert api.get(f"{REF}/1.1.0").json()["parents"] == [parent.digest]
    event = api.get("/v1/events?after=0").json()["events"][-1]
    assert (event["digest"], event["parents"]) == (child.digest, [parent.digest])


def test_a_refused_publish_leaves_no_trace(api, tmp_path, make_skill, publish, problem):
    orphan = make_skill(tmp_path / "orphan", parents=[digest_of(b"nothing")])
    problem(publish(orphan), 422)
    problem(api.get(REF), 404)
    problem(api.get("/v1/orgs/acme/key"), 404)
    assert api.get("/v1/events?after=0").json()["events"] == []


def test_one_version_from_many_writers(api, tmp_path, make_skill, upload, submission):
    bodies = []
    for seed in range(8):
        skill = make_skill(tmp_path / f"s{seed}", seed=seed)
        upload(skill)
        bodies += [submission(skill)]
    with ThreadPoolExecutor(8) as pool:
        codes = sorted(a.status_code for a in pool.map(lambda b: api.post("/v1/skills", json=b), bodies))
    assert codes == [201] + [409] * 7
    assert len(api.get("/v1/events?after=0").json()["events"]) == 1


def test_the_openapi_page_names_every_route(api):
    paths = json.loads(api.get("/openapi.json").text)["paths"]
    assert {"/v1/blobs/{digest}", "/v1/skills", "/v1/events/stream", "/health"} <= set(paths)
