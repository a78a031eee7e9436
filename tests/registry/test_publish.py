"""Publishing: what is checked, who may, and that all of it or nothing becomes visible."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy

from neuraverse import archive, trust
from neuraverse.manifest import BLOBS, SkillManifest, digest_of
from neuraverse.trust import KeyStore

REF = "/v1/skills/acme/weld-seam"


@pytest.fixture
def stranger(tmp_path):
    store = KeyStore(tmp_path / "stranger")
    store.new("default")
    return store


@pytest.mark.storages
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
        "state": "active",
        "reason": "",
        "because": "",
        "evaluation": {name: getattr(tiny_skill.manifest.evaluation, name) for name in ("rate", "lower")}
        | {"n": tiny_skill.manifest.evaluation.episodes},
        "field": None,
        "warnings": [],
        "parents": [],
        "children": [],
        "deprecated": None,
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


@pytest.mark.storages
def test_fault_07_the_same_bytes_again_change_nothing(api, tiny_skill, publish):
    first = publish(tiny_skill)
    again = publish(tiny_skill)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(api.get("/v1/events?after=0").json()["events"]) == 1


@pytest.mark.storages
def test_fault_07_other_bytes_under_a_taken_version(api, tmp_path, make_skill, tiny_skill, publish, problem):
    publish(tiny_skill)
    other = make_skill(tmp_path / "other", seed=1)
    body = problem(publish(other), 409)
    assert tiny_skill.digest in body["detail"]
    assert "never reused" in body["remedy"]
    assert api.get(f"{REF}/1.0.0").json()["digest"] == tiny_skill.digest


@pytest.mark.storages
def test_a_missing_blob(api, tiny_skill, submission, problem):
    body = problem(api.post("/v1/skills", json=submission(tiny_skill)), 422)
    assert body["type"].endswith("missing-blob")
    assert "model.safetensors" in body["detail"]
    problem(api.get(REF), 404)


def test_a_blob_of_another_size_than_the_manifest_says(api, tiny_skill, upload, publisher, problem):
    upload(api, tiny_skill)
    manifest = json.loads(tiny_skill.read("manifest.json"))
    manifest["files"]["README.md"]["size"] += 1
    tiny_skill.path.joinpath("manifest.json").write_text(json.dumps(manifest))
    body = problem(api.post("/v1/skills", json=_signed(tiny_skill.path, publisher)), 422, "size")
    assert "README.md has" in body["detail"]
    assert body["field"] == "files.README.md.size"


def _signed(folder, publisher):
    """The body of a publish of a folder as it is; the signature holds, whatever the manifest says of it."""
    data = (folder / "manifest.json").read_bytes()
    signature, _ = trust.signature_of(SkillManifest.parse(data), data, publisher.private_key_path())
    return {
        "manifest": data.decode(),
        "signature": signature.decode(),
        "public_key": publisher.public_key().pem.decode(),
    }


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
def test_faults_14_16_weights_and_graphs_that_no_robot_would_take(
    api, tiny_skill, publisher, problem, name, content, says
):
    """Signed by the publisher, but wrong: nothing of it becomes visible."""
    tiny_skill.path.joinpath(name).write_bytes(content)
    manifest = json.loads(tiny_skill.read("manifest.json"))
    manifest["files"][name] = {"sha256": digest_of(content)[7:], "size": len(content)}
    tiny_skill.path.joinpath("manifest.json").write_text(json.dumps(manifest))
    body = _signed(tiny_skill.path, publisher)
    for file in manifest["files"]:
        data = (tiny_skill.path / file).read_bytes()
        assert api.put(f"/v1/blobs/{digest_of(data)[7:]}", content=data).status_code == 201
    refused = problem(api.post("/v1/skills", json=body), 422)
    assert refused["type"].endswith("weights")
    assert says in refused["detail"]
    problem(api.get(REF), 404)


def test_a_changed_manifest_has_no_signature(api, tiny_skill, upload, submission, problem):
    upload(api, tiny_skill)
    text = tiny_skill.read("manifest.json").decode().replace("Follow a seam", "Follow a beam")
    body = problem(api.post("/v1/skills", json=submission(tiny_skill, manifest=text)), 422)
    assert body["type"].endswith("signature")


def test_a_key_that_did_not_sign(api, tiny_skill, upload, submission, problem, stranger):
    upload(api, tiny_skill)
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
    upload(api, tiny_skill)
    body = problem(api.post("/v1/skills", json=submission(tiny_skill, **{field: value})), status)
    assert len(body["detail"]) < 1000
    problem(api.get(REF), 404)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10_000])
def test_bodies_that_are_no_object(api, problem, content):
    problem(api.post("/v1/skills", content=content), 422)


def test_a_private_key_is_not_taken(api, tiny_skill, upload, submission, publisher, problem):
    upload(api, tiny_skill)
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


@pytest.mark.storages
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


@pytest.mark.storages
def test_a_refused_publish_leaves_no_trace(api, tmp_path, make_skill, publish, problem):
    orphan = make_skill(tmp_path / "orphan", parents=[digest_of(b"nothing")])
    problem(publish(orphan), 422)
    problem(api.get(REF), 404)
    problem(api.get("/v1/orgs/acme/key"), 404)
    assert api.get("/v1/events?after=0").json()["events"] == []


@pytest.mark.storages
def test_fault_06_one_version_from_many_writers(api, tmp_path, make_skill, upload, submission):
    bodies = []
    for seed in range(8):
        skill = make_skill(tmp_path / f"s{seed}", seed=seed)
        upload(api, skill)
        bodies += [submission(skill)]
    with ThreadPoolExecutor(8) as pool:
        codes = sorted(a.status_code for a in pool.map(lambda b: api.post("/v1/skills", json=b), bodies))
    assert codes == [201] + [409] * 7
    assert len(api.get("/v1/events?after=0").json()["events"]) == 1


def test_the_openapi_page_names_every_route(api):
    paths = json.loads(api.get("/openapi.json").text)["paths"]
    assert {"/v1/blobs/{digest}", "/v1/skills", "/v1/events/stream", "/health/ready"} <= set(paths)


def parcel(skill, publisher, names=tuple(BLOBS), **changes):
    """A publish with its files in one piece."""
    parts = {name: skill.read(name) for name in ("manifest.json", "signature.json")}
    parts["public.pem"] = publisher.public_key().pem
    parts |= {name: skill.read(name) for name in names}
    return b"".join(archive.pack((parts | changes).items()))


TAR = {"Content-Type": "application/x-tar"}


@pytest.mark.storages
def test_a_publish_in_one_round_trip(api, tiny_skill, publisher, problem):
    answer = api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    assert answer.status_code == 201, answer.text
    for name, entry in tiny_skill.manifest.files.items():
        assert api.get(f"/v1/blobs/{entry.sha256}").content == tiny_skill.read(name)
    again = api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    assert (again.status_code, again.json()) == (200, answer.json())
    assert api.get(REF).json()["versions"][0]["digest"] == tiny_skill.digest


@pytest.mark.storages
def test_a_child_sends_only_what_changed(api, tmp_path, make_skill, tiny_skill, publish, publisher):
    publish(tiny_skill)
    child = make_skill(tmp_path / "child", version="1.1.0", seed=1, parents=[tiny_skill.digest])
    digests = [entry.sha256 for entry in child.manifest.files.values()]
    missing = api.post("/v1/blobs/missing", json={"sha256": digests}).json()["missing"]
    names = [name for name in BLOBS if child.manifest.files[name].sha256 in missing]
    assert names == ["model.safetensors", "policy.onnx"]
    answer = api.post("/v1/skills", content=parcel(child, publisher, names), headers=TAR)
    assert answer.status_code == 201, answer.text


def test_a_parcel_that_lacks_a_file(api, tiny_skill, publisher, problem):
    content = parcel(tiny_skill, publisher, ["model.safetensors", "policy.onnx", "README.md"])
    body = problem(api.post("/v1/skills", content=content, headers=TAR), 422, "missing-blob")
    assert body["field"] == "files.evaluation.json"
    assert api.post(
        "/v1/blobs/missing", json={"sha256": [tiny_skill.manifest.files["README.md"].sha256]}
    ).json()["missing"]


@pytest.mark.storages
@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda data: data[:-100], "integrity"),
        (lambda data: data + b"x", "integrity"),
        (lambda data: data.replace(b"README.md\0", b"README.me\0", 1), "integrity"),
        (lambda data: data.replace(b"# Follow a seam", b"# Follow a beam"), "integrity"),
        (lambda data: b"", "integrity"),
        (lambda data: b"\x1f\x8b" + data, "integrity"),
    ],
)
def test_fault_05_a_spoilt_parcel_is_refused(api, tiny_skill, publisher, problem, spoil, kind):
    problem(api.post("/v1/skills", content=spoil(parcel(tiny_skill, publisher)), headers=TAR), 422, kind)
    problem(api.get(REF), 404)
    digests = [entry.sha256 for entry in tiny_skill.manifest.files.values()]
    assert api.post("/v1/blobs/missing", json={"sha256": digests}).json()["missing"] == digests


def test_fault_13_a_parcel_beyond_its_limit(api, problem):
    for body in (bytes(17 << 20), iter([bytes(1 << 20)] * 17)):
        problem(api.post("/v1/skills", content=body, headers=TAR), 413)


def test_fault_15_names_that_look_like_others(api, make_skill, tmp_path, problem, publish):
    """What a manifest cannot be named, a path cannot either."""
    for name in ("weld%2Fseam", "WELD", "we\u217cd", "weld-", "a" * 65):
        answer = api.get(f"/v1/skills/acme/{name}")
        assert answer.status_code in (400, 404), name
