"""The cache is listed, checked and thinned out; what somebody uses stays."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time

import pytest

from neuraverse.client import pulling
from neuraverse.client.cache import Cache
from neuraverse.client.keeping import DAY_S, Kept, chosen, kept, prune, verify
from neuraverse.errors import IntegrityError, NetworkError, SignatureError
from neuraverse.trust import KeyStore

NAME = "acme/weld-seam"


@pytest.fixture(scope="module")
def made(make_skill, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    numbers = enumerate(("1.0.0", "1.1.0", "2.0.0"))
    return [make_skill(folder / version, version=version, seed=seed) for seed, version in numbers]


@pytest.fixture
def cache(key_store):
    return Cache(key_store.home)


@pytest.fixture
def versions(cache, made):
    """1.0.0, 1.1.0 and 2.0.0 in the cache, last used in this order, days apart; nobody uses them now."""
    for index, skill in enumerate(made):
        path = shutil.copytree(skill.path, cache.skill(skill.digest))
        at = time.time() - (30 - 10 * index) * DAY_S
        os.utime(path, (at, at))
    return made


@pytest.fixture
def published(author, versions):
    for skill in versions:
        author.publish(skill.path)


def refs(found):
    return [each.ref for each in found]


def test_the_last_used_comes_first(robot, cache, versions, published):
    found = kept(cache)
    assert refs(found) == [f"{NAME}@{v}" for v in ("2.0.0", "1.1.0", "1.0.0")]
    assert [each.digest for each in found] == [skill.digest for skill in reversed(versions)]
    assert found[0].size == sum(file.stat().st_size for file in versions[2].path.iterdir())
    robot.pull(f"{NAME}@1.0.0")
    assert refs(kept(cache))[0] == f"{NAME}@1.0.0"
    assert refs(robot.cached(NAME))[0] == f"{NAME}@1.0.0"
    assert robot.cached("acme/other") == []


def test_an_empty_cache(tmp_path):
    cache = Cache(tmp_path / "nowhere")
    assert kept(cache) == []
    assert prune(cache, []).size == 0
    assert not (tmp_path / "nowhere").exists()


def test_every_byte_and_the_signature_are_checked(cache, versions, key_store, tmp_path):
    assert [error for _, error in verify(cache, key_store)] == [None, None, None]
    path = cache.skill(versions[1].digest) / "README.md"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"seam", b"beam"))
    found = {each.version: error for each, error in verify(cache, key_store)}
    assert found["1.0.0"] is found["2.0.0"] is None
    assert isinstance(found["1.1.0"], IntegrityError)
    assert "README.md" in str(found["1.1.0"])
    strangers = [error for _, error in verify(cache, KeyStore(tmp_path / "naive"))]
    assert [type(error) for error in strangers] == [SignatureError] * 3


def test_a_folder_under_a_wrong_name(cache, versions, key_store):
    one, two = (cache.skill(skill.digest) for skill in versions[:2])
    two.rename(two.with_name("aside"))
    one.rename(two)
    found = {each.digest: error for each, error in verify(cache, key_store)}
    assert "holds" in str(found[versions[1].digest])


def test_what_cannot_be_read_is_listed_by_its_digest(cache, versions):
    (cache.skill(versions[0].digest) / "manifest.json").unlink()
    assert versions[0].digest in refs(kept(cache))
    assert refs(prune(cache, chosen(kept(cache), last=2)).skills) == [versions[0].digest]


def some(name, version, used):
    return Kept(
        name=name, version=version, digest=f"sha256:{name}{version}", path=None, size=0, used=1000.0 * used
    )


SOME = [some("a/a", "3.0.0", 9), some("b/b", "1.0.0", 8), some("a/a", "2.0.0", 7), some("a/a", "1.0.0", 1)]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, ["a/a@3.0.0", "b/b@1.0.0", "a/a@2.0.0", "a/a@1.0.0"]),
        ({"last": 1}, ["a/a@2.0.0", "a/a@1.0.0"]),
        ({"last": 0}, ["a/a@3.0.0", "b/b@1.0.0", "a/a@2.0.0", "a/a@1.0.0"]),
        ({"unused_s": 2500.0}, ["a/a@2.0.0", "a/a@1.0.0"]),
        ({"unused_s": 2500.0, "last": 2}, ["a/a@1.0.0"]),
        ({"spared": ["a/a"]}, ["b/b@1.0.0"]),
        ({"spared": ["a/a@1.0.0", "sha256:b/b1.0.0"]}, ["a/a@3.0.0", "a/a@2.0.0"]),
        ({"unused_s": 0.0, "now": 0.0}, []),  # the clock was set back
    ],
)
def test_conditions_spare(conditions, expected):
    assert refs(chosen(SOME, **{"now": 10_000.0} | conditions)) == expected


def test_what_is_pruned_is_gone_and_the_rest_is_whole(robot, cache, versions, published, key_store):
    done = prune(cache, chosen(kept(cache), last=1))
    assert refs(done.skills) == [f"{NAME}@1.1.0", f"{NAME}@1.0.0"]
    assert done.size > 0
    assert done.in_use == ()
    assert [(each.version, error) for each, error in verify(cache, key_store)] == [("2.0.0", None)]
    assert robot.pull(f"{NAME}@1.0.0").digest == versions[0].digest


def test_large_skills_leave_no_blobs_behind(robot, cache, author, tiny_skill, monkeypatch):
    monkeypatch.setattr(pulling, "ARCHIVE_BYTES", 0)
    author.publish(tiny_skill.path)
    robot.pull(NAME)
    gc.collect()
    blobs = cache.root / "blobs" / "sha256"
    assert len(list(blobs.iterdir())) == 5
    total = sum(path.stat().st_size for path in cache.skill(tiny_skill.digest).iterdir())
    with cache.pulling():  # somebody may be about to use one of them
        assert prune(cache, kept(cache)).files == 0
    assert len(list(blobs.iterdir())) == 5
    robot.pull(NAME)
    gc.collect()
    done = prune(cache, kept(cache))
    assert (done.files, done.size) == (5, total)
    assert not list(blobs.iterdir())


def test_a_skill_that_lives_in_this_process_stays(robot, cache, versions, published):
    skill = robot.pull(f"{NAME}@1.0.0")
    done = prune(cache, kept(cache))
    assert refs(done.in_use) == [f"{NAME}@1.0.0"]
    assert skill.policy() is not None
    del skill
    gc.collect()
    assert refs(prune(cache, kept(cache)).skills) == [f"{NAME}@1.0.0"]


USE = """
import sys
from neuraverse.client import Client
skill = Client(sys.argv[1]).pull(sys.argv[2])
print("there", flush=True)
sys.stdin.read()
skill.policy()
print("used", flush=True)
"""


def test_a_skill_that_another_process_uses_stays(url, robot, cache, versions, published):
    process = subprocess.Popen(
        [sys.executable, "-c", USE, url, f"{NAME}@1.0.0"],
        env=os.environ | {"NEURAVERSE_HOME": str(robot.home), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "there\n"
        done = prune(cache, kept(cache))
        assert refs(done.in_use) == [f"{NAME}@1.0.0"]
        assert len(done.skills) == 2
        assert process.communicate()[0] == "used\n"
    assert refs(prune(cache, kept(cache)).skills) == [f"{NAME}@1.0.0"]


def test_a_skill_that_is_being_pulled_stays(cache, versions):
    with cache.alone_with(versions[0].digest):
        assert refs(prune(cache, kept(cache)).in_use) == [f"{NAME}@1.0.0"]


def test_cut_downloads_stay_for_a_day_and_as_long_as_somebody_goes_on(cache):
    with cache.working_on("young") as file:
        file.write(b"x")
    with cache.working_on("old") as file:
        file.write(b"x" * 10)
    folder = cache.root / "skills" / ".half.tmp"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    refs_folder = cache.root / "refs"
    refs_folder.mkdir()
    (refs_folder / ".x.json.tmp").write_bytes(b"x")
    day_ago = time.time() - DAY_S - 10
    for path in (cache.root / "partial" / "old", folder, refs_folder / ".x.json.tmp"):
        os.utime(path, (day_ago, day_ago))
    with cache.working_on("old"):
        assert prune(cache, []).files == 2
        assert (cache.root / "partial" / "old").exists()
    assert not folder.exists()
    assert not list(refs_folder.iterdir())
    assert prune(cache, []).size == 10
    assert [path.name for path in (cache.root / "partial").iterdir()] == ["young"]
    assert prune(cache, [], now=time.time() - 1e9).files == 0  # the clock was set back


def test_pruning_beside_pulling(robot, cache, versions, published):
    """Whoever pulls gets a whole skill, however often others remove it."""
    import threading

    stop = threading.Event()

    def remove():
        while not stop.is_set():
            prune(cache, kept(cache))

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for number in range(12):
            version = ("1.0.0", "1.1.0", "2.0.0")[number % 3]
            skill = robot.pull(f"{NAME}@{version}")
            assert skill.version == version
            assert len(list(skill.path.iterdir())) == 7
            del skill
    finally:
        stop.set()
        remover.join()


def test_what_was_pruned_is_not_there_without_a_network(robot, cache, versions):
    prune(cache, kept(cache))
    with pytest.raises(NetworkError, match="not in the cache"):
        robot.pull(NAME, offline=True)
