"""Readers of the feed under tenants, withdrawn rights, slowness, and servers that die under them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import socket
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import h11
import httpx
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from neuraverse.registry import Settings, background, changes, create_app, events, feed, tables
from neuraverse.registry.events import Wanted
from neuraverse.registry.metrics import Measure, Metrics
from neuraverse.registry.server import Protocol
from tests.registry.test_publish import TAR, parcel
from tests.registry.test_tenants import World
from tests.servers import free_ports, until

EVENT = re.compile(rb"id: ([0-9a-f-]+)\nevent: \w")
BLOCK = re.compile(rb"id: ([0-9a-f]{8}-[0-9]+)\nevent: (\w+)\ndata: (.*)\n\n")


class Stream:
    """An open stream over a bare socket, read in a thread."""

    def __init__(self, url, token=None, query="after=0", last=None):
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        head = f"GET /v1/events/stream?{query} HTTP/1.1\r\nHost: x\r\n"
        head += f"Authorization: Bearer {token}\r\n" if token else ""
        head += f"Last-Event-ID: {last}\r\n" if last else ""
        self.socket.sendall(f"{head}\r\n".encode())
        self.data = b""
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            while got := self.socket.recv(65536):
                self.data += re.sub(rb"\r\n[0-9a-f]+\r\n", b"", got)  # the frames of chunked coding
                if got.endswith(b"\r\n0\r\n\r\n") or got == b"0\r\n\r\n":
                    break
        except OSError:
            pass
        self.ended.set()

    def names(self):
        return [json.loads(match[3])["name"] for match in BLOCK.finditer(self.data)]

    def until(self, count, seconds=20.0):
        deadline = time.monotonic() + seconds
        while len(self.names()) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.names()

    def close(self):
        with contextlib.suppress(OSError):  # while its thread reads, closing alone says nothing to the server
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Live(World):
    """The same tenants behind a real server, for streams."""

    def __init__(self, folder):
        settings = Settings.load(data=folder, open=False, collect_hours=0)
        super().__init__(settings)
        super().close()  # made; from here on it is served

    def serve(self):
        return background(self.settings)


@pytest.fixture
def live(tmp_path):
    made = Live(tmp_path / "live")
    with made.serve() as url, httpx.Client(base_url=url) as http:
        made.url, made.api = url, http
        yield made


def publish_as(live, skill, publisher, org, visibility):
    headers = {"Authorization": f"Bearer {live.token[org, 'owner']}", **TAR}
    answer = live.api.post(
        "/v1/skills", content=parcel(skill, publisher), headers=headers, params={"visibility": visibility}
    )
    assert answer.status_code == 201, answer.text


def test_each_reader_sees_what_is_theirs(live, make_skill, tmp_path, publisher):
    readers = {
        who: Stream(live.url, live.token[who])
        for who in ("nobody", ("acme", "robot"), ("acme", "reader"), ("rival", "robot"))
    }
    made = {}
    for number, visibility in enumerate(("public", "network", "private")):
        made[visibility] = make_skill(tmp_path / visibility, name=f"{visibility}-one", seed=number)
        publish_as(live, made[visibility], publisher, "acme", visibility)
    every = [f"acme/{v}-one" for v in made]
    for who, count in (
        ("nobody", 1),
        (("acme", "robot"), 3),
        (("acme", "reader"), 3),
        (("rival", "robot"), 2),
    ):
        assert readers[who].until(count) == every[:count], who
    time.sleep(0.2)  # nothing comes that is not theirs
    assert readers["nobody"].names() == every[:1]
    assert readers["rival", "robot"].names() == every[:2]
    assert b"private" not in readers["rival", "robot"].data
    for reader in readers.values():
        reader.close()


def test_fault_19_a_reader_whose_rights_end_stops_seeing_within_a_second(
    live, make_skill, tmp_path, publisher
):
    """A token revoked, a role taken away, a robot removed, a token run out, a skill hidden."""
    publish_as(live, make_skill(tmp_path / "a", name="a"), publisher, "acme", "private")
    owner = ("acme", "owner")
    narrow = live.post("/v1/tokens", owner, json={"scopes": ["read"]}).json()
    short = live.post("/v1/tokens", owner, json={"scopes": ["read"], "hours": 2.0 / 3600}).json()
    begun = time.monotonic()
    readers = {
        "token": Stream(live.url, narrow["token"]),
        "short": Stream(live.url, short["token"]),
        "role": Stream(live.url, live.token["acme", "reader"]),
        "robot": Stream(live.url, live.token["acme", "robot"]),
        "stays": Stream(live.url, live.token["acme", "publisher"]),
    }
    for reader in readers.values():
        assert reader.until(1) == ["acme/a"]
    assert live.delete(f"/v1/tokens/{narrow['id']}", owner).status_code == 204
    assert readers["token"].ended.wait(1.0)
    assert live.delete("/v1/orgs/acme/robots/r1", owner).status_code == 204
    assert readers["robot"].ended.wait(1.0)
    assert live.delete("/v1/orgs/acme/members/reader-acme", owner).status_code == 204
    publish_as(live, make_skill(tmp_path / "b", name="b", seed=1), publisher, "acme", "private")
    assert readers["stays"].until(2) == ["acme/a", "acme/b"]
    assert readers["role"].names() == ["acme/a"]  # still signed in, and no member
    assert not readers["role"].ended.is_set()
    assert readers["short"].ended.wait(max(0.1, begun + 3.0 - time.monotonic()))
    for reader in readers.values():
        reader.close()


def test_what_was_hidden_is_not_told_from_memory(plain, make_skill, tmp_path, publisher):
    """A reader that lags behind gets the past as it may be seen now, not as it was told."""
    world = World(plain.model_copy(update={"open": False}))
    try:
        for number, name in enumerate("ab"):
            skill = make_skill(tmp_path / name, name=name, seed=number)
            world.publish(skill, publisher, ("acme", "owner"), visibility="public")
        source, nobody = world.registry.feed, world.registry.access.anonymous

        def told():
            return world.api.portal.call(source.blocks, nobody, source._from, Wanted())[0].decode()

        until(lambda: "acme/b" in told(), "the feed")
        assert "acme/a" in told()
        assert (
            world.patch("/v1/skills/acme/a", ("acme", "owner"), json={"visibility": "private"}).status_code
            == 200
        )
        data = world.api.portal.call(source.blocks, nobody, 0, Wanted())[0].decode()
        assert "acme/a" not in data
        assert "acme/b" in data
    finally:
        world.close()


def test_what_is_hidden_while_it_is_read_is_not_kept_as_it_was(plain, make_skill, tmp_path, publisher):
    """The feed reads an event, and the skill is hidden before the feed has it in memory."""
    world = World(plain.model_copy(update={"open": False}))
    try:
        registry = world.registry
        owner = world.api.portal.call(registry.access.caller, f"Bearer {world.token['acme', 'owner']}")
        read, hidden = registry.database.read, []

        async def late(ask, *args):
            found = await read(ask, *args)
            if ask is events.told and found and not hidden:
                hidden.append(found)
                await registry.rule(changes.show, owner, registry.settings, "acme/a", "private")
            return found

        registry.database.read = late
        world.publish(make_skill(tmp_path / "a", name="a"), publisher, ("acme", "owner"), visibility="public")
        until(lambda: hidden and len(registry.feed._told) == 2, "the feed")
        assert [each.row.visibility for each in registry.feed._told] == ["private", "private"]
        data, _ = world.api.portal.call(registry.feed.blocks, registry.access.anonymous, 0, Wanted())
        assert data == b""
    finally:
        world.close()


class Pages:
    """A feed of two pages, and a reader's place in it."""

    closed = False

    def __init__(self, caller="somebody"):
        self.access = self
        self._caller = caller
        self.pages = {0: (b"one", 1), 1: (b"two", 2), 2: (b"", 2)}

    def known(self, _):
        return self._caller

    def page(self, _, after, __):
        return self.pages[after]


@pytest.mark.parametrize(
    ("taken", "caller", "idle", "pages", "sent", "stands", "woken"),
    [
        (2, "somebody", True, {}, [b"one", b"two"], 2, False),
        (1, "somebody", True, {}, [b"one"], 1, True),  # its connection is full: it waits by itself
        (2, None, True, {}, [], 0, True),  # its rights are to be looked up
        (2, "somebody", False, {}, [], 0, True),  # it is looking already
        (2, "somebody", True, {1: None}, [b"one"], 1, True),  # the rest is in the database
        (2, "somebody", True, {0: (b"", 1), 1: (b"", 2)}, [], 2, False),  # nothing of it is theirs
    ],
)
def test_news_are_pushed_to_who_waits_and_nobody_else(taken, caller, idle, pages, sent, stands, woken):
    async def run():
        got = []

        def push(data):
            if len(got) == taken:
                return False
            got.append(data)
            return True

        pushed = Pages(caller)
        pushed.pages |= pages
        reader = feed.Reader(None, 0, Wanted(), None, push)
        reader.expect()
        waiting = asyncio.create_task(reader.wait(time.time() + 1.0)) if idle else None
        await asyncio.sleep(0)
        due = reader._ends
        reader.catch_up(pushed)
        await asyncio.sleep(0)
        assert (got, reader.after, reader._news.done()) == (sent, stands, woken)
        if idle:
            assert reader._due <= due  # what is sent does not put off the end of its token
            waiting.cancel()

    asyncio.run(run())


def test_what_is_pushed_is_in_the_log(plain, tiny_skill, publisher, caplog):
    caplog.set_level(logging.INFO, "neuraverse.registry.access")
    with background(plain) as url:
        stream = Stream(url)
        until(lambda: b"retry" in stream.data, "the stream")
        answer = httpx.post(f"{url}/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
        assert answer.status_code == 201
        stream.until(1)
        event = re.search(rb"id: \S+\nevent: published\n.*\n\n", stream.data)
        stream.close()

        def lines():
            return [r.getMessage() for r in caplog.records if "/v1/events/stream" in r.getMessage()]

        until(lines, "its line")
        assert int(re.search(r"(\d+) bytes", lines()[0])[1]) > len(event[0])


def test_readers_that_break_the_protocol_disturb_nobody(plain, tiny_skill, publisher):
    """Whoever is sent news in one loop with others can end that loop for nobody."""
    with background(plain) as url:
        rude = [Stream(url) for _ in range(3)]
        good = Stream(url)
        for each in (*rude, good):
            until(lambda each=each: b"retry" in each.data, "the stream")
        stop = threading.Event()

        def pester():
            with contextlib.suppress(OSError):
                for number in range(1000):
                    for each, said in zip(
                        rude, (b"\0\0\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"x"), strict=True
                    ):
                        each.socket.sendall(said * (1 + number % 3))
                    if stop.wait(0.001):
                        return

        thread = threading.Thread(target=pester)
        thread.start()
        answer = httpx.post(f"{url}/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR)
        assert answer.status_code == 201
        assert len(good.until(1)) == 1
        stop.set()
        thread.join()
        later = Stream(url)
        assert len(later.until(1)) == 1
        for each in (*rude, good, later):
            each.close()


def test_a_push_into_a_connection_that_cannot_take_it():
    """Paused, closing, or broken by what its client sent: the reader's own task sees to it."""

    class Half:
        def write(self, data):
            self.data = data

    def made(state=h11.SEND_BODY, paused=False, closing=False):
        protocol = object.__new__(Protocol)
        protocol.transport = Half()
        protocol.transport.is_closing = lambda: closing
        protocol.flow = SimpleNamespace(write_paused=paused)
        protocol.conn = SimpleNamespace(our_state=state, send=lambda event: event.data)
        return protocol

    assert not made(paused=True).push(b"x")
    assert not made(closing=True).push(b"x")
    for state in (h11.SEND_RESPONSE, h11.DONE, h11.ERROR, h11.CLOSED, h11.MUST_CLOSE):
        assert not made(state).push(b"x")
    able = made()
    assert able.push(b"x")
    assert able.transport.data == b"x"


def test_what_is_pushed_is_in_the_metrics():
    metrics, left = Metrics(), [True, False]

    async def app(scope, receive, send):
        assert [scope["state"]["push"](b"1234") for _ in range(2)] == [True, False]

    scope = {"type": "http", "method": "GET", "state": {"push": lambda data: left.pop(0)}}
    asyncio.run(Measure(app, metrics=metrics)(scope, None, None))
    assert metrics.sent._value.get() == 4.0


def test_a_reader_that_does_not_read_is_dropped(plain, tiny_skill, publisher, monkeypatch):
    """It is given up, others are not held up, and it comes back with its cursor; nothing is kept for it."""
    count = 4000  # more than the system's sockets hold

    def a_long_past(db):
        skill = db.execute(select(tables.skills)).one()
        for _ in range(count - 1):
            event = ("published", skill.name, "9.9.9", "", "", {"reason": "x" * 2000})
            events.tell(db, skill.org_id, skill.id, *event)

    with TestClient(create_app(plain)) as api:
        assert api.post("/v1/skills", content=parcel(tiny_skill, publisher), headers=TAR).status_code == 201
        api.portal.call(api.app.state.registry.database.write, a_long_past)
    monkeypatch.setattr(feed, "READER_S", 0.5)
    with background(plain) as url:
        parts = urlsplit(url)
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lazy.connect((parts.hostname, parts.port))
        lazy.sendall(b"GET /v1/events/stream?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        good = Stream(url)
        assert len(good.until(count)) == count
        lazy.settimeout(10.0)
        got = b""
        time.sleep(1.5)
        with contextlib.suppress(ConnectionResetError):
            while data := lazy.recv(1 << 20):
                got += data
        whole = [m.decode() for m in EVENT.findall(re.sub(rb"\r\n[0-9a-f]+\r\n", b"", got))]
        assert len(whole) < count
        assert not good.ended.is_set()
        again = Stream(url, last=whole[-2] if len(whole) > 1 else None)  # the last one may be cut
        rest = count - max(0, len(whole) - 1)
        assert len(again.until(rest)) == rest
        for each in (lazy, good, again):
            each.close()


@pytest.mark.timeout(120)
def test_fault_22_the_server_dies_under_its_watchers(start, tmp_path, make_skill, publisher):
    """Killed again and again while skills are published: readers come back and have every event, in order.

    `make test-all` has 2,000 of them.
    """
    dies_under(start, tmp_path, make_skill, publisher, readers=200, deaths=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fault_22_the_server_dies_under_two_thousand_watchers(start, tmp_path, make_skill, publisher):
    dies_under(start, tmp_path, make_skill, publisher, readers=2000, deaths=3)


def dies_under(start, tmp_path, make_skill, publisher, readers, deaths):
    (port,) = free_ports(1)
    published = []
    process, url = start(data=tmp_path / "data", port=port)
    crowd = threading.Thread(target=lambda: asyncio.run(watch_all(port, readers, published, seen, done)))
    seen: list[list[str]] = [[] for _ in range(readers)]
    done = threading.Event()
    crowd.start()
    number = 0
    for _ in range(deaths):
        for _ in range(3):
            skill = make_skill(tmp_path / f"s{number}", version=f"1.{number}.0", seed=number)
            content, acknowledged = parcel(skill, publisher), False
            while not acknowledged:
                try:
                    answer = httpx.post(f"{url}/v1/skills", content=content, headers=TAR, timeout=60)
                    acknowledged = answer.status_code in (200, 201)
                except httpx.TransportError:
                    time.sleep(0.1)
            number += 1
        process.kill()
        process.communicate()
        process, url = start(data=tmp_path / "data", port=port)
    events = httpx.get(f"{url}/v1/events?after=0&limit=1000").json()["events"]
    published += [event["cursor"] for event in events]
    assert len(published) == number
    done.set()
    crowd.join(300)
    assert not crowd.is_alive()
    for each in seen:
        assert each == published


async def watch_all(port, readers, published, seen, done):
    """Readers that keep their cursor, come back when they are cut off, and end when they have all."""

    def satisfied(mine):
        return done.is_set() and len(mine) >= len(published)

    async def follow(mine):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        last = f"Last-Event-ID: {mine[-1]}\r\n" if mine else ""
        writer.write(f"GET /v1/events/stream?after=0 HTTP/1.1\r\nHost: x\r\n{last}\r\n".encode())
        data = b""
        try:
            while not satisfied(mine):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        if not (got := await reader.read(65536)):
                            return
                    whole, _, data = (data + got).rpartition(b"\n\n")
                    mine += [m.decode() for m in EVENT.findall(whole)]
        finally:
            writer.close()

    async def one(mine):
        while not satisfied(mine):
            with contextlib.suppress(OSError):
                await follow(mine)
            await asyncio.sleep(random.uniform(0.0, 1.0))

    await asyncio.gather(*(one(mine) for mine in seen))


@pytest.mark.timeout(90)
def test_notifications_that_are_lost_cost_time_and_no_event(
    start, tmp_path, postgres, s3, make_skill, publisher
):
    """Two processes on PostgreSQL, the readers' one deaf to NOTIFY: it looks by itself."""
    shared = {"database": postgres.new(), "presign": False, **s3.new()}
    _, first = start(data=tmp_path / "a", **shared)
    _, second = start(data=tmp_path / "b", **shared)
    stream = Stream(second)
    # Whoever listens is cut off; before it listens again, events come.
    postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    for number in range(3):
        skill = make_skill(tmp_path / f"s{number}", version=f"1.{number}.0", seed=number)
        answer = httpx.post(f"{first}/v1/skills", content=parcel(skill, publisher), headers=TAR, timeout=60)
        assert answer.status_code == 201
    assert stream.until(3, seconds=8.0) == ["acme/weld-seam"] * 3
    stream.close()
