"""The event feed: by polling and as a stream, in order, complete, and the same either way."""

from __future__ import annotations

import json
import re
import socket
import threading
import time

import httpx
import pytest

from neuraverse.registry import Settings, background, feed


@pytest.mark.storages
def test_polling(api, publish_new, state, publisher):
    begin = api.get("/v1/events").json()
    mark = begin["next"].removesuffix("-0")
    assert begin == {"events": [], "next": f"{mark}-0", "reset": False}
    assert re.fullmatch("[0-9a-f]{8}", mark)
    skill = publish_new()
    assert state(api, "alias", alias="stable", version="1.0.0").status_code == 200
    page = api.get("/v1/events?after=0").json()
    first, second = page["events"]
    assert page["next"] == second["cursor"] == f"{mark}-{second['id']}"
    assert first.pop("at").endswith("Z")
    number = first.pop("id")
    assert abs(number / 1e6 - time.time()) < 60.0  # microseconds, so that gaps tell nothing
    assert second["id"] > number
    assert first == {
        "cursor": f"{mark}-{number}",
        "type": "published",
        "name": "acme/weld-seam",
        "version": "1.0.0",
        "digest": skill.digest,
        "parents": [],
        "interface": skill.interface.digest(),
        "by": publisher.public_key().fingerprint,
    }
    assert (second["type"], second["alias"], second["digest"]) == ("alias", "stable", skill.digest)
    assert api.get(f"/v1/events?after={mark}-{number}").json()["events"] == [second]
    assert api.get("/v1/events?after=0&limit=1").json()["next"] == f"{mark}-{number}"
    # Without a cursor: nothing of the past, and the cursor of now.
    assert api.get("/v1/events").json() == {"events": [], "next": second["cursor"], "reset": False}


def test_a_cursor_of_another_registry(api, publish_new):
    publish_new()
    now = api.get("/v1/events").json()["next"]
    for other in ("00000000-77", "ffffffff-0"):
        answer = api.get(f"/v1/events?after={other}").json()
        assert answer == {"events": [], "next": now, "reset": True}


def test_polling_on_condition(api, publish_new):
    publish_new()
    head = api.get("/v1/events")
    mine = {"If-None-Match": head.headers["etag"]}
    path = f"/v1/events?after={head.json()['next']}"
    quiet = api.get(path, headers=mine)
    assert (quiet.status_code, quiet.content) == (304, b"")
    publish_new(version="1.1.0")
    news = api.get(path, headers=mine)
    assert [e["version"] for e in news.json()["events"]] == ["1.1.0"]
    assert news.headers["etag"] != head.headers["etag"]


@pytest.mark.storages
def test_filters(api, publish_new, state):
    weld, grind = publish_new(), publish_new(name="grind")
    state(api, "alias", alias="stable", version="1.0.0")

    def told(query):
        return [e["name"] for e in api.get(f"/v1/events?after=0&{query}").json()["events"]]

    assert told("skill=acme/weld-seam") == ["acme/weld-seam"] * 2
    assert told("org=acme") == ["acme/weld-seam", "acme/grind", "acme/weld-seam"]
    assert told("org=acm") == told("org=other") == told("skill=acme/weld") == []
    assert weld.interface.digest() == grind.interface.digest()
    assert told(f"interface={weld.interface.digest()}") == told("org=acme")
    assert told(f"interface=sha256:{'0' * 64}") == []


def test_ids_only_grow_when_the_clock_goes_back(api, publish_new, state, monkeypatch):
    publish_new()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    state(api, "alias", alias="stable", version="1.0.0")
    first, second = api.get("/v1/events?after=0").json()["events"]
    assert second["id"] == first["id"] + 1


@pytest.mark.parametrize(
    "query",
    [
        "after=-1",
        "after=x",
        "after=77",
        "org=A",
        "skill=x",
        "interface=x",
        "limit=0",
        "limit=1001",
        "wait=31",
        "wait=-1",
        "wait=nan",
    ],
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
    assert [e["type"] for e in page["events"]] == ["published"]
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
        begin = next(found)
        assert begin["id"].endswith("-0")
        assert begin["retry"] == "1000"
        past = next(found)
        publish_to(url, make_skill(tmp_path / "next", version="1.1.0"), submission)
        present = next(found)
    assert [b["event"] for b in (past, present)] == ["published"] * 2
    polled = httpx.get(f"{url}/v1/events?after=0").json()["events"]
    assert [json.loads(b["data"]) for b in (past, present)] == polled
    assert [b["id"] for b in (past, present)] == [e["cursor"] for e in polled]


def test_the_stream_goes_on_behind_the_last_event_id(url, tiny_skill, submission, state):
    publish_to(url, tiny_skill, submission)
    last = httpx.get(f"{url}/v1/events").json()["next"]
    asked = {"Last-Event-ID": last}
    with httpx.stream("GET", f"{url}/v1/events/stream?after=0", headers=asked, timeout=10) as response:
        found = blocks(response)
        assert next(found)["id"] == last
        with httpx.Client(base_url=url) as http:
            state(http, "alias", alias="stable", version="1.0.0").raise_for_status()
        assert next(found)["event"] == "alias"


def test_the_stream_resets_a_cursor_of_another_registry(url):
    with httpx.stream("GET", f"{url}/v1/events/stream?after=00000000-5", timeout=10) as response:
        first = next(blocks(response))
        assert (first["event"], first["data"]) == ("reset", "{}")
        assert first["id"] == httpx.get(f"{url}/v1/events").json()["next"]


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
    told = [e["cursor"] for e in httpx.get(f"{url}/v1/events?after=0").json()["events"]]
    assert seen == [told] * readers
    assert len(told) == 4


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
