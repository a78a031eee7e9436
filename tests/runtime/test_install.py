"""Installed skills against a live registry: links that follow, go back, and are whole at every instant."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import httpx
import pytest

from neuraverse.client import Client, keeping, watching
from neuraverse.client.cache import Cache
from neuraverse.errors import NetworkError, NotFoundError, UsageError
from neuraverse.runtime import Change, Installer, Reporter
from neuraverse.runtime import agent as agents
from neuraverse.runtime import install as installs
from neuraverse.skill import Skill
from tests.servers import until

NAME = "acme/weld-seam"
FOLLOWS = f"{NAME}@stable"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(agents, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def release(author, make_skill, tmp_path):
    """Publish a version and let ``stable`` mean it: ``release("1.0.0")``."""

    def publish(version, stable=True):
        skill = make_skill(tmp_path / f"made-{version}", version=version, seed=int(version[0]))
        author.publish(skill.path)
        if stable:
            author.set_alias(NAME, "stable", version)
        return skill

    return publish


@pytest.fixture
def script(tmp_path):
    """Write a command: ``script('exit 3')``; each run adds the skill that it was given to a file."""

    def write(text):
        path = tmp_path / f"script-{len(list(tmp_path.glob('script-*')))}"
        path.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/ran\n{text}\n')
        path.chmod(0o755)
        return [str(path)]

    return write


@pytest.fixture
def ran(tmp_path):
    """The digests of the skills that commands were given, in order."""

    def read():
        path = tmp_path / "ran"
        lines = path.read_text().split() if path.exists() else []
        return ["sha256:" + os.path.basename(line) for line in lines]

    return read


@pytest.fixture
def install(robot, tmp_path):
    """Start an installer: ``install(health=…)``; ended with the test. It has a list of its ``changes``."""
    started = []

    def start(client=robot, follow=FOLLOWS, **options):
        changes = []
        installer = Installer(client, follow, tmp_path / "skills", tell=changes.append, **options)
        installer.changes = changes
        installer.start()
        started.append(installer)
        return installer

    yield start
    for installer in started:
        installer.stop()


@pytest.fixture
def offline(robot):
    """The robot's client while the registry is down."""
    down = httpx.MockTransport(lambda request: httpx.Response(503))
    with httpx.Client(transport=down) as http, Client(robot.url, home=robot.home, http=http) as client:
        yield client


def linked(installer):
    """Digest of the skill that is linked, which is whole; empty if there is none."""
    try:
        return Skill.open(os.readlink(installer.link)).digest
    except FileNotFoundError:
        return ""


def said(installer):
    return [(change.state, change.version) for change in installer.changes]


def only_not(version):
    """A command that approves of all but one version."""
    manifest = '"$NEURAVERSE_SKILL/manifest.json"'
    return f"""grep -q '"version": *"{version}"' {manifest} || exit 0; echo bad; echo; exit 3"""


def test_a_link_follows_an_alias(install, release, author, tmp_path):
    first = release("1.0.0")
    installer = install()
    assert installer.link == tmp_path / "skills" / "acme" / "weld-seam"
    until(lambda: linked(installer) == first.digest)
    second = release("2.0.0")
    until(lambda: linked(installer) == second.digest)
    author.set_alias(NAME, "stable", "1.0.0")
    until(lambda: linked(installer) == first.digest)
    installer.stop()
    assert said(installer) == [
        ("running", "1.0.0"),
        ("running", "2.0.0"),
        ("running", "1.0.0"),
        ("stopped", "1.0.0"),
    ]
    assert installer.changes[0].digest == first.digest
    assert installer.changes[0].follows == FOLLOWS
    assert installer.changes[0].path == os.readlink(installer.link)
    assert linked(installer) == first.digest


def test_a_restart_goes_on_with_what_is_linked(install, release, offline, robot, script, ran):
    """Without a network, without a probe or health check, whatever else is in the cache."""
    first = release("1.0.0")
    installer = install(health=script("exit 0"))
    until(lambda: installer.changes)
    installer.stop()
    release("2.0.0", stable=False)
    robot.pull(f"{NAME}@2.0.0")  # used last
    again = install(offline, health=script("exit 1"))
    assert said(again) == [("running", "1.0.0")]
    time.sleep(0.2)
    assert linked(again) == first.digest
    assert ran() == [first.digest]


@pytest.mark.parametrize("when", ["probe", "health"])
def test_what_a_command_does_not_approve_of_is_not_run(install, release, author, script, ran, when):
    first = release("1.0.0")
    installer = install(**{when: script(only_not("2.0.0"))})
    until(lambda: said(installer) == [("running", "1.0.0")])
    second = release("2.0.0")
    until(lambda: len(installer.changes) == 2)
    assert linked(installer) == first.digest
    change = installer.changes[1]
    assert change.state == {"probe": "refused", "health": "rolled-back"}[when]
    assert (change.version, change.digest) == ("2.0.0", second.digest)
    name = {"probe": "the probe", "health": "the health check"}[when]
    assert change.reason == f"{name} failed (exit code 3): bad"
    author.set_alias(NAME, "other", "1.0.0")  # an event that changes nothing
    time.sleep(0.3)
    assert ran() == [first.digest, second.digest]
    author.set_alias(NAME, "stable", "1.0.0")
    until(lambda: said(installer)[2:] == [("running", "1.0.0")])
    author.set_alias(NAME, "stable", "2.0.0")  # something else was meant in between: one more try
    until(lambda: len(installer.changes) == 4)
    assert ran() == [first.digest, second.digest, second.digest]
    assert linked(installer) == first.digest
    assert not os.path.lexists(installer.link.with_name(".weld-seam.before"))


def test_a_first_skill_that_is_not_well_leaves_no_link(install, release, script):
    release("1.0.0")
    installer = install(health=script("exit 1"))
    until(lambda: said(installer) == [("rolled-back", "1.0.0")])
    assert not os.path.lexists(installer.link)
    assert sorted(path.name for path in installer.link.parent.iterdir()) == [".weld-seam.lock"]


def test_a_command_that_cannot_be_started(install, release, tmp_path):
    release("1.0.0")
    installer = install(probe=[str(tmp_path / "nowhere")])
    until(lambda: said(installer) == [("refused", "1.0.0")])
    assert "cannot be started" in installer.changes[0].reason


def test_a_revoked_skill_is_left(install, release, author):
    release("1.0.0")
    installer = install()
    until(lambda: said(installer) == [("running", "1.0.0")])
    author.state(NAME, "revoke", version="1.0.0", reason="burns through thin sheet")
    until(lambda: ("left", "1.0.0") in said(installer))
    assert not os.path.lexists(installer.link)
    assert "burns through thin sheet" in installer.changes[-1].reason
    second = release("2.0.0")
    until(lambda: linked(installer) == second.digest)
    installer.stop()
    assert said(installer)[-2:] == [("running", "2.0.0"), ("stopped", "2.0.0")]


def test_a_revoked_skill_gives_way_to_the_last_good_one(install, release, author):
    first = release("1.0.0")
    installer = install()
    until(lambda: said(installer) == [("running", "1.0.0")])
    release("2.0.0")
    until(lambda: ("running", "2.0.0") in said(installer))
    author.state(NAME, "revoke", version="2.0.0")
    until(lambda: said(installer)[-1] == ("running", "1.0.0"))
    assert said(installer)[-3:-1] == [("left", "2.0.0"), ("refused", "")]  # what stable means
    assert linked(installer) == first.digest
    before = len(installer.changes)
    author.set_alias(NAME, "other", "1.0.0")
    time.sleep(0.3)
    assert len(installer.changes) == before  # stable still means what was revoked: that was said


def test_what_was_revoked_is_left_when_it_is_started_anew(install, release, author, robot, offline):
    release("1.0.0")
    installer = install()
    until(lambda: installer.changes)
    installer.stop()
    author.state(NAME, "revoke", version="1.0.0")
    with pytest.raises(Exception, match="revoked"):
        robot.pull(f"{NAME}@1.0.0")
    again = install(offline)
    assert [change.state for change in again.changes] == ["left"]
    assert not os.path.lexists(again.link)


INSTALL = """
import sys, time
from pathlib import Path
from neuraverse.client import Client
from neuraverse.runtime import Installer
url, into, *health = sys.argv[1:]
with Client(url) as client, Installer(client, "acme/weld-seam@stable", Path(into), health=health, tell=print):
    time.sleep(60)
"""


def test_killed_while_the_health_is_checked(install, release, robot, script, ran, tmp_path):
    """Nobody knows whether the new skill is well: the next one to start goes back, and tries again."""
    first = release("1.0.0")
    installer = install()
    until(lambda: installer.changes)
    installer.stop()
    second = release("2.0.0")
    environment = os.environ | {"NEURAVERSE_HOME": str(robot.home), "OMP_NUM_THREADS": "1"}
    hang = script("exec sleep 5")
    words = [sys.executable, "-c", INSTALL, robot.url, str(tmp_path / "skills"), *hang]
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
        until(lambda: ran() == [second.digest])
        assert linked(installer) == second.digest
        with pytest.raises(UsageError, match="another process keeps"):
            install()
        process.send_signal(signal.SIGKILL)
    cache = Cache(robot.home)
    assert keeping.prune(cache, keeping.kept(cache)).skills == ()  # neither of them
    again = install(health=script(only_not("2.0.0")))
    assert said(again)[0] == ("running", "1.0.0")
    until(lambda: said(again)[1:] == [("rolled-back", "2.0.0")])
    assert linked(again) == first.digest


SWAP = """
import itertools, sys
from pathlib import Path
from neuraverse.client import Client
from neuraverse.runtime import Installer
url, into, *versions = sys.argv[1:]
with Client(url) as client:
    installer = Installer(client, "acme/weld-seam@stable", Path(into), health=["true"])
    installer._claim()
    for skill in itertools.cycle([client.pull(f"acme/weld-seam@{version}") for version in versions]):
        installer._install(skill)
        print(skill.version, flush=True)
"""


def test_killed_in_the_middle_of_swaps(install, release, robot, tmp_path):
    """At whatever instant: the link is the old one or the new one, and whole."""
    digests = {release(version).digest for version in ("1.0.0", "2.0.0")}
    installer = install()
    until(lambda: installer.changes)
    installer.stop()
    environment = os.environ | {"NEURAVERSE_HOME": str(robot.home), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SWAP, robot.url, str(tmp_path / "skills"), "1.0.0", "2.0.0"]
    rng = random.Random(0)
    for _ in range(4):
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert [process.stdout.readline() for _ in range(3)] == ["1.0.0\n", "2.0.0\n", "1.0.0\n"]
            time.sleep(rng.uniform(0.0, 0.03))
            process.kill()
        assert linked(installer) in digests
    again = install()
    until(lambda: ("running", "2.0.0") in said(again))
    left = {path.name for path in again.link.parent.iterdir()}
    assert left == {"weld-seam", ".weld-seam.lock"}


def test_what_is_linked_is_not_pruned(install, release, robot):
    first, cache = release("1.0.0"), Cache(robot.home)
    installer = install()
    until(lambda: installer.changes)
    second = release("2.0.0")
    until(lambda: len(installer.changes) == 2)
    installer.stop()
    installer.agent._running = None  # nobody holds it any more
    done = keeping.prune(cache, keeping.kept(cache))
    assert [each.digest for each in done.skills] == [first.digest]
    assert [each.digest for each in done.in_use] == [second.digest]
    installer.link.unlink()
    assert [each.digest for each in keeping.prune(cache, keeping.kept(cache)).skills] == [second.digest]


def test_stopping_takes_back_what_was_not_confirmed(install, release, script, ran):
    first = release("1.0.0")
    installer = install(health=script(only_not("2.0.0").replace("exit 3", "sleep 60")))
    until(lambda: said(installer) == [("running", "1.0.0")])
    second = release("2.0.0")
    until(lambda: ran()[1:] == [second.digest])
    begun = time.monotonic()
    installer.stop()
    assert time.monotonic() - begun < 5.0
    assert linked(installer) == first.digest
    assert said(installer) == [("running", "1.0.0"), ("stopped", "1.0.0")]  # it is nobody's fault


def test_places_that_cannot_be_linked(install, robot, release, tmp_path):
    release("1.0.0")
    link = tmp_path / "skills" / "acme" / "weld-seam"
    link.mkdir(parents=True)
    with pytest.raises(UsageError, match="is no link - move it away"):
        install()
    link.rmdir()
    link.symlink_to(tmp_path / "another" / ("0" * 64))
    with pytest.raises(UsageError, match="points into another cache"):
        install()
    link.unlink()
    with pytest.raises(UsageError, match="never changes"):
        install(follow="sha256:" + "0" * 64)
    installer = install()
    with pytest.raises(UsageError, match="another process keeps"):
        install()
    until(lambda: installer.changes)


# --- what the registry is told


def change(number):
    return Change(
        at="", follows=FOLLOWS, state="running", version=f"{number}.0.0", digest="", path="", reason=""
    )


class Told:
    """A client that notes what it is told, after so many failures."""

    def __init__(self, *failures, robot=True):
        self.versions, self._failures, self._robot = [], list(failures), robot

    def is_robot(self):
        return self._robot

    def installed(self, follows, state, *, version, digest, reason):
        if self._failures:
            raise self._failures.pop(0)
        self.versions.append(version)


def test_changes_are_told_in_order_when_the_registry_can_be_reached(monkeypatch):
    monkeypatch.setattr(installs, "_MAX_PAUSE_S", 0.01)
    client = Told(NetworkError("down"), NetworkError("down"))
    reporter = Reporter(client)
    for number in range(3):
        reporter.tell(change(number))
    until(lambda: client.versions == ["0.0.0", "1.0.0", "2.0.0"])
    reporter.tell(change(3))
    reporter.stop(5.0)
    assert client.versions[3:] == ["3.0.0"]


def test_an_older_registry_costs_one_warning(caplog):
    missing = NotFoundError("Not Found", remedy="")
    client = Told(missing, missing, missing)
    reporter = Reporter(client)
    for number in range(4):
        reporter.tell(change(number))
    reporter.stop(5.0)
    assert client.versions == ["3.0.0"]
    assert [record.message for record in caplog.records] == [
        "the registry was not told what runs here: Not Found"
    ]


@pytest.mark.parametrize("wanted", [False, True])
def test_whoever_is_no_robot_tells_nothing(caplog, wanted):
    client = Told(robot=False)
    reporter = Reporter(client, wanted=wanted)
    reporter.tell(change(1))
    reporter.stop(5.0)
    assert client.versions == []
    assert len(caplog.records) == wanted


def test_a_registry_that_stays_down_delays_no_end():
    client = Told(*[NetworkError("down")] * 10_000)
    reporter = Reporter(client)
    for number in range(2000):
        reporter.tell(change(number))
    assert len(reporter._waiting) <= 1000
    begun = time.monotonic()
    reporter.stop(5.0)
    assert time.monotonic() - begun < 4.0
