"""Pulls that are killed, that race, on disks that fail: what is visible is whole, the next one goes on."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from neuraverse.client import pulling
from neuraverse.client.cache import Cache
from neuraverse.client.keeping import DAY_S, kept, prune
from neuraverse.errors import StorageError
from neuraverse.skill import FILES, Skill
from neuraverse.trust import sign, verify_skill
from tests.client.test_pull import NAME

LARGE = 3_000_000

# Imports once, then forks for each pull, so that a kill hits the pull and no import.
PROGRAM = """
import json, os, signal, sys, time
import cryptography.hazmat.primitives.asymmetric.ec, numpy, httpx
from neuraverse import archive, policy, skill, trust, versions
from neuraverse.client import Client, pulling


def start(task):
    child = os.fork()
    if child:
        return child
    try:
        pulling.ARCHIVE_BYTES = task["archive_bytes"]
        with Client(task["url"], home=task["home"]) as client:
            assert client.pull(task["ref"]).digest == task["digest"]
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(1)


for line in sys.stdin:
    task = json.loads(line)
    children, begun = [start(task) for _ in range(task["pulls"])], time.monotonic()
    if task["kill_s"] is not None:
        time.sleep(task["kill_s"])
        os.kill(children[0], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps([codes, time.monotonic() - begun]), flush=True)
"""


class Pullers:
    """Processes that pull one skill into one home."""

    def __init__(self, url, home, digest):
        self._task = {"url": url, "home": str(home), "ref": NAME, "digest": digest}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, archive_bytes, pulls=1, kill_s=None):
        """Exit codes of so many pulls at once, the first of which may be killed; and how long it took."""
        task = self._task | {"archive_bytes": archive_bytes, "pulls": pulls, "kill_s": kill_s}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture
def published(author, tiny, tmp_path, publisher):
    """A skill of some megabytes, so that there are instants in the midst of it."""
    weights = tiny.weights(0)
    files = tiny.files(weights)
    files["README.md"] = random.Random(0).randbytes(LARGE // 2).hex().encode()
    key = publisher.private_key_path("default")
    skill = Skill.write(
        tmp_path / "large", tiny.manifest(weights), files, sign=functools.partial(sign, private_key_path=key)
    )
    author.publish(skill.path)
    return skill


@pytest.fixture
def pullers(url, key_store, published):
    made = Pullers(url, key_store.home, published.digest)
    yield made
    made.close()


def assert_whole(home, keys):
    """Every skill and blob that a pull would find is whole, and so is what it knows of them."""
    cache = home / "cache"
    for path in cache.glob("skills/[!.]*"):
        assert Skill.open(path, admit=lambda skill: verify_skill(skill, keys)).digest == f"sha256:{path.name}"
    for path in cache.glob("blobs/sha256/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for path in cache.glob("refs/[!.]*"):
        json.loads(path.read_bytes())


def assert_same(skill, published):
    assert skill.digest == published.digest
    for name in FILES:
        assert skill.read(name) == published.read(name)


def empty(home):
    """As before the first pull."""
    cache = home / "cache"
    for path in sorted(cache.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def nothing_is_left_over(home):
    """Whatever kills left behind goes when it is a day old; skills and their blobs stay."""
    cache = home / "cache"
    prune(Cache(home), [], now=time.time() + 2 * DAY_S)
    assert list(cache.glob("partial/*")) == []
    assert list(cache.glob("*/.*")) == []


@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_sigkill_at_random_instants(pullers, robot, published, key_store, kills):
    """Archive and file by file in turn, in one home: each pull finds what the killed one before it left."""
    lasts = {}
    for archive_bytes in (0, pulling.ARCHIVE_BYTES):
        codes, lasts[archive_bytes] = pullers.run(archive_bytes)
        assert codes == [0]
        empty(key_store.home)
    rng, killed = random.Random(kills), 0
    for trial in range(kills):
        archive_bytes = (0, pulling.ARCHIVE_BYTES)[trial % 2]
        ((code,), _) = pullers.run(archive_bytes, kill_s=rng.uniform(0.0, lasts[archive_bytes]))
        assert code in (0, -9)
        killed += code == -9
        assert_whole(key_store.home, key_store)
        if code == 0:
            assert_same(robot.pull(NAME, offline=True), published)
            empty(key_store.home)
    assert killed > 0
    assert_same(robot.pull(NAME), published)
    nothing_is_left_over(key_store.home)
    assert_same(robot.pull(NAME, offline=True), published)


@pytest.mark.parametrize("archive_bytes", [0, 8 << 20])
def test_four_pulls_at_once(pullers, robot, published, key_store, archive_bytes):
    codes, lasted = pullers.run(archive_bytes, pulls=4)
    assert codes == [0] * 4
    assert_whole(key_store.home, key_store)
    assert len(list((key_store.home / "cache").glob("skills/*"))) == 1
    assert list((key_store.home / "cache").glob("partial/*")) == []
    for part in (0.2, 0.5, 0.8):  # of whom one is killed
        empty(key_store.home)
        codes, _ = pullers.run(archive_bytes, pulls=4, kill_s=part * lasted)
        assert codes[0] in (0, -9)
        assert codes[1:] == [0] * 3
        assert_whole(key_store.home, key_store)
    assert_same(robot.pull(NAME, offline=True), published)
    nothing_is_left_over(key_store.home)


class FailingDisk:
    """Lets so many operations pass that need space or write, and then refuses."""

    WRITING = ("mkdir", "rename", "replace", "link", "write", "fsync", "utime")

    def __init__(self, patch, root, passes, code=errno.ENOSPC):
        self.left, self.refused = passes, []
        self._root, self._code = str(root), code
        for name in self.WRITING:
            patch.setattr(os, name, functools.partial(self._call, name, getattr(os, name)))
        patch.setattr(os, "open", functools.partial(self._open, os.open))
        patch.setattr(Path, "write_bytes", lambda path, data: self._write_bytes(path, data))

    def _pass(self, name):
        self.left -= 1
        if self.left < 0:
            self.refused.append(name)
            raise OSError(self._code, os.strerror(self._code))

    def _call(self, name, real, first, *args, **kwargs):
        inside = (
            str(first).startswith(self._root)
            if not isinstance(first, int)
            else os.readlink(f"/proc/self/fd/{first}").startswith(self._root)
        )
        if inside:
            self._pass(name)
        return real(first, *args, **kwargs)

    def _open(self, real, path, flags, *args, **kwargs):
        if flags & os.O_CREAT and str(path).startswith(self._root):
            self._pass("open")
        return real(path, flags, *args, **kwargs)

    def _write_bytes(self, path, data):
        with path.open("wb") as file:
            if str(path).startswith(self._root):
                file.write(data[: len(data) // 2])
                file.flush()
                self._pass("write_bytes")
                file.seek(0)
            return file.write(data)


def pulled_or_refused(robot):
    try:
        return robot.pull(NAME), None
    except StorageError as error:
        return None, error


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux's /proc which file it is")
@pytest.mark.parametrize(
    "code", [errno.ENOSPC, *(pytest.param(each, marks=pytest.mark.slow) for each in (errno.EIO, errno.EROFS))]
)
@pytest.mark.parametrize("archive_bytes", [0, 8 << 20])
def test_a_disk_that_fails_at_any_instant(
    author, robot, tiny_skill, key_store, monkeypatch, archive_bytes, code
):
    """Each operation that writes is refused once: an error that says so, and nothing half-written."""
    author.publish(tiny_skill.path)
    monkeypatch.setattr(pulling, "ARCHIVE_BYTES", archive_bytes)
    root = key_store.home / "cache"
    refused = []
    for passes in range(200):
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, root, passes, code)
            skill, error = pulled_or_refused(robot)
        if error is not None:
            assert disk.refused
            assert str(root) in error.message
            assert error.remedy
        refused += disk.refused
        assert_whole(key_store.home, key_store)
        assert list(root.glob("skills/.*")) == []
        if skill is not None:
            assert_same(skill, tiny_skill)
        if not disk.refused:
            break
        del skill
        if passes % 3 == 0:  # else the next try goes on with what this one left
            empty(key_store.home)
        else:
            assert_same(robot.pull(NAME), tiny_skill)
            empty(key_store.home)
    assert {"open", "mkdir", "rename", "write_bytes"} <= set(refused)
    assert not disk.refused
    assert_same(robot.pull(NAME), tiny_skill)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux's /proc which file it is")
def test_what_is_flushed_survives_a_power_cut(author, robot, tiny_skill, key_store, monkeypatch):
    """Every file of the skill, what the references mean, and the folders that name them."""
    author.publish(tiny_skill.path)
    skill = robot.pull(NAME)
    flushed, fsync = set(), os.fsync

    def spy(descriptor):
        flushed.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    robot.flush(skill, NAME)
    cache = key_store.home / "cache"
    folders = {skill.path, skill.path.parent, cache / "refs"}
    assert flushed == {*skill.path.iterdir(), *(cache / "refs").iterdir(), *folders}
    assert len(list((cache / "refs").iterdir())) == 2


@pytest.mark.parametrize("archive_bytes", [0, 8 << 20])
def test_threads_that_pull_while_two_prune(
    author, robot, published, key_store, make_skill, tmp_path, monkeypatch, archive_bytes
):
    """Neither disturbs the other: what a pull gives is whole for as long as it is held."""
    monkeypatch.setattr(pulling, "ARCHIVE_BYTES", archive_bytes)
    other = make_skill(tmp_path / "other", version="0.9.0", seed=1)
    author.publish(other.path)
    over, faults = threading.Event(), []

    def pull(ref, wanted):
        try:
            while not over.is_set():
                assert_same(robot.pull(ref), wanted)
        except BaseException as error:
            faults.append(error)
            raise

    def clear():
        try:
            cache = Cache(key_store.home)
            for _ in range(50):
                prune(cache, kept(cache))
        except BaseException as error:
            faults.append(error)
            raise
        finally:
            over.set()

    threads = [
        threading.Thread(target=pull, args=(NAME, published)),
        threading.Thread(target=pull, args=(f"{NAME}@0.9.0", other)),
        threading.Thread(target=clear),
        threading.Thread(target=clear),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert_whole(key_store.home, key_store)
