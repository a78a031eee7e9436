"""SIGKILL at random instants under publishing and pulling: what was acknowledged is there, and whole."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time

import httpx
import pytest

from neuraverse import archive
from neuraverse.manifest import BLOBS, SkillManifest, digest_of
from neuraverse.registry import Settings
from neuraverse.registry.collect import collect
from neuraverse.registry.scrub import check
from tests.registry.test_keeping import run
from tests.registry.test_publish import TAR, parcel

ORDER = ("manifest.json", "signature.json", *BLOBS)


def whole(data: bytes) -> str:
    """The digest of a skill whose every file is as its manifest says."""
    parts = archive.unpack([data], ORDER)
    manifest = SkillManifest.parse(parts["manifest.json"])
    for name, entry in manifest.files.items():
        assert hashlib.sha256(parts[name]).hexdigest() == entry.sha256, f"{manifest.ref}: {name} is torn"
    return digest_of(parts["manifest.json"])


class Load:
    """Writers, in one piece and blob by blob, and readers; they outlive servers.

    Attributes:
        url: Where the server is now.
        acknowledged: Digest by ``name@version`` of what was answered with 201 or 200.
        faults: What a reader saw that must not be.
    """

    def __init__(self, make_skill, folder, publisher, submission):
        self.url = ""
        self.acknowledged: dict[str, str] = {}
        self.faults: list[str] = []
        self.pulled = 0
        self._stop = threading.Event()
        self._make = lambda name, i: make_skill(
            folder / f"{name}-{i}", name=name, version=f"1.0.{i}", seed=i % 4
        )
        self._publisher, self._submission = publisher, submission
        self._threads = [
            threading.Thread(target=self._write, args=("parcels", self._in_one_piece)),
            threading.Thread(target=self._write, args=("pieces", self._blob_by_blob)),
            threading.Thread(target=self._read),
        ]
        for thread in self._threads:
            thread.start()

    def end(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, name, send):
        i = 0
        while not self._stop.is_set():
            skill = self._make(name, i)
            while not self._stop.is_set():
                try:
                    with httpx.Client(base_url=self.url, timeout=10) as http:
                        answer = send(http, skill)
                except (httpx.HTTPError, httpx.InvalidURL):
                    time.sleep(0.02)
                    continue
                if answer.status_code in (200, 201):
                    self.acknowledged[skill.ref] = skill.digest
                    break
                self.faults.append(f"{skill.ref}: {answer.status_code} {answer.text}")
                break
            i += 1

    def _in_one_piece(self, http, skill):
        return http.post("/v1/skills", content=parcel(skill, self._publisher), headers=TAR)

    def _blob_by_blob(self, http, skill):
        for name, entry in skill.manifest.files.items():
            begun = http.post("/v1/uploads", json={"sha256": entry.sha256, "size": entry.size})
            if begun.status_code == 201:
                data, url = skill.read(name), begun.headers["location"]
                half = len(data) // 2
                for start, part in ((0, data[:half]), (half, data[half:])):
                    http.patch(url, headers={"Upload-Offset": str(start)}, content=part)
                http.put(url)
        return http.post("/v1/skills", json=self._submission(skill))

    def _read(self):
        while not self._stop.is_set():
            try:
                with httpx.Client(base_url=self.url, timeout=10) as http:
                    for skill in http.get("/v1/skills").json()["skills"]:
                        answer = http.get(f"/v1/skills/{skill['name']}/{skill['version']}/archive")
                        if answer.status_code != 200 or whole(answer.content) != skill["digest"]:
                            self.faults.append(f"{skill}: {answer.status_code}")
                        self.pulled += 1
            except (httpx.HTTPError, httpx.InvalidURL):
                time.sleep(0.02)
            except AssertionError as error:
                self.faults.append(str(error))


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_faults_01_02_03_sigkill_at_random_instants(
    kills, start, tmp_path, make_skill, publisher, submission
):
    random.seed(kills)
    folder = tmp_path / "data"
    load = Load(make_skill, tmp_path, publisher, submission)
    try:
        for _ in range(kills):
            process, load.url = start(data=folder)
            time.sleep(random.uniform(0.0, 0.7))
            process.kill()
            process.communicate()
    finally:
        load.end()
    assert load.faults == []
    assert len(load.acknowledged) >= kills // 3
    assert load.pulled > 0
    settings = Settings.load(data=folder)
    found = run(settings, check)
    assert found.faults == ()
    _, url = start(data=folder)
    with httpx.Client(base_url=url, timeout=30) as http:
        for ref, digest in load.acknowledged.items():
            name, _, version = ref.partition("@")
            assert whole(http.get(f"/v1/skills/{name}/{version}/archive").content) == digest
        visible = [
            f"{name}@{v['version']}"
            for name in ("acme/parcels", "acme/pieces")
            for v in http.get(f"/v1/skills/{name}").json()["versions"]
        ]
        events = http.get("/v1/events?after=0&limit=1000").json()["events"]
    assert set(load.acknowledged) <= set(visible)
    assert sorted(f"{e['name']}@{e['version']}" for e in events) == sorted(visible)  # row and event together
    # What crashes left is garbage, and goes.
    long_ago = time.time() - 7200
    for path in (folder / "blobs").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    run(settings.model_copy(update={"grace_hours": 1e-9, "upload_hours": 1e-9}), collect)
    assert run(settings, check).faults == ()
    stored = {p.name.partition(".")[0] for p in (folder / "blobs").rglob("*") if p.is_file()}
    assert len(stored) == found.blobs
