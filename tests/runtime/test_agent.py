"""The agent against a live registry: it takes what is good, refuses the rest, and keeps what it has."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time

import httpx
import numpy as np
import pytest

from neuraverse.client import Client, pulling, watching
from neuraverse.errors import (
    IncompatibleError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    RevokedError,
    SignatureError,
    UsageError,
)
from neuraverse.registry import background
from neuraverse.runtime import RobotAgent, run
from neuraverse.runtime import agent as agents
from neuraverse.trust import KeyStore
from tests.servers import until

NAME = "acme/weld-seam"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(agents, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def release(author, make_skill, tmp_path):
    """Publish a version: ``release("1.0.0")``."""

    def publish(version, **fields):
        skill = make_skill(tmp_path / f"made-{version}", version=version, seed=int(version[0]), **fields)
        author.publish(skill.path)
        return skill

    return publish


def test_one_update(robot, release, offer, observation):
    seen = []
    agent = RobotAgent(robot, None, offer, follow=NAME, on_skill=seen.append)
    with pytest.raises(UsageError, match="no skill yet"):
        agent.step(observation)
    with pytest.raises(NotFoundError):
        agent.update()
    first = release("1.0.0")
    assert agent.update()
    assert not agent.update()
    assert [s.digest for s in seen] == [first.digest]
    expected = first.policy()(observation)["twist"]
    assert np.array_equal(agent.step(observation | {"wrench": np.zeros(6)})["twist"], expected)


def test_it_follows_by_itself(robot, release, offer, observation):
    with RobotAgent(robot, None, offer, follow=NAME) as agent:
        assert not agent.wait(0.3)
        release("1.0.0")
        assert agent.wait(20)
        second = release("2.0.0")
        until(lambda: agent.skill.digest == second.digest)
    assert np.array_equal(agent.step(observation)["twist"], second.policy()(observation)["twist"])


def test_it_follows_an_alias(robot, author, release, offer):
    first = release("1.0.0")
    author.set_alias(NAME, "stable", "1.0.0")
    with RobotAgent(robot, None, offer, follow=f"{NAME}@stable") as agent:
        assert agent.wait(20)
        second = release("2.0.0")
        time.sleep(0.3)
        assert agent.skill.digest == first.digest
        author.set_alias(NAME, "stable", "2.0.0")
        until(lambda: agent.skill.digest == second.digest)
        author.set_alias(NAME, "stable", "1.0.0")
        until(lambda: agent.skill.digest == first.digest)


@pytest.mark.parametrize("kind", ["untrusted", "unfit", "probe", "bug"])
def test_what_is_refused_changes_nothing(robot, release, offer, interface, kind, tmp_path):
    """The second version is refused for one of four reasons; the first goes on, and the third is taken."""
    first = release("1.0.0")
    refusals = []

    def probe(skill):
        if skill.version == "2.0.0" and kind == "probe":
            raise IncompatibleError("success is 0.31 here", remedy="fine-tune it")
        if skill.version == "2.0.0" and kind == "bug":
            raise ZeroDivisionError("in the probe")

    agent = RobotAgent(robot, None, offer, follow=NAME, on_skill=probe, on_refusal=refusals.append)
    agent.update()
    second = release(
        "2.0.0", **({"interface": dataclasses.replace(interface, rate_hz=99_9.0)} if kind == "unfit" else {})
    )
    if kind == "untrusted":
        agent._store = KeyStore(tmp_path / "empty")
    expected = {
        "untrusted": (SignatureError, "not trusted for acme"),
        "unfit": (IncompatibleError, "control rate"),
        "probe": (IncompatibleError, "success is 0.31 here - fine-tune it"),
        "bug": (ZeroDivisionError, "in the probe"),
    }[kind]
    with pytest.raises(expected[0]):
        agent.update()
    (refusal,) = refusals
    assert (refusal.ref, refusal.digest) == (f"{NAME}@2.0.0", second.digest)
    assert type(refusal.error) is expected[0]
    assert expected[1] in refusal.reason
    assert agent.skill.digest == first.digest
    agent._store = None
    third = release("3.0.0")
    assert agent.update()
    assert agent.skill.digest == third.digest


def test_a_registry_that_answers_with_something_else_is_told(robot, offer, monkeypatch):
    def lie(*_, **named):
        raise IntegrityError("the registry answered with another skill")

    refusals = []
    agent = RobotAgent(robot, None, offer, follow=NAME, on_refusal=refusals.append)
    with pytest.raises(NotFoundError):
        agent.update()
    assert refusals == []  # there is nothing yet, which is no refusal
    monkeypatch.setattr(robot, "pull_if", lie)
    with pytest.raises(IntegrityError):
        agent.update()
    assert [(r.ref, r.digest) for r in refusals] == [(f"{NAME}@latest", "")]


def test_what_is_not_in_the_range_that_it_follows_is_refused(through, net, release, offer):
    """Whether the registry lies or the robot is pinned there."""
    first, lies, refusals = release("1.0.0"), [], []
    release("2.0.0")

    def pinned(request, answer):
        if not lies or not request.url.path.endswith("/archive"):
            return answer
        lie = httpx.get(f"{client.url}/v1/skills/{NAME}/{lies[0]}/archive")
        said = {key: lie.headers[key] for key in ("neuraverse-version", "neuraverse-digest")}
        return net.replaced(answer, lie.content, 200, **said, **{"content-type": "application/x-tar"})

    client, _ = through(pinned)
    agent = RobotAgent(client, None, offer, follow=f"{NAME}@^1", on_refusal=refusals.append)
    agent.update()
    lies.append("2.0.0")
    with pytest.raises(IntegrityError, match="if this robot is pinned there, free it"):
        agent.update()
    assert agent.skill.digest == first.digest
    assert len(refusals) == 1


def test_what_was_refused_is_not_tried_again_before_something_else_was_meant(robot, author, release, offer):
    tried, kept, refusals = [], [], []

    def probe(skill):
        tried.append(skill.version)
        if skill.version == "2.0.0":
            raise IncompatibleError("success is 0.31 here")

    agent = RobotAgent(
        robot,
        None,
        offer,
        follow=f"{NAME}@live",
        on_skill=probe,
        on_refusal=refusals.append,
        on_kept=lambda skill: kept.append(skill.version),
    )
    release("1.0.0"), release("2.0.0")
    author.set_alias(NAME, "live", "1.0.0")
    assert agent.update()
    assert kept == []
    author.set_alias(NAME, "live", "2.0.0")
    for _ in range(3):
        with pytest.raises(IncompatibleError, match=r"0\.31"):
            agent.update()
    assert tried == ["1.0.0", "2.0.0"]
    assert [refusal.ref for refusal in refusals] == [f"{NAME}@2.0.0"]
    author.set_alias(NAME, "live", "1.0.0")
    assert not agent.update()
    assert kept == ["1.0.0"]
    author.set_alias(NAME, "live", "2.0.0")
    with pytest.raises(IncompatibleError):
        agent.update()
    assert tried == ["1.0.0", "2.0.0", "2.0.0"]
    assert len(refusals) == 2
    author.state(NAME, "revoke", version="1.0.0")  # and what failed is no way out
    with pytest.raises(IncompatibleError):
        agent.update()
    assert agent.skill is None
    assert tried == ["1.0.0", "2.0.0", "2.0.0"]


def test_it_resumes_what_it_had(robot, release, offer, observation):
    first = release("1.0.0")
    with pytest.raises(NetworkError, match="not in the cache"):
        RobotAgent(robot, None, offer, follow=NAME).resume(first.digest)
    robot.pull(NAME)
    agent = RobotAgent(robot, None, None, follow=NAME)
    assert agent.resume(first.digest).digest == first.digest
    agent.step(observation)
    weak = dataclasses.replace(offer, reach_m=0.1)
    with pytest.raises(IncompatibleError):
        RobotAgent(robot, None, weak, follow=NAME).resume(first.digest)


def test_no_fault_ends_the_following(robot, release, offer, monkeypatch):
    faults, cursor = [OverflowError("in a number that no registry sends")], robot.cursor

    def faulty():
        if faults:
            raise faults.pop()
        return cursor()

    monkeypatch.setattr(robot, "cursor", faulty)
    first = release("1.0.0")
    with RobotAgent(robot, None, offer, follow=NAME) as agent:
        assert agent.wait(20)
        assert agent.skill.digest == first.digest


def test_refusals_do_not_end_the_following(robot, release, offer, interface):
    refusals = []
    release("1.0.0", interface=dataclasses.replace(interface, rate_hz=999.0))
    with RobotAgent(robot, None, offer, follow=NAME, on_refusal=refusals.append) as agent:
        until(lambda: refusals)
        assert agent.skill is None
        second = release("2.0.0")
        assert agent.wait(20)
        assert agent.skill.digest == second.digest


def test_it_waits_for_a_registry_that_is_down(tmp_path, publisher, key_store, tiny_skill, offer):
    with background(tmp_path / "data") as url:
        port = int(url.rpartition(":")[2])
    with Client(url, home=key_store.home) as robot, RobotAgent(robot, None, offer, follow=NAME) as agent:
        assert not agent.wait(0.3)
        with background(tmp_path / "data", port=port):
            with Client(url, home=publisher.home) as author:
                author.publish(tiny_skill.path)
            assert agent.wait(20)
        time.sleep(0.1)  # and goes on when it is gone again
        assert agent.skill.digest == tiny_skill.digest


def test_swaps_between_ticks(robot, author, release, offer, observation):
    """While a loop runs, versions change under it; each action is wholly of one version."""
    made = {v: release(v) for v in ("1.0.0", "2.0.0")}
    author.set_alias(NAME, "live", "1.0.0")
    stop, actions = threading.Event(), []

    class Cell:
        def observe(self):
            return observation

        def apply(self, action):
            actions.append(action["twist"].tobytes())

    known = {s.policy()(observation)["twist"].tobytes(): v for v, s in made.items()}
    assert len(known) == 2
    with RobotAgent(robot, None, offer, follow=f"{NAME}@live") as agent:
        assert agent.wait(20)
        loop = threading.Thread(target=run, args=(agent, Cell(), 200.0), kwargs={"stop": stop})
        loop.start()
        for version in ("2.0.0", "1.0.0", "2.0.0"):
            author.set_alias(NAME, "live", version)
            until(lambda version=version: actions and known.get(actions[-1]) == version)
        stop.set()
        loop.join()
    assert set(actions) == set(known)


def test_what_cannot_be_followed(robot, offer):
    with pytest.raises(UsageError, match="never changes"):
        RobotAgent(robot, None, offer, follow="sha256:" + "0" * 64)
    with pytest.raises(UsageError, match="names no skill"):
        RobotAgent(robot, None, offer, follow="../x")
    agent = RobotAgent(robot, None, offer, follow=NAME)
    with pytest.raises(UsageError, match="no skill yet"):
        run(agent, None, 10.0)
    agent.start()
    with pytest.raises(UsageError, match="started before"):
        agent.start()
    agent.stop()


def test_a_registry_that_is_down_for_a_month(robot, offer, monkeypatch):
    """Pauses get longer, to an end, however many there were."""
    pauses = []
    agent = RobotAgent(robot, None, offer, follow=NAME)
    monkeypatch.setattr(agent._stop, "wait", pauses.append)
    for failures in (0, 1, 100, 100_000):
        agent._pause(failures)
    assert len(pauses) == 4
    assert max(pauses) <= 30.0


def test_stop_is_soon(robot, release, offer):
    release("1.0.0")
    agent = RobotAgent(robot, None, offer, follow=NAME)
    agent.start()
    assert agent.wait(20)
    time.sleep(0.3)
    begun = time.monotonic()
    agent.stop()
    assert time.monotonic() - begun < 3.0
    assert agent.skill is not None


# --- what was revoked, and beginning without a network


def test_a_revoked_skill_acts_no_more(robot, author, release, offer, observation):
    refusals = []
    first = release("1.0.0")
    agent = RobotAgent(robot, None, offer, follow=NAME, on_refusal=refusals.append)
    assert agent.update()
    author.state(NAME, "revoke", version="1.0.0", reason="burns through thin sheet")
    with pytest.raises(NotFoundError):
        agent.update()
    assert agent.skill is None
    assert not agent.wait(0)
    with pytest.raises(UsageError, match="burns through thin sheet"):
        agent.step(observation)
    assert [(r.ref, r.digest, type(r.error)) for r in refusals] == [(first.ref, first.digest, RevokedError)]
    second = release("2.0.0")
    assert agent.update()
    assert agent.skill.digest == second.digest
    assert agent.wait(0)
    agent.step(observation)


def test_a_revoked_skill_gives_way_to_the_one_before(robot, author, release, offer):
    """An alias still points to what was revoked; the robot falls back to what it has and is still good."""
    refusals = []
    versions = [release(v) for v in ("1.0.0", "2.0.0", "3.0.0")]
    agent = RobotAgent(robot, None, offer, follow=f"{NAME}@live", on_refusal=refusals.append)
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        author.set_alias(NAME, "live", version)
        assert agent.update()
    author.state(NAME, "yank", version="2.0.0")
    author.state(NAME, "revoke", version="3.0.0")
    assert agent.update()
    assert agent.skill.digest == versions[0].digest
    assert {(r.ref, type(r.error)) for r in refusals} == {
        (f"{NAME}@3.0.0", RevokedError),
        (f"{NAME}@live", RevokedError),
    }
    with pytest.raises(RevokedError):  # it keeps the one that it fell back to
        agent.update()
    assert agent.skill.digest == versions[0].digest


def test_it_leaves_a_revoked_skill_before_the_next_one_comes(robot, author, release, offer, monkeypatch):
    """A download may take long, and its end is not sure."""
    release("1.0.0")
    agent = RobotAgent(robot, None, offer, follow=NAME)
    agent.update()
    release("2.0.0")
    author.state(NAME, "revoke", version="1.0.0")
    seen = []

    chunks = robot._transport.chunks

    def cut(response):
        seen.append(agent.skill)
        raise NetworkError("cut")
        yield from chunks(response)

    monkeypatch.setattr(robot._transport, "chunks", cut)
    monkeypatch.setattr(pulling.Pull, "_download", lambda *_: next(cut(None)))
    with pytest.raises(NetworkError):
        agent.update()
    assert seen[0] is None
    assert agent.skill is None


def test_one_question_tells_of_the_new_and_of_the_old_and_brings_it(through, release, offer):
    client, meddler = through()
    agent = RobotAgent(client, None, offer, follow=NAME)
    for version in ("1.0.0", "2.0.0"):
        release(version)
        assert agent.update()
        assert not agent.update()
    archive = f"/v1/skills/{NAME}/latest/archive"
    assert [request.url.path for request in meddler.requests] == [archive] * 4
    held = [request.url.params.get("held") for request in meddler.requests]
    assert held == [None, "1.0.0", "1.0.0", "2.0.0"]


def test_a_fleet_that_goes_back_loads_nothing_again(through, author, release, offer):
    statuses = []
    client, _ = through(lambda _, answer: statuses.append(answer.status_code) or answer)
    agent = RobotAgent(client, None, offer, follow=f"{NAME}@live")
    for version in ("1.0.0", "2.0.0"):
        release(version)
        author.set_alias(NAME, "live", version)
        assert agent.update()
    author.set_alias(NAME, "live", "1.0.0")
    assert agent.update()
    assert agent.skill.version == "1.0.0"
    assert statuses == [200, 200, 304]


def test_a_registry_that_does_not_tell_of_the_old_is_asked(through, author, release, offer):
    def older(_, answer):
        answer.headers.pop("neuraverse-held", None)
        return answer

    refusals = []
    release("1.0.0")
    agent = RobotAgent(through(older)[0], None, offer, follow=NAME, on_refusal=refusals.append)
    agent.update()
    release("2.0.0")
    author.state(NAME, "revoke", version="1.0.0")
    assert agent.update()
    assert [(r.ref, type(r.error)) for r in refusals] == [(f"{NAME}@1.0.0", RevokedError)]


def test_agents_of_one_process_take_turns_and_a_slow_one_holds_nobody_up(robot, release, offer, monkeypatch):
    """Two at once; but a pull that hangs costs the others a short while, not their skill."""
    monkeypatch.setattr(agents, "_LONGEST_WAIT_S", 0.3)
    release("1.0.0")
    pull, go_on, inside = robot.pull_if, threading.Event(), []

    def slow(*given, **named):
        inside.append(1)
        go_on.wait(20)
        inside.pop()
        return pull(*given, **named)

    monkeypatch.setattr(robot, "pull_if", slow)
    team = [RobotAgent(robot, None, offer, follow=NAME) for _ in range(3)]
    threads = [threading.Thread(target=agent.update) for agent in team]
    for thread in threads:
        thread.start()
    until(lambda: len(inside) == 2)
    time.sleep(0.1)
    assert len(inside) == 2
    until(lambda: len(inside) == 3)  # its patience is over
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert all(agent.skill is not None for agent in team)
    assert agents._turns.acquire(blocking=False)
    assert agents._turns.acquire(blocking=False)
    assert not agents._turns.acquire(blocking=False)
    agents._turns.release()
    agents._turns.release()


def test_what_is_revoked_is_left_whoever_s_turn_it_is(robot, author, release, offer, monkeypatch):
    monkeypatch.setattr(agents, "_LONGEST_WAIT_S", 30.0)
    release("1.0.0")
    with RobotAgent(robot, None, offer, follow=NAME) as agent:
        assert agent.wait(20)
        with agents._turns, agents._turns:
            author.state(NAME, "revoke", version="1.0.0")
            until(lambda: agent.skill is None)


def test_a_file_that_rotted_is_a_refusal_of_what_is_new_and_no_matter_for_what_is_held(
    url, tmp_path, robot, release, offer
):
    refusals, kept = [], []
    first = release("1.0.0")
    agent = RobotAgent(
        robot, None, offer, follow=NAME, on_refusal=refusals.append, on_kept=lambda s: kept.append(s.version)
    )
    agent.update()
    with sqlite3.connect(tmp_path / "data" / "registry.db") as db:
        db.execute("UPDATE blobs SET lost = 1")
    assert not agent.update()
    assert kept == ["1.0.0"]
    with sqlite3.connect(tmp_path / "data" / "registry.db") as db:
        db.execute("UPDATE blobs SET lost = 0")
    second = release("2.0.0")
    with sqlite3.connect(tmp_path / "data" / "registry.db") as db:
        db.execute("UPDATE blobs SET lost = 1")
    for _ in range(2):
        with pytest.raises(NotFoundError, match="rotted"):
            agent.update()
    assert [(each.ref, each.digest) for each in refusals] == [(f"{NAME}@2.0.0", second.digest)]
    assert agent.skill.digest == first.digest
    assert agent.meant == second.digest


def test_it_follows_by_itself_what_is_revoked(robot, author, release, offer):
    first, second = release("1.0.0"), None
    with RobotAgent(robot, None, offer, follow=NAME) as agent:
        assert agent.wait(20)
        second = release("2.0.0")
        until(lambda: agent.skill.digest == second.digest)
        author.state(NAME, "revoke", version="2.0.0")
        until(lambda: agent.skill is not None and agent.skill.digest == first.digest)


def test_a_robot_that_begins_without_a_network(
    tmp_path, publisher, key_store, make_skill, offer, observation
):
    """It takes what it had, and the newer one as soon as there is a network, though no event tells of it."""
    with background(tmp_path / "data") as url:
        port = int(url.rpartition(":")[2])
        with Client(url, home=publisher.home) as author:
            first = make_skill(tmp_path / "first")
            author.publish(first.path)
            with Client(url, home=key_store.home) as robot:
                RobotAgent(robot, None, offer, follow=NAME).update()
            second = make_skill(tmp_path / "second", version="2.0.0", seed=2)
            author.publish(second.path)
    with Client(url, home=key_store.home) as robot, RobotAgent(robot, None, offer, follow=NAME) as agent:
        assert agent.wait(20)
        assert agent.skill.digest == first.digest
        agent.step(observation)
        with background(tmp_path / "data", port=port):
            until(lambda: agent.skill.digest == second.digest)


def test_a_robot_that_begins_without_a_network_and_only_has_another(robot, release, offer):
    """The last one that the reference meant does not pass the probe; the one before does."""
    first = release("1.0.0")
    robot.pull(NAME)
    release("2.0.0")
    robot.pull(NAME)

    def probe(skill):
        if skill.version == "2.0.0":
            raise IncompatibleError("success is 0.31 here")

    down = httpx.MockTransport(lambda request: httpx.Response(503))
    for follow in (NAME, f"{NAME}@stable"):
        with (
            httpx.Client(transport=down) as http,
            Client(robot.url, home=robot.home, http=http) as offline,
        ):
            agent = RobotAgent(offline, None, offer, follow=follow, on_skill=probe)
            assert agent.update()
            assert agent.skill.digest == first.digest


@pytest.mark.parametrize("follow", [f"{NAME}@2.0.0", f"{NAME}@^2", "acme/other"])
def test_it_does_not_fall_back_to_what_it_does_not_follow(robot, release, offer, follow):
    release("1.0.0")
    RobotAgent(robot, None, offer, follow=NAME).update()
    agent = RobotAgent(robot, None, offer, follow=follow)
    with pytest.raises(NotFoundError):
        agent.update()
    assert agent.skill is None
