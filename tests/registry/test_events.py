"""The event feed: by polling and as a stream, in order, complete, and the same either way."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest

from neuraverse.registry import Settings, background, feed


@pytest.mark.storages
def test_polling(api, publish_new, state, publisher):
    assert api.get("/v1/events").json() == {"events": [], "next": 0, "reset": False}
    skill = publish_new()
    assert state(api, "alias", alias="stable", version="1.0.0").status_code == 200
    page = api.get("/v1/events?after=0").json()
    first, second = page["events"]
    assert page["next"] == second["id"] == 2
    assert first.pop("at").endswith("Z")
    assert first == {
        "id": 1,
        "type": "published",
        "name": "acme/weld-seam",
        "version": "1.0.0",
        "digest": skill.digest,
        "parents": [],
        "interface": skill.interface.digest(),
        "by": publisher.public_key().fingerprint,
    }
    assert (second["type"], second["alias"], second["digest"]) == ("alias", "stable", skill.digest)
    assert api.get("/v1/events?after=1").json()["events"] == [second]
    assert api.get("/v1/events?after=0&limit=1").json()["next"] == 1
    # Without a cursor: nothing of the past, and the cursor of now.
    assert api.get("/v1/events").json() == {"events": [], "next": 2, "reset": False}


def test_a_cursor_of_another_registry(api, publish_new):
    publish_new()
    assert api.get("/v1/events?after=77").json() == {"events": [], "next": 1, "reset": True}


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "limit=0", "limit=1001", "wait=31", "wait=-1", "wait=nan"]
)
def test_parameters_that_cannot_be(api, query, problem):
    problem(api.get(f"/v1/events?{query}"), 400)


def test_a_poll_waits_for_news(api, publish_new):
    answers = []

    def ask():
        begun = time.monotonic()
        answers.append((api.get("/v1/events?after=0&wait=20").json(), time.monotonic() - begun))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    publish_new()
    thread.join()
    ((page, seconds),) = answers
    assert [e["id"] for e in page["events"]] == [1]
    assert seconds < 15.0


def test_a_poll_gives_up_waiting(api):
    begun = time.monotonic()
    assert api.get("/v1/events?after=0&wait=0.2").json()["events"] == []
    assert 0.2 <= time.monotonic() - begun < 5.0


# --- over real sockets


@pytest.fixture
def url(tmp_path):
    with background(tmp_path / "live") as address:
        yield address


@pytest.fixture
def impatient(tmp_path):
    with background(Settings.load(data=tmp_path / "live", body_idle_s=0.4)) as address:
        yield address


def publish_to(url, skill, submission):
    with httpx.Client(base_url=url) as http:
        for name, entry in skill.manifest.files.items():
            http.put(f"/v1/blobs/{entry.sha256}", content=skill.read(name)).raise_for_status()
        http.post("/v1/skills", json=submission(skill)).raise_for_status()


def blocks(response):
    """The blocks of a stream, each as a dict of its fields; comments under ``""``."""
    block = {}
    for line in response.iter_lines():
        if not line:
            yield block
            block = {}
            continue
        field, _, value = line.partition(":")
        block[field] = value.strip()


def test_the_stream_tells_the_past_then_the_present(url, tiny_skill, submission, make_skill, tmp_path):
    publish_to(url, tiny_skill, submission)
    with httpx.stream("GET", f"{url}/v1/events/stream?after=0", timeout=10) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        found = blocks(response)
        assert next(found) == {"retry": "1000", "id": "0"}
        past = next(found)
        publish_to(url, make_skill(tmp_path / "next", version="1.1.0"), submission)
        present = next(found)
    assert [(b["id"], b["event"]) for b in (past, present)] == [("1", "published"), ("2", "published")]
    polled = httpx.get(f"{url}/v1/events?after=0").json()["events"]
    assert [json.loads(b["data"]) for b in (past, present)] == polled


def test_the_stream_goes_on_behind_the_last_event_id(url, tiny_skill, submission, state):
    publish_to(url, tiny_skill, submission)
    asked = {"Last-Event-ID": "1"}
    with httpx.stream("GET", f"{url}/v1/events/stream?after=0", headers=asked, timeout=10) as response:
        found = blocks(response)
        assert next(found)["id"] == "1"
        with httpx.Client(base_url=url) as http:
            state(http, "alias", alias="stable", version="1.0.0").raise_for_status()
        assert next(found)["event"] == "alias"


def test_the_stream_resets_a_cursor_of_another_registry(url):
    with httpx.stream("GET", f"{url}/v1/events/stream?after=50", timeout=10) as response:
        assert next(blocks(response)) == {"retry": "1000", "id": "0", "event": "reset", "data": "{}"}


def test_a_quiet_stream_says_that_it_is_alive(url, monkeypatch):
    monkeypatch.setattr(feed, "HEARTBEAT_S", 0.05)
    with httpx.stream("GET", f"{url}/v1/events/stream", timeout=10) as response:
        found = blocks(response)
        next(found)
        assert [next(found) for _ in range(3)] == [{"": "heartbeat"}] * 3


def test_many_readers_see_the_same(url, tiny_skill, submission, state):
    readers, seen, opened = 20, [], threading.Barrier(21)

    def read():
        with httpx.stream("GET", f"{url}/v1/events/stream?after=0", timeout=30) as response:
            found = blocks(response)
            next(found)
            opened.wait()
            seen.append([next(found)["id"] for _ in range(4)])

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    opened.wait()
    publish_to(url, tiny_skill, submission)
    with httpx.Client(base_url=url) as http:
        for alias in ("a", "b", "c"):
            state(http, "alias", alias=alias, version="1.0.0").raise_for_status()
    for thread in threads:
        thread.join()
    assert seen == [["1", "2", "3", "4"]] * readers


def test_a_silent_body_is_given_up(impatient):
    url = impatient
    host, port = url.removeprefix("http://").split(":")
    head = f"PUT /v1/blobs/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_dripping_body_is_given_up(impatient):
    url = impatient
    host, port = url.removeprefix("http://").split(":")
    head = f"PUT /v1/blobs/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        connection.settimeout(0.1)
        begun = time.monotonic()
        while time.monotonic() - begun < 10.0:
            connection.sendall(b"x")
            try:
                answer = connection.recv(4096)
                break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
