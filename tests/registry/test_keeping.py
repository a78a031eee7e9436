"""The collector, the scrubber and backups: what is removed, what is found, what comes back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time

import pytest
from starlette.testclient import TestClient

from neuraverse.errors import IntegrityError, UsageError
from neuraverse.registry import Settings, create_app
from neuraverse.registry.backup import backup, restore, snapshots
from neuraverse.registry.collect import collect
from neuraverse.registry.scrub import check
from neuraverse.registry.service import opened
from tests.registry.test_publish import TAR, parcel

REF = "/v1/skills/acme/weld-seam"


def run(settings, task, **options):
    """Do one task of an operator, beside whatever serves the registry."""

    async def main():
        async with opened(settings, migrate=True) as registry:
            return await task(registry, **options)

    return asyncio.run(main())


def hurried(settings):
    """The same registry, with a grace of nothing."""
    return settings.model_copy(update={"grace_hours": 1e-9})


@pytest.mark.storages
def test_what_nobody_refers_to_goes_after_its_grace(api, settings, publish_new):
    skill = publish_new()
    unused = b"unused"
    digest = hashlib.sha256(unused).hexdigest()
    api.put(f"/v1/blobs/{digest}", content=unused)
    assert run(settings, collect).blobs == 0  # within its grace
    with TestClient(create_app(hurried(settings))) as quick:
        other = b"other"
        quick.put(f"/v1/blobs/{hashlib.sha256(other).hexdigest()}", content=other)
        time.sleep(0.01)
        assert run(settings, collect, dry_run=True).blobs == 1
        assert run(settings, collect).blobs == 1
        assert quick.get(f"/v1/blobs/{hashlib.sha256(other).hexdigest()}").status_code == 404
    assert api.get(f"/v1/blobs/{digest}").content == unused
    for name, entry in skill.manifest.files.items():
        assert api.get(f"/v1/blobs/{entry.sha256}").content == skill.read(name)


def test_fault_01_what_a_crash_left_goes(local_api, plain, data_dir, tiny_skill, publisher):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    stray = data_dir / "blobs" / "sha256" / "ab" / f"{'ab' * 32}.012345"
    stray.write_bytes(b"half")
    assert run(hurried(plain), collect).strays == 0  # it may belong to a publish that is under way
    long_ago = time.time() - 7200
    os.utime(stray, (long_ago, long_ago))
    assert run(plain, collect).strays == 0
    assert run(hurried(plain), collect).strays == 1
    assert not stray.exists()
    assert local_api.get(f"{REF}/1.0.0/archive").status_code == 200


@pytest.mark.storages
def test_fault_02_blobs_without_a_row_are_published_by_a_retry(settings, tiny_skill, upload, submission):
    """The server died between the blobs and the row; another one takes the publish."""
    with TestClient(create_app(settings)) as api:
        upload(api, tiny_skill)
    with TestClient(create_app(settings)) as api:
        assert api.get(REF).status_code == 404
        assert api.post("/v1/skills", json=submission(tiny_skill)).status_code == 201
        assert api.get(f"{REF}/1.0.0/archive").status_code == 200


def test_expired_uploads_go(local_api, plain, data_dir):
    url = local_api.post("/v1/uploads", json={"sha256": "0" * 64, "size": 5}).headers["location"]
    local_api.patch(url, headers={"Upload-Offset": "0"}, content=b"abc")
    assert run(plain, collect).uploads == 0
    with TestClient(create_app(plain.model_copy(update={"upload_hours": 1e-9}))) as quick:
        gone = quick.post("/v1/uploads", json={"sha256": "1" * 64, "size": 5}).json()["id"]
    (data_dir / "incoming" / gone).write_bytes(b"ab")
    assert run(plain, collect).uploads == 1
    assert [p.name for p in (data_dir / "incoming").iterdir()] == [url.rsplit("/", 1)[-1]]


@pytest.mark.storages
def test_fault_08_a_publish_that_races_the_collector_keeps_its_blobs(
    settings, make_skill, tmp_path, publisher, upload, submission
):
    """A lease of nothing, a collector that never rests: a publish is whole, or is told what lacks."""
    quick = hurried(settings)
    stop = threading.Event()
    skills = [make_skill(tmp_path / f"s{i}", version=f"1.0.{i}", seed=i % 3) for i in range(8)]

    def collecting():
        while not stop.is_set():
            run(quick, collect)

    with TestClient(create_app(quick)) as api:
        thread = threading.Thread(target=collecting)
        thread.start()
        try:
            published = []
            for skill in skills:
                upload(api, skill)
                if api.post("/v1/skills", json=submission(skill)).status_code == 201:
                    published.append(skill)
                answer = api.post("/v1/skills", content=parcel(skill, publisher), headers=TAR)
                assert answer.status_code in (200, 201), answer.text  # in one piece, nothing comes between
                published.append(skill)
        finally:
            stop.set()
            thread.join()
        run(quick, collect)
        for skill in published:
            for name, entry in skill.manifest.files.items():
                assert api.get(f"/v1/blobs/{entry.sha256}").content == skill.read(name)
    assert run(settings, check).faults == ()


def blob_path(data_dir, sha256):
    (path,) = (data_dir / "blobs" / "sha256").glob(f"*/{sha256}*")
    return path


def test_fault_09_a_flipped_bit_is_found_and_healed(
    local_api, plain, data_dir, tiny_skill, publisher, problem
):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    sha256 = tiny_skill.manifest.files["model.safetensors"].sha256
    path = blob_path(data_dir, sha256)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = run(plain, check, repair=False)
    assert [(f.kind, f.what, f.versions) for f in found.faults] == [
        ("rotten", sha256, ("acme/weld-seam@1.0.0",))
    ]
    assert local_api.get(f"/v1/blobs/{sha256}").status_code == 200  # only looked
    assert len(run(plain, check).faults) == 1
    assert [p.name for p in (data_dir / "quarantine").iterdir()] == [path.name]
    problem(local_api.get(f"/v1/blobs/{sha256}"), 404, "lost")
    assert local_api.post("/v1/blobs/missing", json={"sha256": [sha256]}).json()["missing"] == [sha256]
    again = local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    assert again.status_code == 200  # nothing new, and healed
    assert local_api.get(f"/v1/blobs/{sha256}").content == tiny_skill.read("model.safetensors")
    assert run(plain, check).faults == ()


def test_a_blob_that_is_gone_is_found(local_api, plain, data_dir, tiny_skill, publisher):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    path = blob_path(data_dir, tiny_skill.manifest.files["README.md"].sha256)
    data = path.read_bytes()
    path.unlink()
    (fault,) = run(plain, check).faults
    assert (fault.kind, fault.versions) == ("missing", ("acme/weld-seam@1.0.0",))
    path.write_bytes(data)  # somebody puts it back
    assert run(plain, check).faults == ()
    assert local_api.get(f"{REF}/1.0.0/archive").status_code == 200


def everything(api):
    """What a registry says to those who ask."""
    names = [s["name"] for s in api.get("/v1/skills").json()["skills"]]
    skills = {name: api.get(f"/v1/skills/{name}").json() for name in names}
    archives = {
        f"{name}@{v['version']}": hashlib.sha256(
            api.get(f"/v1/skills/{name}/{v['version']}/archive").content
        ).hexdigest()
        for name, skill in skills.items()
        for v in skill["versions"]
    }
    events = api.get("/v1/events?after=0").json()["events"]
    return skills, archives, [{k: v for k, v in event.items() if k != "cursor"} for event in events]


@pytest.mark.storages
def test_backup_and_restore(api, settings, publish_new, state, tmp_path, make_skill, publisher):
    first = publish_new(version="1.0.0")
    publish_new(version="1.1.0", seed=1, parents=[first.digest])
    state(api, "alias", alias="stable", version="1.0.0")
    api.put(f"/v1/blobs/{hashlib.sha256(b'unused').hexdigest()}", content=b"unused")
    note = run(settings, backup, folder=tmp_path / "backups")
    last = api.get("/v1/events").json()["next"]
    assert note.versions == 2
    assert last.endswith(f"-{note.head}")
    copied = {p: p.stat().st_mtime_ns for p in (tmp_path / "backups" / "blobs").rglob("*") if p.is_file()}
    publish_new(version="1.2.0", seed=2)
    second = run(settings, backup, folder=tmp_path / "backups")
    assert second.versions == 3
    for path, when in copied.items():
        assert path.stat().st_mtime_ns == when  # what was there is not copied again
    before = everything(api)

    # Onto the other kind of storage or the same: here, always SQLite and files.
    fresh = Settings.load(data=tmp_path / "restored", collect_hours=0)
    run(fresh, restore, folder=tmp_path / "backups")
    with TestClient(create_app(fresh)) as restored:
        assert everything(restored) == before
        assert run(fresh, check).faults == ()
        # Whoever has seen events that the backup had not looks anew, instead of waiting behind them.
        assert restored.get(f"/v1/events?after={last}").json()["reset"] is True
        skill = make_skill(tmp_path / "next", version="1.3.0", seed=3)
        assert restored.post("/v1/skills", content=parcel(skill, publisher), headers=TAR).status_code == 201
        assert state(restored, "alias", alias="stable", version="1.3.0").status_code == 200
    older = Settings.load(data=tmp_path / "older", collect_hours=0)
    run(older, restore, folder=tmp_path / "backups", name=next(iter(snapshots(tmp_path / "backups"))))
    with TestClient(create_app(older)) as restored:
        assert [v["version"] for v in restored.get(REF).json()["versions"]] == ["1.1.0", "1.0.0"]


def test_from_one_kind_of_storage_to_the_other(
    local_api, plain, tiny_skill, publisher, tmp_path, postgres, s3
):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    run(plain, backup, folder=tmp_path / "backups")
    target = Settings.load(
        data=tmp_path / "pg", database=postgres.new(), collect_hours=0, presign=False, **s3.new()
    )
    run(target, restore, folder=tmp_path / "backups")
    with TestClient(create_app(target)) as moved:
        assert everything(moved) == everything(local_api)


def test_restoring_what_cannot_be(local_api, plain, tiny_skill, publisher, tmp_path):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    folder = tmp_path / "backups"
    with pytest.raises(UsageError, match="holds no backup"):
        run(Settings.load(data=tmp_path / "a"), restore, folder=folder)
    run(plain, backup, folder=folder)
    with pytest.raises(UsageError, match="is not empty"):
        run(plain, restore, folder=folder)
    with pytest.raises(UsageError, match="holds no snapshot 'x'"):
        run(Settings.load(data=tmp_path / "a"), restore, folder=folder, name="x")
    (rows,) = (folder / "snapshots").glob("*.jsonl")
    (blob, *_) = (p for p in (folder / "blobs").rglob("*") if p.is_file())
    kept = blob.read_bytes()
    blob.write_bytes(b"rotten" + kept)
    with pytest.raises(IntegrityError, match="has rotted"):
        run(Settings.load(data=tmp_path / "b"), restore, folder=folder)
    blob.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        run(Settings.load(data=tmp_path / "b"), restore, folder=folder)
    blob.write_bytes(kept)
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="has rotted"):
        run(Settings.load(data=tmp_path / "b"), restore, folder=folder)
    with TestClient(create_app(Settings.load(data=tmp_path / "b"))) as api:
        assert api.get("/v1/skills").json()["skills"] == []  # no half of it is visible


def test_a_backup_that_was_cut_does_not_look_like_one(
    local_api, plain, tiny_skill, publisher, tmp_path, monkeypatch
):
    local_api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left"):
        run(plain, backup, folder=tmp_path / "backups")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="holds no backup"):
        snapshots(tmp_path / "backups")
    assert run(plain, backup, folder=tmp_path / "backups").versions == 1
