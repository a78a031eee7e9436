"""Watching: each event once and in order, whatever the network does; and no more talk than need be."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time

import httpx
import pytest

from neuraverse.client import Client, watch, watching
from neuraverse.errors import NetworkError
from neuraverse.registry import background
from tests.servers import until

NAME = "acme/weld-seam"
FIRST_PAUSE_S = watching._FIRST_PAUSE_S


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(watching, "POLL_S", 0.05)
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def published(author, tiny_skill):
    author.publish(tiny_skill.path)
    return tiny_skill


class Reader:
    """Collects what a watch yields, in a thread."""

    def __init__(self, iterator, stop):
        self.events = []
        self.error = None
        self._stop = stop
        self._thread = threading.Thread(target=self._run, args=(iterator,), daemon=True)
        self._thread.start()

    def _run(self, iterator):
        try:
            for event in iterator:
                self.events.append(event)
        except Exception as error:
            self.error = error

    def until(self, count, seconds=20.0):
        deadline = time.monotonic() + seconds
        while len(self.events) < count:
            assert self.error is None
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)
        return self.events

    def end(self, seconds=5.0):
        begun = time.monotonic()
        self._stop.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        assert self.error is None
        return time.monotonic() - begun


@pytest.fixture
def read():
    """Start to watch: ``read(client, after=, name=)``; ended with the test."""
    readers = []

    def start(client, **options):
        stop = threading.Event()
        readers.append(Reader(client.watch(stop=stop, **options), stop))
        return readers[-1]

    yield start
    for reader in readers:
        reader.end()


def aliases(author, count, start=0):
    for i in range(start, start + count):
        author.set_alias(NAME, f"a{i}", "1.0.0")


def test_from_now_on(author, robot, published, read):
    reader = read(robot)
    author.set_alias(NAME, "stable", "1.0.0")
    (event,) = reader.until(1)
    assert (event.type, event.alias, event.digest) == ("alias", "stable", published.digest)


def test_from_the_beginning_and_by_name(author, robot, published, read, make_skill, tmp_path):
    author.publish(make_skill(tmp_path / "grind", name="grind").path)
    everything, one = read(robot, after="0"), read(robot, after="0", name="acme/grind")
    assert [e.name for e in everything.until(2)] == [NAME, "acme/grind"]
    assert one.until(1) == everything.events[1:]
    assert everything.events[0].interface == published.interface.digest()


def test_filters_by_organisation_and_interface(
    author, robot, published, read, make_skill, tmp_path, publisher
):
    publisher.trust(publisher.public_key().pem, "other")
    author.publish(make_skill(tmp_path / "other", org="other").path)
    everything = read(robot, after="0").until(2)
    ours = read(robot, after="0", org="other")
    assert ours.until(1) == everything[1:]
    face = published.interface.digest()
    assert read(robot, after="0", interface=face).until(2) == everything
    none = read(robot, after="0", interface=f"sha256:{'0' * 64}")
    time.sleep(0.3)
    assert none.events == []


def test_polling_gives_the_same_events(author, robot, published, read):
    aliases(author, 3)
    reader = read(robot, after="0")
    assert reader.until(4) == robot.events()
    assert robot.cursor() == reader.events[3].cursor
    assert robot.events(reader.events[1].cursor) == reader.events[2:]
    assert robot.events(robot.cursor(), wait=0.1) == []


def test_stop_ends_a_quiet_stream_soon(robot, published, read):
    reader = read(robot, after="0")
    reader.until(1)
    time.sleep(0.3)  # now it is reading the stream
    assert reader.end() < 2.0


def test_each_watcher_stops_alone_and_one_thread_looks_after_all(author, robot, published, read):
    readers = [read(robot, after="0") for _ in range(3)]
    for reader in readers:
        reader.until(1)
    until(lambda: len(watching._cutter._readers) == 3)
    assert [t.name for t in threading.enumerate()].count("neuraverse-watch") == 1
    assert readers[0].end() < 2.0
    author.set_alias(NAME, "stable", "1.0.0")
    for reader in readers[1:]:
        reader.until(2)
    assert len(readers[0].events) == 1
    for reader in readers[1:]:
        reader.end()
    until(lambda: watching._cutter._thread is None)  # nobody left to look after


def test_an_event_comes_at_once_by_stream(author, robot, published, read):
    reader = read(robot, after=robot.cursor())
    time.sleep(0.5)
    begun = time.monotonic()
    author.set_alias(NAME, "stable", "1.0.0")
    reader.until(1)
    assert time.monotonic() - begun < 2.0


def test_no_registry_is_told_at_once(tmp_path):
    with Client("http://127.0.0.1:9", home=tmp_path) as client, pytest.raises(NetworkError):
        client.watch()
    with pytest.raises(NetworkError):
        watch(registry="http://127.0.0.1:9")


def test_the_module_function_closes_its_client(author, published, url):
    stop = threading.Event()
    events = watch(NAME, after="0", registry=url, stop=stop)
    assert next(events).digest == published.digest
    stop.set()
    assert list(events) == []


def not_a_stream(net, kind):
    """What a proxy may make of a stream."""

    def meddle(request, response):
        if not request.url.path.endswith("/stream"):
            return response
        if kind == "html":
            return net.replaced(response, b"<html>", 200, **{"content-type": "text/html"})
        if kind == "404":
            return net.replaced(response, b"{}", 404, **{"content-type": "application/problem+json"})
        response.close()
        raise httpx.ReadTimeout("swallowed")

    return meddle


@pytest.mark.parametrize("kind", ["html", "404", "swallowed"])
def test_polling_where_streams_do_not_get_through(author, published, through, net, read, kind):
    client, meddler = through(not_a_stream(net, kind))
    reader = read(client, after="0")
    for i in range(5):
        reader.until(1 + i)
        aliases(author, 1, start=i)
    reader.until(6)
    assert reader.events == author.events()
    assert len([r for r in meddler.requests if r.url.path.endswith("/stream")]) == 1


def test_streams_that_break_again_and_again(author, published, through, net, read):
    """Every stream breaks after some bytes, in the middle of events; each event still comes once."""
    sizes = itertools.cycle([60, 300, 700, 1100])
    streams = []

    def meddle(request, response):
        if request.url.path.endswith("/stream"):
            streams.append(request.headers["last-event-id"])
            return net.cut(response, next(sizes))
        return response

    client, _ = through(meddle)
    reader = read(client, after="0")
    aliases(author, 30)
    reader.until(31, seconds=60)
    assert reader.events == author.events()
    assert len(streams) > 1


def test_events_that_are_sent_twice_or_late_are_dropped(published, through, net, read, author):
    """A server that forgets the cursor, starts over with each stream, and mixes up the order."""

    def meddle(request, response):
        if not request.url.path.endswith("/stream"):
            return net.replaced(response, b'{"events": [], "next": "0", "reset": false}')
        texts = {k: "x" for k in ("type", "name", "version", "digest", "at")}
        data = (json.dumps({"id": i, "cursor": f"00000000-{i}"} | texts) for i in (1, 2, 3, 2, 1, 4))
        return net.replaced(response, "".join(f"data: {d}\n\n" for d in data).encode())

    client, _ = through(meddle)
    reader = read(client, after="0")
    reader.until(4)
    time.sleep(0.3)
    assert [e.id for e in reader.events] == [1, 2, 3, 4]


@pytest.mark.parametrize("data", ["{", "[]", '{"id": "x"}', "null"])
def test_malformed_events_are_no_end(published, through, net, read, author, data):
    def meddle(request, response):
        if not request.url.path.endswith("/stream"):
            return response
        return net.replaced(response, f"id: 00000000-9\nevent: alias\ndata: {data}\n\n".encode())

    client, _ = through(meddle)
    reader = read(client, after="0")
    aliases(author, 2)
    assert reader.until(3) == author.events()


def test_a_server_that_restarts(tmp_path, publisher, tiny_skill, read, key_store):
    """Events from while the watcher was cut off come too, once and in order."""
    folder = tmp_path / "restarting"
    with background(folder) as url:
        port = int(url.rpartition(":")[2])
        with Client(url, home=publisher.home) as author:
            author.publish(tiny_skill.path)
        robot = Client(url, home=key_store.home)
        reader = read(robot, after="0")
        reader.until(1)
        time.sleep(0.2)
    for life in range(3):
        with background(folder, port=port) as url, Client(url, home=publisher.home) as author:
            aliases(author, 2, start=10 * life)
            assert reader.until(3 + 2 * life) == author.events()
    reader.end()
    robot.close()


def test_another_registry_in_its_place(tmp_path, publisher, tiny_skill, read, key_store):
    """A registry that starts anew resets the cursor, by stream and by poll; what it has then is seen."""
    with background(tmp_path / "old") as url, Client(url, home=publisher.home) as author:
        port = int(url.rpartition(":")[2])
        author.publish(tiny_skill.path)
        aliases(author, 3)
        robot = Client(url, home=key_store.home)
        reader = read(robot, after="0", name=NAME)
        reader.until(4)
    with background(tmp_path / "new", port=port) as url, Client(url, home=publisher.home) as author:
        reader.until(5)
        assert reader.events[4].type == "reset"
        author.publish(tiny_skill.path)
        assert reader.until(6)[5:] == author.events()
        reader.end()
    robot.close()


# --- no more talk than need be


def test_while_nothing_is_new_the_answer_is_304(author, published, through):
    answers = []

    def note(request, response):
        answers.append(response.status_code)
        return response

    client, _ = through(note)
    (event,) = client.events()
    assert client.events(event.cursor) == client.events(event.cursor, wait=0.05) == []
    aliases(author, 1)
    (moved,) = client.events(event.cursor)
    assert moved.alias == "a0"
    assert answers == [200, 304, 304, 200]
    assert client.cursor() == moved.cursor


def test_a_304_that_was_not_asked_for_is_no_cursor(published, through, net):
    client, _ = through(lambda request, response: net.replaced(response, b"", 304))
    with pytest.raises(NetworkError, match="does not answer as a neuraverse registry"):
        client.cursor()


def test_who_watches_one_skill_asks_for_that_alone(
    author, published, through, net, read, make_skill, tmp_path
):
    """By stream and by poll, so that a thousand robots are not told of what is not theirs."""
    client, meddler = through(not_a_stream(net, "404"))
    reader = read(client, after="0", name=NAME)
    author.publish(make_skill(tmp_path / "grind", name="grind").path)
    aliases(author, 1)
    assert [e.name for e in reader.until(2)] == [NAME, NAME]
    reader.end()
    assert {request.url.path for request in meddler.requests} == {"/v1/events", "/v1/events/stream"}
    assert {request.url.params["skill"] for request in meddler.requests} == {NAME}


class Chosen:
    """A stop event that nobody waits for: it notes the pauses, and is set when there are enough."""

    def __init__(self, count):
        self.pauses = []
        self._count = count

    def is_set(self):
        return len(self.pauses) >= self._count

    def wait(self, seconds):
        self.pauses.append(seconds)


def test_robots_that_lost_the_same_server_do_not_come_back_together(monkeypatch):
    """Fifty of them: by the pauses that they choose, no tenth of a second sees a third come back."""
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", FIRST_PAUSE_S)
    random.seed(0)

    def down(*_, **__):
        raise NetworkError("the server is gone")

    returns = []
    for _ in range(50):
        chosen = Chosen(3)
        assert list(watching.watch(None, down, "0", {"skill": NAME}, chosen)) == []
        returns.append(list(itertools.accumulate(chosen.pauses)))
    for attempt in range(3):
        at = sorted(each[attempt] for each in returns)
        assert max(sum(t <= other < t + 0.1 for other in at) for t in at) <= 16, at
        assert at[-1] - at[0] > 0.5
