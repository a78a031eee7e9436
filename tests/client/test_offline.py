"""What a machine remembers: going on without a network, versions that never change, what was revoked."""

from __future__ import annotations

import dataclasses
import json
import logging

import httpx
import pytest

from neuraverse import archive
from neuraverse.client import Client, Ref, Resolved, download, pulling
from neuraverse.client.memory import Memory
from neuraverse.errors import (
    IntegrityError,
    NetworkError,
    NotFoundError,
    RevokedError,
    SignatureError,
    UsageError,
)
from neuraverse.trust import KeyStore
from tests.client.test_pull import NAME, cached_files

LATEST = Ref(name=NAME)


@pytest.fixture
def published(author, tiny_skill):
    author.publish(tiny_skill.path)
    return tiny_skill


@pytest.fixture
def offline(robot):
    """The same robot, whose network is down."""
    down = httpx.MockTransport(lambda request: httpx.Response(503))
    with httpx.Client(transport=down) as http, Client(robot.url, home=robot.home, http=http) as client:
        yield client


def found(version="1.0.0", digit="a"):
    return Resolved(name=NAME, version=version, digest=f"sha256:{digit * 64}")


# --- the memory itself


def test_a_reference_is_remembered_for_its_registry(tmp_path):
    memory = Memory(home=tmp_path, registry="http://one")
    memory.remember(LATEST, found())
    assert memory.recall(LATEST) == memory.recall(Ref(name=NAME, which="1.0.0")) == found()
    assert memory.recall(Ref(name=NAME, which="1.1.0")) is None
    assert Memory(home=tmp_path, registry="http://two").recall(LATEST) is None


def test_a_version_never_changes(tmp_path):
    memory = Memory(home=tmp_path, registry="http://one")
    memory.remember(LATEST, found())
    for attempt in (memory.check, lambda other: memory.remember(LATEST, other)):
        with pytest.raises(IntegrityError, match="a version never changes"):
            attempt(found(digit="b"))
    memory.remember(LATEST, found("1.1.0", "b"))
    assert memory.recall(LATEST) == found("1.1.0", "b")
    assert memory.recall(Ref(name=NAME, which="1.0.0")) == found()


def test_what_was_revoked_stays_so_until_the_registry_says_otherwise(tmp_path):
    memory = Memory(home=tmp_path, registry="http://one")
    exact = Ref(name=NAME, which="1.0.0")
    memory.revoke(exact, "it burns through")  # unknown here: nothing to remember
    memory.refuse_revoked(found())
    memory.remember(LATEST, found())
    memory.revoke(exact, "it burns through" * 1000)
    with pytest.raises(RevokedError, match="it burns through"):
        memory.refuse_revoked(found())
    memory.refuse_revoked(found(digit="b"))
    assert memory.recall(exact) == found()
    with pytest.raises(IntegrityError):
        memory.check(found(digit="b"))
    memory.remember(exact, found())
    memory.refuse_revoked(found())


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"[]", b"\xff", b"x" * 100_000, b'{"ref": 5}'])
def test_a_spoilt_memory_is_none(tmp_path, content):
    memory = Memory(home=tmp_path, registry="http://one")
    memory.remember(LATEST, found())
    for path in (tmp_path / "cache" / "refs").iterdir():
        path.write_bytes(content)
    assert memory.recall(LATEST) is None
    memory.remember(LATEST, found())
    assert memory.recall(LATEST) == found()


# --- a network that is down


def test_what_was_pulled_is_what_a_reference_means(robot, offline, published, caplog):
    robot.pull(NAME)
    caplog.set_level(logging.WARNING)
    answered = offline.resolve(NAME)
    assert (answered.digest, answered.fresh) == (published.digest, False)
    assert "going on with acme/weld-seam@1.0.0" in caplog.text
    assert robot.resolve(NAME).fresh
    assert offline.pull(answered).digest == published.digest
    for ref in (f"{NAME}@stable", f"{NAME}@^1", "acme/other"):
        with pytest.raises(NetworkError):
            offline.resolve(ref)


def test_what_was_resolved_and_pulled_is_remembered_too(author, robot, offline, published):
    author.set_alias(NAME, "stable", "1.0.0")
    robot.resolve(f"{NAME}@stable")
    with pytest.raises(NetworkError):
        offline.pull(f"{NAME}@stable")  # nothing was pulled yet
    robot.pull(robot.resolve(f"{NAME}@stable"))
    assert offline.pull(f"{NAME}@stable").digest == published.digest
    assert offline.pull(f"{NAME}@1.0.0", offline=True).digest == published.digest


def test_a_login_page_is_no_registry(robot, published, caplog):
    """A network that answers everything itself, as in a hotel, is as good as none."""
    robot.pull(NAME)
    page = httpx.MockTransport(
        lambda request: httpx.Response(200, html="<html>please log in", headers={"neuraverse-digest": "x"})
    )
    with httpx.Client(transport=page) as http, Client(robot.url, home=robot.home, http=http) as client:
        assert client.pull(NAME).digest == published.digest
        assert client.resolve(NAME).digest == published.digest
    assert "does not answer as a neuraverse registry" in caplog.text


def test_an_older_copy_does_not_stand_in_for_a_download_that_was_cut(
    author, robot, published, through, net, make_skill, tmp_path, monkeypatch
):
    """The registry said what the reference means; then what it meant before is not good enough."""
    robot.pull(NAME)
    author.publish(make_skill(tmp_path / "next", version="1.1.0", seed=1).path)
    monkeypatch.setattr(pulling, "ARCHIVE_BYTES", 0)
    monkeypatch.setattr(download, "FRUITLESS_TRIES", 1)

    def meddle(request, response):
        if "/blobs/" not in request.url.path:
            return response
        response.close()
        raise httpx.ReadError("cut")

    client, _ = through(meddle, home=robot.home)
    with pytest.raises(NetworkError, match="cut"):
        client.pull(NAME)
    assert client.pull(NAME, offline=True).version == "1.0.0"  # the last good one is still there
    assert robot.pull(NAME).version == "1.1.0"


def test_an_archive_that_is_cut_goes_on_file_by_file(robot, published, through, net):
    def meddle(request, response):
        return net.cut(response, 12_000) if request.url.path.endswith("/archive") else response

    client, meddler = through(meddle)
    assert client.pull(NAME).digest == published.digest
    assert sum("/blobs/" in r.url.path for r in meddler.requests) == 5


def test_a_skill_that_was_resolved_comes_in_one_answer(robot, published, through):
    client, meddler = through()
    settled = client.resolve(NAME)
    meddler.requests.clear()
    assert client.pull(settled).digest == published.digest
    assert [r.url.path for r in meddler.requests] == [f"/v1/skills/{NAME}/1.0.0/archive"]
    meddler.requests.clear()
    assert client.pull(settled).digest == published.digest
    assert meddler.requests == []


def test_not_modified_without_a_copy_is_no_answer(robot, published, through, net):
    client, _ = through(lambda request, response: net.replaced(response, b"", 304))
    with pytest.raises(NetworkError, match="says that acme/weld-seam@latest is here, which it is not"):
        client.pull(NAME)


# --- lies


def test_a_lie_is_not_remembered(published, through, net, make_skill, tmp_path):
    """Else whoever lies once would keep the robot from the true skill for ever."""
    stranger = KeyStore(tmp_path / "stranger")
    stranger.new("default")
    lie = make_skill(tmp_path / "lie", seed=9, key=stranger.private_key_path())
    names = ("manifest.json", "signature.json", *lie.manifest.files)
    tar = b"".join(archive.pack((name, lie.read(name)) for name in names))
    said = json.dumps({"name": NAME, "version": "1.0.0", "digest": lie.digest}).encode()

    def meddle(request, response):
        if request.url.path.endswith("/archive"):
            headers = {"neuraverse-digest": lie.digest, "content-type": "application/x-tar"}
            return net.replaced(response, tar, 200, **headers)
        return net.replaced(response, said, 200, **{"content-type": "application/json"})

    client, _ = through(meddle)
    with pytest.raises(SignatureError):
        client.pull(NAME)
    with pytest.raises(SignatureError):
        client.pull(client.resolve(NAME))
    honest, _ = through(home=client.home)
    assert honest.pull(NAME).digest == published.digest


def test_resolve_finds_that_a_version_changed(robot, published, through, net):
    robot.pull(NAME)
    lie = json.dumps({"name": NAME, "version": "1.0.0", "digest": "sha256:" + "b" * 64}).encode()
    client, _ = through(
        lambda request, response: net.replaced(response, lie, 200, **{"content-type": "application/json"})
    )
    with pytest.raises(IntegrityError, match="a version never changes"):
        client.resolve(NAME)


def test_a_latest_that_goes_back_is_told(author, robot, published, make_skill, tmp_path, caplog):
    author.publish(make_skill(tmp_path / "next", version="1.1.0", seed=1).path)
    robot.pull(NAME)
    assert "it meant" not in caplog.text
    author.state(NAME, "yank", version="1.1.0")
    assert robot.pull(NAME).version == "1.0.0"
    assert (
        "acme/weld-seam@latest means acme/weld-seam@1.0.0 now; it meant acme/weld-seam@1.1.0" in caplog.text
    )


@pytest.mark.parametrize("header", ['["a", 5]', "[", "5", '{"a": 1}', "[" * 10_000])
def test_warnings_of_another_shape_are_passed_over(published, through, header, caplog):
    def meddle(request, response):
        response.headers["neuraverse-warnings"] = header
        return response

    client, _ = through(meddle)
    assert client.pull(NAME).digest == published.digest
    assert caplog.text == ""


# --- what was revoked


def test_a_revoked_version_is_not_used_without_a_network_either(author, robot, offline, published):
    robot.pull(NAME)
    author.state(NAME, "revoke", version="1.0.0", reason="burns through thin sheet")
    with pytest.raises(RevokedError, match="burns through thin sheet"):
        robot.resolve(f"{NAME}@1.0.0")
    for ask in (offline.pull, offline.resolve):
        for ref in (NAME, f"{NAME}@1.0.0"):
            with pytest.raises(RevokedError, match="burns through thin sheet"):
                ask(ref)
    for ref in (NAME, f"{NAME}@1.0.0", published.digest):
        with pytest.raises(RevokedError):
            offline.pull(ref, offline=True)
    for client in (robot, offline):
        with pytest.raises(RevokedError):
            client.pull(published.digest)
    with pytest.raises(NotFoundError):
        robot.pull(NAME)


def test_a_revoked_version_that_is_held_is_told_beside_the_answer(
    author, robot, published, make_skill, tmp_path
):
    author.publish(make_skill(tmp_path / "next", version="2.0.0").path)
    told = []

    def wants(found):
        told.append((found.version, found.gone))
        return False

    other = dataclasses.replace(OLD, name="acme/other")
    for held in (None, OLD, other):
        assert robot.pull_if(LATEST, wants, held=held) is None
    author.state(NAME, "revoke", version="1.0.0", reason="it burns")
    for held in (OLD, other):
        assert robot.pull_if(LATEST, wants, held=held) is None
    assert told == [("2.0.0", gone) for gone in (None, False, None, True, None)]
    with pytest.raises(UsageError, match="never changes"):
        robot.pull_if(Ref(digest=published.digest), wants)


OLD = Resolved(name=NAME, version="1.0.0", digest="sha256:" + "0" * 64)


def saying(through, **more):
    """A client whose registry says more, in the head of each answer."""

    def meddle(_, answer):
        answer.headers.update({f"neuraverse-{key}": value for key, value in more.items()})
        return answer

    return through(meddle)[0]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"version": "1.0"}, NetworkError, "'1.0' is no version"),
        ({"version": "1" * 5000}, NetworkError, "is no version"),
        ({"version": "\x1b[2J"}, NetworkError, "is no version"),
        ({"version": "1.0.0", "digest": "sha256:5"}, NetworkError, "'sha256:5' is no digest"),
        ({"version": "2.0.0"}, IntegrityError, f"answered {NAME}@2.0.0 .* with {NAME}@1.0.0"),
        ({"held": "\x1b[2J" * 1000, "version": "2.0"}, NetworkError, "is no version"),
        ({"version": "1.0.0", "digest": "sha256:" + "5" * 64}, IntegrityError, "as 'sha256:5555"),
        ({"digest": "sha256:" + "5" * 64}, IntegrityError, "as 'sha256:5555"),
    ],
)
def test_a_head_that_says_something_else_than_its_body(published, through, said, error, words):
    client = saying(through, **said)
    with pytest.raises(error, match=words):
        client.pull(NAME)
    assert cached_files(client.home) == []


def test_a_registry_whose_head_does_not_say_the_version_is_understood(published, through):
    def older(_, answer):
        answer.headers.pop("neuraverse-version", None)
        answer.headers.pop("neuraverse-held", None)
        return answer

    told = []
    for _ in range(2):  # whether it sends all of it, or says that it is here
        client, _ = through(older)
        assert client.pull(NAME).digest == published.digest
        assert client.pull_if(LATEST, told.append, held=OLD) is None
    assert [(found.ref, found.gone) for found in told] == [(f"{NAME}@1.0.0", None)] * 2


@pytest.mark.parametrize("dropped", [("etag",), ("neuraverse-digest",), ("etag", "neuraverse-digest")])
def test_not_modified_by_a_proxy_that_drops_headers(published, through, dropped):
    def drop(_, answer):
        for name in dropped:
            answer.headers.pop(name)
        return answer

    client, told = through(drop)[0], []
    assert client.pull_if(LATEST, told.append, held=Resolved.of(published)) is None
    assert [found.digest for found in told] == [published.digest]


def test_what_is_known_is_not_sent(author, published, through, make_skill, tmp_path):
    """Nor what it means already, nor what is not wanted; and it is asked once."""
    client, meddler = through()
    client.pull(NAME)
    second = make_skill(tmp_path / "next", version="2.0.0", seed=2)
    author.publish(second.path)
    meddler.requests.clear()
    answers = []

    def wants(found):
        answers.append(found.digest)
        return wanted

    for wanted, known in ((False, []), (False, [Resolved.of(second)]), (True, [Resolved.of(second)])):
        found = client.pull_if(LATEST, wants, held=Resolved.of(published), known=known)
        assert (found is None) is not wanted
    assert answers == [second.digest] * 3
    paths = [request.url.path for request in meddler.requests]
    assert paths[:3] == [f"/v1/skills/{NAME}/latest/archive"] * 3
    assert f"/v1/manifests/{second.digest[7:]}" in paths[3:]  # it was not there, though said to be
    tags = [request.headers["if-none-match"] for request in meddler.requests[:3]]
    first, other = f'"{published.digest[7:]}-tar"', f'"{second.digest[7:]}-tar"'
    assert tags == [first, f"{first}, {other}", f"{first}, {other}"]


def test_what_is_wanted_of_a_registry_that_is_away(author, robot, offline, published):
    robot.pull(NAME)
    seen = []

    def wants(found):
        seen.append((found.ref, found.fresh))
        return wanted

    for wanted in (False, True):
        found = offline.pull_if(LATEST, wants, held=Resolved.of(published))
        assert (found is None) is not wanted
    assert seen == [(f"{NAME}@1.0.0", False)] * 2
    author.state(NAME, "revoke", version="1.0.0")
    with pytest.raises(RevokedError):
        robot.resolve(f"{NAME}@1.0.0")
    with pytest.raises(RevokedError):
        offline.pull_if(LATEST, wants)
    assert len(seen) == 2


def test_an_alias_of_what_was_revoked(author, robot, offline, published, make_skill, tmp_path):
    """It is not said what the alias means now: only what is revoked by name is not used any more."""
    second = make_skill(tmp_path / "next", version="1.1.0", seed=1)
    author.publish(second.path)
    for alias in ("live", "moved"):
        author.set_alias(NAME, alias, "1.0.0")
        robot.pull(f"{NAME}@{alias}")
    author.set_alias(NAME, "moved", "1.1.0")
    author.state(NAME, "revoke", version="1.1.0", reason="burns through")
    with pytest.raises(RevokedError):
        robot.pull(f"{NAME}@moved")
    assert offline.pull(f"{NAME}@moved").digest == published.digest
    author.state(NAME, "revoke", version="1.0.0", reason="too fast")
    with pytest.raises(RevokedError):
        robot.pull(f"{NAME}@live")
    for ref in (f"{NAME}@live", f"{NAME}@moved", f"{NAME}@1.0.0"):
        with pytest.raises(RevokedError, match="too fast"):
            offline.pull(ref)


def test_a_revoked_digest_that_is_not_here_is_not_fetched(author, robot, published):
    author.state(NAME, "revoke", version="1.0.0")
    with pytest.raises(RevokedError):
        robot.pull(published.digest)


@pytest.mark.parametrize("years", [-50, -1, 1, 10])
def test_fault_21_a_clock_that_is_wrong(author, robot, offline, published, monkeypatch, years):
    """No decision is made by it: what was pulled is used, and a revocation counts."""
    import time

    from neuraverse.client import keeping

    robot.pull(NAME)
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + years * 365 * keeping.DAY_S)
        assert offline.pull(NAME).digest == robot.pull(NAME).digest == published.digest
        skill = robot.pull(NAME)
        assert keeping.prune(robot._cache, robot.cached()).in_use
        author.state(NAME, "revoke", version="1.0.0")
        with pytest.raises(RevokedError):
            robot.pull(f"{NAME}@1.0.0")
    with pytest.raises(RevokedError):
        offline.pull(NAME)
    assert skill.policy() is not None
