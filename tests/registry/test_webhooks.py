"""Webhooks: signed, in order, each event until it is taken or dead; and sent to no address of ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.server
import ipaddress
import json
import logging
import queue
import shutil
import socket
import sqlite3
import ssl
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import select

from neuraverse.errors import ConfigError, NetworkError, UsageError
from neuraverse.registry import Settings
from neuraverse.registry.events import TYPES
from neuraverse.registry.limits import MAX_OUTBOUND_ANSWER, MAX_WEBHOOKS
from neuraverse.registry.routes.webhooks import NewWebhook
from neuraverse.registry.webhooks import deliveries, delivering, outbound
from tests.client.test_surroundings import authority  # noqa: F401 - a fixture
from tests.registry.test_tenants import World

OWNER = ("acme", "owner")
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def cut(handler):
    """Breaks the connection instead of an answer."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    return 204


class Receiver:
    """Takes messages on loopback and answers as it is told; 204 if it is not."""

    def __init__(self):
        self.got = []
        self.answers = []  # statuses, or what to do with the handler
        self._news = queue.Queue()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                sent = SimpleNamespace(path=self.path, headers=self.headers, body=body)
                sent.id, sent.json = self.headers["webhook-id"], json.loads(body)
                receiver.got.append(sent)
                receiver._news.put(sent)
                answer = receiver.answers.pop(0) if receiver.answers else 204
                if callable(answer):
                    answer = answer(self)
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", f"{receiver.url}/inside")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # of connections that were cut
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def next(self, count=1):
        """The next messages, once they are there."""
        return [self._news.get(timeout=20) for _ in range(count)]

    def quiet(self, seconds=0.15):
        """Whether nothing more comes."""
        try:
            self._news.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(deliveries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(deliveries, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(delivering, "_PAUSE_S", 0.001)


class Tenants(World):
    """Two organisations, one skill of acme's, and webhooks."""

    def __init__(self, settings, skill, publisher, state):
        super().__init__(settings)
        assert self.publish(skill, publisher, OWNER).status_code == 201
        self._state = state

    def tell(self, *aliases, who=OWNER, name="acme/weld-seam"):
        """An event for each alias."""
        for alias in aliases:
            answer = self._state(self.as_(who), "alias", name=name, alias=alias, version="1.0.0")
            assert answer.status_code == 200, answer.text

    def add(self, url, who=OWNER, **body):
        answer = self.post(f"/v1/orgs/{who[0]}/webhooks", who, json={"url": url, **body})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def hooks(self):
        return self.get("/v1/orgs/acme/webhooks", OWNER).json()["webhooks"]

    def letters(self, hook):
        answer = self.get(f"/v1/orgs/acme/webhooks/{hook['id']}/dead-letters", OWNER)
        return answer.json()["dead_letters"]

    def retry(self, hook):
        return self.post(f"/v1/orgs/acme/webhooks/{hook['id']}/dead-letters/retry", OWNER)

    def until(self, holds):
        """Wait until something holds of the first webhook; it."""
        deadline = time.monotonic() + 20
        while not holds(self.hooks()[0]):
            assert time.monotonic() < deadline, self.hooks()
            time.sleep(0.01)
        return self.hooks()[0]

    def restart(self):
        """End the server as it is, and start it anew on the same data."""
        self.close()
        self.reopen(self.token)

    def reopen(self, token):
        from starlette.testclient import TestClient

        from neuraverse.registry import create_app

        self.app = create_app(self.settings)
        self.api = TestClient(self.app).__enter__()
        self.registry = self.app.state.registry
        self.token = token


def tenants(settings, **kwargs):
    return Tenants(settings.model_copy(update={"open": False, "webhook_networks": LOOPBACK}), **kwargs)


@pytest.fixture
def parts(tiny_skill, publisher, state):
    return {"skill": tiny_skill, "publisher": publisher, "state": state}


@pytest.fixture(scope="module")
def begun(tmp_path_factory, make_skill, publisher, state):
    """Tenants as they were left, on SQLite and files."""
    folder = tmp_path_factory.mktemp("begun")
    settings = Settings.load(data=folder / "data", collect_hours=0)
    made = tenants(settings, skill=make_skill(folder / "skill"), publisher=publisher, state=state)
    made.close()
    return made


def copied(begun, folder, **settings):
    """The tenants again, in another folder."""
    shutil.copytree(begun.settings.data, folder, dirs_exist_ok=True)
    made = Tenants.__new__(Tenants)
    made.settings = begun.settings.model_copy(update={"data": folder, **settings})
    made._state = begun._state
    made.reopen(begun.token)
    return made


@pytest.fixture
def world(begun, tmp_path):
    made = copied(begun, tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def wary(begun, tmp_path):
    """As `world`, with the settings as they are by default: nothing of ours is sent to."""
    made = copied(begun, tmp_path / "data", webhook_networks=())
    yield made
    made.close()


@pytest.fixture
def stored(settings, parts):
    """On each kind of storage."""
    made = tenants(settings, **parts)
    yield made
    made.close()


def aliases(messages):
    return [message.json["alias"] for message in messages]


# --- what is sent


def test_a_signature_is_that_of_others():
    """The vector that the implementations of the specification share."""
    secret, name = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signed = deliveries.signature(secret, name, "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_is_the_event_of_the_feed_signed(world, receiver):
    hook = world.add(f"{receiver.url}/a/b?c=d")
    world.tell("beta")
    (sent,) = receiver.next()
    assert sent.path == "/a/b?c=d"
    assert sent.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert sent.headers["content-type"] == "application/json"
    event = world.get("/v1/events?after=0", OWNER).json()["events"][-1]
    assert sent.json == event
    assert sent.id == event["cursor"]
    assert abs(int(sent.headers["webhook-timestamp"]) - time.time()) < 60
    kind, _, secret = hook["secret"].partition("_")
    assert kind == "whsec"
    key = base64.b64decode(secret, validate=True)
    assert len(key) >= 24
    content = f"{sent.id}.{sent.headers['webhook-timestamp']}.".encode() + sent.body
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert sent.headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.storages
def test_each_event_comes_in_order_and_until_it_is_taken(stored, receiver):
    stored.add(receiver.url)
    receiver.answers += [500, 429, 302, cut]
    stored.tell("a", "b", "c")
    sent = receiver.next(7)
    assert aliases(sent) == ["a"] * 5 + ["b", "c"]
    assert len({message.id for message in sent}) == 3
    assert {message.path for message in sent} == {"/"}  # the redirect was not followed
    hook = stored.until(lambda hook: hook["attempts"] == 0 and hook["error"] == "")
    assert (hook["next_at"], hook["dead_letters"], hook["disabled_at"]) == ("", 0, None)
    assert receiver.quiet()


def test_what_was_told_before_is_not_sent(world, receiver):
    world.tell("before")
    world.add(receiver.url)
    world.tell("after")
    assert aliases(receiver.next()) == ["after"]


def test_what_is_never_taken_becomes_a_dead_letter(world, receiver):
    hook = world.add(receiver.url)
    receiver.answers += [503] * deliveries.TRIES
    world.tell("a", "b")
    sent = receiver.next(deliveries.TRIES + 1)
    assert aliases(sent) == ["a"] * deliveries.TRIES + ["b"]
    (letter,) = world.letters(hook)
    assert letter["event"] == sent[0].json
    assert (letter["attempts"], letter["error"]) == (deliveries.TRIES, "answered with status 503")
    # Once more: not taken, so it stays.
    receiver.answers += [503]
    assert world.retry(hook).json() == {"retried": 1}
    assert aliases(receiver.next()) == ["a"]
    world.until(lambda hook: not any(letter["again"] for letter in world.letters(hook)))
    (letter,) = world.letters(hook)
    assert letter["attempts"] == deliveries.TRIES + 1
    # And taken.
    assert world.retry(hook).json() == {"retried": 1}
    assert receiver.next()[0].id == sent[0].id
    world.until(lambda hook: hook["dead_letters"] == 0)
    assert world.retry(hook).json() == {"retried": 0}
    world.tell("c")
    assert aliases(receiver.next()) == ["c"]


def test_dead_letters_are_retried_in_order_until_one_is_not_taken(world, receiver, monkeypatch):
    monkeypatch.setattr(deliveries, "TRIES", 1)
    hook = world.add(receiver.url)
    receiver.answers += [500, 500, 500, 204, 500]
    world.tell("a", "b", "c")
    receiver.next(3)
    world.until(lambda hook: hook["dead_letters"] == 3)
    assert world.retry(hook).json() == {"retried": 3}
    assert aliases(receiver.next(2)) == ["a", "b"]
    assert receiver.quiet()
    assert [letter["event"]["alias"] for letter in world.letters(hook)] == ["b", "c"]


def test_a_retry_does_not_wait_for_a_pause(world, receiver, monkeypatch):
    monkeypatch.setattr(deliveries, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(deliveries, "LONGEST_PAUSE_S", 3600.0)
    hook = world.add(receiver.url)
    receiver.answers += [500]
    world.tell("a")
    receiver.next()
    found = world.until(lambda hook: hook["attempts"] == 1)
    assert found["error"] == "answered with status 500"
    assert found["next_at"] > "2"
    assert receiver.quiet()
    world.retry(hook)
    assert aliases(receiver.next()) == ["a"]


def test_pauses_grow_to_an_hour(monkeypatch):
    monkeypatch.undo()
    pauses = [
        min(deliveries.LONGEST_PAUSE_S, deliveries.FIRST_PAUSE_S * deliveries._GROWTH**n)
        for n in range(deliveries.TRIES - 1)
    ]
    assert pauses == [5.0, 20.0, 80.0, 320.0, 1280.0, 3600.0, 3600.0]


def test_dead_letters_are_limited(world, receiver, monkeypatch):
    monkeypatch.setattr(deliveries, "TRIES", 1)
    monkeypatch.setattr(deliveries, "MAX_DEAD_LETTERS", 2)
    hook = world.add(receiver.url)
    receiver.answers += [500] * 4
    world.tell("a", "b", "c", "d")
    receiver.next(4)
    world.until(lambda hook: world.letters(hook)[-1:] and world.letters(hook)[-1]["event"]["alias"] == "d")
    assert [letter["event"]["alias"] for letter in world.letters(hook)] == ["c", "d"]


def test_a_receiver_that_is_gone_ends_it(world, receiver):
    hook = world.add(receiver.url)
    receiver.answers += [410]
    world.tell("a", "b")
    receiver.next()
    found = world.until(lambda hook: hook["disabled_at"])
    assert "status 410" in found["error"]
    assert receiver.quiet()
    assert world.retry(hook).status_code == 409
    entries = world.get("/v1/orgs/acme/audit", OWNER).json()["entries"]
    assert ("webhook.disable", hook["id"]) in [(entry["action"], entry["target"]) for entry in entries]


def test_one_that_does_not_answer_keeps_no_other_waiting(world, receiver):
    slow = Receiver()
    try:
        done = threading.Event()
        slow.answers.append(lambda _: done.wait(20) and 204)
        world.add(slow.url)
        world.add(receiver.url)
        world.tell("a", "b")
        assert aliases(receiver.next(2)) == ["a", "b"]
        assert aliases(slow.next()) == ["a"]
        done.set()
        assert aliases(slow.next()) == ["b"]
    finally:
        slow.close()


# --- who sees what


def test_filters(world, receiver, make_skill, publisher, tmp_path):
    digest = "sha256:" + "ab" * 32
    for path, body in (
        ("org", {"org": "acme"}),
        ("other-org", {"org": "rival"}),
        ("skill", {"skill": "acme/weld-seam"}),
        ("other-skill", {"skill": "acme/weld"}),
        ("type", {"types": ["alias", "yanked"]}),
        ("other-type", {"types": ["published"]}),
        ("interface", {"interface": world.get("/v1/events?after=0", OWNER).json()["events"][0]["interface"]}),
        ("other-interface", {"interface": digest}),
    ):
        world.add(f"{receiver.url}/{path}", **body)
    world.tell("a")
    assert {message.path[1:] for message in receiver.next(4)} == {"org", "skill", "type", "interface"}
    other = make_skill(tmp_path / "other", name="grind")
    assert world.publish(other, publisher, OWNER).status_code == 201
    same = {message.path[1:] for message in receiver.next(3)}
    assert same == {"org", "other-type", "interface"}
    assert receiver.quiet()


def test_only_what_the_organisation_sees(world, receiver, make_skill, publisher, tmp_path, state):
    """Private skills of others never; those for whoever signs in, as for a reader of the organisation."""
    made = {}
    for number, visibility in enumerate(("public", "network", "private")):
        made[visibility] = make_skill(tmp_path / visibility, org="rival", name=visibility, seed=number)
        answer = world.publish(made[visibility], publisher, ("rival", "owner"), visibility=visibility)
        assert answer.status_code == 201
    world.add(receiver.url)
    for visibility in made:
        world.tell("a", who=("rival", "owner"), name=f"rival/{visibility}")
    world.tell("mine")
    sent = receiver.next(3)
    assert [message.json["name"] for message in sent] == ["rival/public", "rival/network", "acme/weld-seam"]
    # What is hidden is not told any more, and a dead letter of it is neither shown nor sent.
    world.patch("/v1/skills/rival/public", ("rival", "owner"), json={"visibility": "private"})
    world.tell("b", who=("rival", "owner"), name="rival/public")
    assert receiver.quiet()


def test_a_dead_letter_of_what_is_hidden_since(world, receiver, make_skill, publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(deliveries, "TRIES", 1)
    skill = make_skill(tmp_path / "theirs", org="rival", name="theirs")
    assert world.publish(skill, publisher, ("rival", "owner"), visibility="public").status_code == 201
    hook = world.add(receiver.url)
    receiver.answers += [500]
    world.tell("a", who=("rival", "owner"), name="rival/theirs")
    receiver.next()
    world.until(lambda hook: hook["dead_letters"] == 1)
    assert len(world.letters(hook)) == 1
    world.patch("/v1/skills/rival/theirs", ("rival", "owner"), json={"visibility": "private"})
    assert world.letters(hook) == []
    world.tell("mine")
    assert aliases(receiver.next()) == ["mine"]
    world.retry(hook)
    world.until(lambda hook: hook["dead_letters"] == 0)
    assert receiver.quiet()


def test_an_owner_who_is_none_any_more(world, receiver):
    world.add(receiver.url)
    world.tell("a")
    receiver.next()
    code = world.post("/v1/orgs/acme/invitations", OWNER, json={"role": "owner"}).json()["code"]
    world.token["second"] = world.join(code, "second")
    answer = world.put("/v1/orgs/acme/members/owner-acme", "second", json={"role": "publisher"})
    assert answer.status_code == 204
    world.tell("b")
    assert receiver.quiet()
    (hook,) = world.get("/v1/orgs/acme/webhooks", "second").json()["webhooks"]
    assert "no owner any more" in hook["error"]
    assert hook["made_by"] == "owner-acme"
    assert world.get("/v1/orgs/acme/webhooks", OWNER).status_code == 403


def test_they_are_the_organisation_s_own(world, receiver, problem):
    hook = world.add(receiver.url)
    one = f"/v1/orgs/rival/webhooks/{hook['id']}"
    for method, path in (
        ("DELETE", one),
        ("GET", f"{one}/dead-letters"),
        ("POST", f"{one}/dead-letters/retry"),
        ("POST", f"{one}/test"),
    ):
        problem(world.ask(method, path, ("rival", "owner")), 404, "no-such-webhook")
        problem(world.ask(method, path.replace("rival", "acme"), ("acme", "maintainer")), 403)
    assert world.delete(f"/v1/orgs/acme/webhooks/{hook['id']}", OWNER).status_code == 204
    assert world.hooks() == []
    world.tell("a")
    assert receiver.quiet()


def test_there_are_so_many_and_no_more(world, receiver, problem):
    for _ in range(MAX_WEBHOOKS):
        world.add(receiver.url)
    answer = world.post("/v1/orgs/acme/webhooks", OWNER, json={"url": receiver.url})
    assert "which is the most" in problem(answer, 409, "too-many")["detail"]
    world.add(receiver.url, who=("rival", "owner"))


def test_a_test_message(world, receiver):
    hook = world.add(receiver.url)
    path = f"/v1/orgs/acme/webhooks/{hook['id']}/test"
    assert world.post(path, OWNER).json() == {"taken": True, "status": 204, "error": ""}
    (sent,) = receiver.next()
    assert (sent.json["type"], sent.json["webhook"]) == ("test", hook["id"])
    signed = deliveries.signature(hook["secret"], sent.id, sent.headers["webhook-timestamp"], sent.body)
    assert sent.headers["webhook-signature"] == signed
    receiver.answers += [404]
    assert world.post(path, OWNER).json() == {"taken": False, "status": 404, "error": ""}
    receiver.close()
    told = world.post(path, OWNER).json()
    assert told == {"taken": False, "status": None, "error": "the connection was refused or broke"}


def test_the_types_are_those_of_events():
    assert NewWebhook.model_json_schema()["properties"]["types"]["items"]["enum"] == list(TYPES)


def test_the_secret_is_given_out_once(world, receiver, caplog):
    caplog.set_level(logging.DEBUG)
    hook = world.add(receiver.url)
    receiver.answers += [500] * deliveries.TRIES
    world.tell("a", "b")
    receiver.next(deliveries.TRIES + 1)
    answers = [
        world.get(f"/v1/orgs/acme/{path}", OWNER).text
        for path in ("webhooks", f"webhooks/{hook['id']}/dead-letters", "audit")
    ]
    world.until(lambda hook: hook["attempts"] == 0)
    with sqlite3.connect(world.settings.data / "registry.db") as db:
        db.execute("ALTER TABLE webhooks RENAME COLUMN secret TO hidden")
    failed = world.post("/v1/orgs/acme/webhooks", OWNER, json={"url": receiver.url})
    assert failed.status_code in (500, 503, 507)
    logged = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    assert "no column named secret" in logged
    assert "whsec_" not in "".join([*answers, logged, failed.text])


def test_a_cursor_follows_what_is_for_others(world, receiver, monkeypatch):
    """Else a process that starts would look through all that was told since."""
    monkeypatch.setattr(deliveries, "_FAR_US", 0)
    world.add(receiver.url, skill="acme/nothing")
    world.tell("a", "b")
    newest = world.get("/v1/events?after=0", OWNER).json()["events"][-1]["id"]

    def cursor(_):
        with sqlite3.connect(world.settings.data / "registry.db") as db:
            return db.execute("SELECT cursor FROM webhooks").fetchone()[0]

    world.until(lambda hook: cursor(hook) == newest)
    assert receiver.quiet()


# --- processes that end, and several of them


def test_a_restart_sends_again_what_was_under_way(world, receiver):
    world.add(receiver.url)
    cut = threading.Event()
    receiver.answers.append(lambda _: cut.wait(20) and 204)
    world.tell("a", "b")
    (first,) = receiver.next()
    world.restart()
    cut.set()
    sent = receiver.next(2)
    assert aliases(sent) == ["a", "b"]
    assert sent[0].id == first.id


def test_a_lease_of_a_server_that_was_killed(world, receiver):
    hook = world.add(receiver.url)
    world.close()
    with sqlite3.connect(world.settings.data / "registry.db") as db:
        db.execute("UPDATE webhooks SET lease_until = '2999-01-01T00:00:00.000Z', attempts = 3")
    world.reopen(world.token)
    world.tell("a")
    assert aliases(receiver.next()) == ["a"]
    assert world.until(lambda hook: hook["attempts"] == 0)["id"] == hook["id"]


def test_attempts_survive_a_restart(world, receiver, monkeypatch):
    monkeypatch.setattr(deliveries, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(deliveries, "LONGEST_PAUSE_S", 3600.0)
    world.add(receiver.url)
    receiver.answers += [500]
    world.tell("a")
    receiver.next()
    before = world.until(lambda hook: hook["attempts"] == 1)
    world.restart()
    assert world.hooks() == [before]
    assert receiver.quiet()


def test_one_at_a_time_has_the_lease(world, receiver):
    world.close()  # whatever follows is ours to do
    asyncio.run(_leases(world, receiver))
    world.reopen(world.token)


async def _leases(world, receiver):
    from neuraverse.registry.database import Database
    from neuraverse.registry.events import Wanted
    from neuraverse.registry.tenants.access import Access
    from neuraverse.registry.webhooks.deliveries import Outcome, release, step
    from neuraverse.registry.webhooks.hooks import add

    database = Database(world.settings.database_url)
    await database.open()
    owner = await Access(database, is_open=False).caller(f"Bearer {world.token[OWNER]}")
    hook = (await database.write(add, owner, "acme", receiver.url, Wanted()))["id"]
    assert await database.write(step, hook) is None  # there is nothing to send
    await database.write(_told)
    mine = await database.write(step, hook)
    assert json.loads(mine.body)["alias"] == "a"
    assert await database.write(step, hook) is None  # another process has to wait
    await database.write(release, mine)
    theirs = await database.write(step, hook)
    assert theirs.event == mine.event
    # The first comes back, too late: what it says is not recorded.
    assert await database.write(step, hook, (mine, Outcome(status=500))) is None
    following = await database.write(step, hook, (theirs, Outcome(status=204)))
    assert json.loads(following.body)["alias"] == "b"
    assert await database.write(step, hook, (following, Outcome(status=204)), go_on=False) is None
    await database.close()


def _told(db):
    from neuraverse.registry.events import tell
    from neuraverse.registry.tables import skills

    skill = db.execute(select(skills)).one()
    for alias in ("a", "b", "c"):
        tell(db, skill.org_id, skill.id, "alias", "acme/weld-seam", "1.0.0", "", "", {"alias": alias})


def test_two_processes_send_each_event_once(postgres, data_dir, parts, receiver):
    settings = Settings.load(data=data_dir, database=postgres.new(), collect_hours=0)
    first = tenants(settings, **parts)
    second = Tenants.__new__(Tenants)
    second.settings = first.settings
    second.reopen(first.token)
    try:
        first.add(receiver.url)
        told = [f"a{number}" for number in range(12)]
        first.tell(*told)
        assert aliases(receiver.next(len(told))) == told
        assert receiver.quiet()
    finally:
        second.close()
        first.close()


@contextlib.contextmanager
def over(world, url):
    """The same tenants, asked over HTTP, as another process serves them."""
    with httpx.Client(base_url=url, timeout=30) as world.api:
        yield


SERVED = {"open": False, "webhook_networks": "127.0.0.0/8"}


def test_a_server_that_is_killed_in_the_middle_of_a_delivery_sends_it_again(world, receiver, start):
    """What was under way comes once more with the same id, and all that follows in order."""
    world.close()
    cut = threading.Event()
    process, url = start(data=world.settings.data, **SERVED)
    with over(world, url):
        world.add(receiver.url)
        receiver.answers.append(lambda _: cut.wait(30) and 204)
        world.tell("a", "b")
        (first,) = receiver.next()
        process.kill()
        process.wait()
    process, url = start(data=world.settings.data, **SERVED)
    with over(world, url):
        world.tell("c")
        sent = receiver.next(3)
        cut.set()
        assert aliases(sent) == ["a", "b", "c"]
        assert (sent[0].id, sent[0].body) == (first.id, first.body)
        assert receiver.quiet()
        process.kill()
        process.wait()
    world.reopen(world.token)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_server_goes_on_for_one_that_was_killed(postgres, data_dir, parts, receiver, start):
    """Once the lease of the killed one has ended: a minute, as long as a delivery may take."""
    settings = Settings.load(data=data_dir, database=postgres.new(), collect_hours=0)
    world = tenants(settings, **parts)
    world.close()
    served = {**SERVED, "data": data_dir, "database": settings.database_url}
    cut = threading.Event()
    killed, url = start(**served)
    with over(world, url):
        world.add(receiver.url)
        receiver.answers.append(lambda _: cut.wait(200) and 204)
        world.tell("a", "b")
        (first,) = receiver.next()
    with over(world, start(**served)[1]):
        killed.kill()
        killed.wait()
        world.tell("c")
        assert receiver.quiet(3.0)  # the lease holds
        sent = [receiver._news.get(timeout=120) for _ in range(3)]
        cut.set()
    assert aliases(sent) == ["a", "b", "c"]
    assert sent[0].id == first.id
    assert receiver.quiet()


# --- where nothing is sent


FORBIDDEN = [
    *("127.0.0.1", "127.8.9.1", "localhost", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[fe80::1]", "[fc00::1]"),
    *("[fec0::1]", "[ff02::1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001::1]"),
    *("[2001:db8::1]", "[fd00:ec2::254]", "no-such-host.invalid"),
]


@pytest.mark.parametrize("host", FORBIDDEN)
def test_addresses_of_ours_are_refused(host):
    target = outbound.Target.parse(f"http://{host}:8420/")
    with pytest.raises(NetworkError, match=r"has no address that is sent to - only the public Internet is"):
        asyncio.run(outbound.addresses(target, ()))


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("[::ffff:127.0.0.1]", "127.0.0.0/8"),
        ("10.1.2.3", "10.1.0.0/16"),
        ("[fd00::7]", "fd00::/8"),
        ("1.1.1.1", "127.0.0.0/8"),
        ("[2606:4700:4700::1111]", "127.0.0.0/8"),
        ("[64:ff9b::1.1.1.1]", "127.0.0.0/8"),
    ],
)
def test_addresses_that_are_sent_to(host, network):
    target = outbound.Target.parse(f"http://{host}/")
    found = asyncio.run(outbound.addresses(target, [ipaddress.ip_network(network)]))
    assert [ipaddress.ip_address(each) for each in found] == [ipaddress.ip_address(host.strip("[]"))]


@pytest.mark.parametrize(
    "url",
    [
        *("", "hooks.example", "ftp://hooks.example/", "file:///etc/passwd", "//hooks.example", "http://"),
        *("http:///x", "http://user@hooks.example/", "http://user:pass@hooks.example/", "http://@a/"),
        *(
            "http://hooks.example/#x",
            "http://hooks.example/a b",
            "http://hooks.example/\n",
            "http://häuser.example/",
        ),
        *("http://hooks.example:99999/", "http://[::1/", "http://hooks.example\\@127.0.0.1/", "gopher://a"),
        "http://hooks.example/" + "x" * 2000,
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(UsageError, match="the address "):
        outbound.Target.parse(url)


def test_a_webhook_to_an_address_of_ours_is_refused(wary, receiver, problem):
    for url in (
        receiver.url,
        f"http://localhost:{receiver.port}",
        "http://169.254.169.254/latest/meta-data",
    ):
        answer = wary.post("/v1/orgs/acme/webhooks", OWNER, json={"url": url})
        found = problem(answer, 422, "address")
        assert (found["field"], "webhook_networks" in found["remedy"]) == ("url", True)
    problem(wary.post("/v1/orgs/acme/webhooks", OWNER, json={"url": "ftp://x"}), 422, "address")
    # Who may not add any cannot let names be resolved, either.
    problem(wary.post("/v1/orgs/acme/webhooks", ("rival", "owner"), json={"url": receiver.url}), 404)
    assert receiver.got == []


@pytest.fixture
def names(monkeypatch):
    """What names mean: ``names["hooks.example"] = [["1.1.1.1"], ["127.0.0.1"]]``, one list a time."""
    known, asked = {}, []
    real = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        if host not in known:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        family = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (family[ipaddress.ip_address(each).version], socket.SOCK_STREAM, 6, "", (each, port))
            for each in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return SimpleNamespace(known=known, asked=asked)


def test_a_name_that_means_something_else_later(wary, receiver, names, monkeypatch):
    """DNS rebinding: what it meant when it was added does not count."""
    monkeypatch.setattr(deliveries, "TRIES", 1)
    names.known["hooks.example"] = [["1.1.1.1"], ["127.0.0.1"]]
    hook = wary.add(f"http://hooks.example:{receiver.port}/")
    wary.tell("a")
    wary.until(lambda hook: hook["dead_letters"] == 1)
    (letter,) = wary.letters(hook)
    assert letter["error"] == "hooks.example has no address that is sent to"
    assert receiver.got == []


def test_a_name_is_resolved_once_and_that_address_is_used(receiver, names):
    names.known["hooks.example"] = [["10.0.0.1", "127.0.0.1"], ["169.254.169.254"]]
    target = outbound.Target.parse(f"http://hooks.example:{receiver.port}/x")
    status = asyncio.run(outbound.post(target, {}, b"{}", LOOPBACK))
    assert (status, names.asked) == (204, ["hooks.example"])
    assert receiver.got[0].headers["host"] == f"hooks.example:{receiver.port}"


def test_the_next_address_is_tried(receiver, names):
    names.known["hooks.example"] = [["127.0.0.2", "127.0.0.1"]]  # nobody listens at the first
    target = outbound.Target.parse(f"http://hooks.example:{receiver.port}/x")
    assert asyncio.run(outbound.post(target, {}, b"{}", LOOPBACK)) == 204


@contextlib.contextmanager
def speaking(*pieces, endless=b"", tls=None):
    """A server that says something, and then something else for ever; its address and how much it got out."""
    told = SimpleNamespace(sent=0, names=[])
    over = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(10)

    def serve():
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            connection = stack.enter_context(server.accept()[0])
            connection.settimeout(5)
            if tls is not None:
                connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
            while endless and not over.is_set():
                told.sent += connection.send(endless)
            over.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    told.url = f"://127.0.0.1:{server.getsockname()[1]}/"
    try:
        yield told
    finally:
        over.set()
        server.close()
        thread.join()


def sent_to(url, seconds=5.0):
    return asyncio.run(outbound.post(outbound.Target.parse(url), {}, b"{}", LOOPBACK, seconds))


@pytest.mark.parametrize(
    ("pieces", "endless", "says"),
    [
        ((), b"", "no answer within 0.3 s"),
        ((b"HTTP/1.1 200 OK\r\n",), b"", "no answer within 0.3 s"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n\r\n",), b"", "none of HTTP"),
        ((b"HTTP/1.1 200 OK\r\n",), b"X-Y: z\r\n" * 100, "none of HTTP, or its head is too long"),
        ((), b"HTTP/1.1 100 Continue\r\n\r\n" * 100, "none of HTTP, or its head is too long"),
        ((), b"x" * 1000, "none of HTTP, or its head is too long"),
    ],
)
def test_answers_are_bounded(pieces, endless, says):
    begun = time.monotonic()
    with speaking(*pieces, endless=endless) as told, pytest.raises(NetworkError, match=says):
        sent_to(f"http{told.url}", 0.3 if "0.3" in says else 5.0)
    assert time.monotonic() - begun < 4.0


def test_a_body_without_end_is_not_read():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with speaking(head, endless=b"5\r\nhello\r\n" * 1000) as told:
        assert sent_to(f"http{told.url}") == 200
    assert told.sent < 100 * MAX_OUTBOUND_ANSWER + (8 << 20)  # what the system takes in between


def test_tls_is_spoken_with_the_name(authority, names, monkeypatch):  # noqa: F811
    context = ssl.create_default_context(cafile=authority.root)
    monkeypatch.setattr(outbound, "_certificates", lambda: context)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.issue(["hooks.example"]))
    heard = []
    tls.sni_callback = lambda _, name, __: heard.append(name)
    names.known |= {"hooks.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]}
    answer = b"HTTP/1.1 202 Accepted\r\n\r\n"
    with speaking(answer, tls=tls) as told:
        assert sent_to(f"https{told.url.replace('127.0.0.1', 'hooks.example')}") == 202
    with speaking(answer, tls=tls) as told, pytest.raises(NetworkError, match="TLS failed: "):
        sent_to(f"https{told.url.replace('127.0.0.1', 'other.example')}")
    assert heard == ["hooks.example", "other.example"]
    with speaking(answer) as told, pytest.raises(NetworkError, match=r"TLS failed|refused or broke"):
        sent_to(f"https{told.url}", 1.0)


def test_the_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURAVERSE_REGISTRY_WEBHOOK_NETWORKS", "10.0.0.0/8, fd00::/8")
    found = Settings.load()
    assert [str(network) for network in found.webhook_networks] == ["10.0.0.0/8", "fd00::/8"]
    monkeypatch.delenv("NEURAVERSE_REGISTRY_WEBHOOK_NETWORKS")
    file = tmp_path / "registry.toml"
    file.write_text(found.as_toml())
    assert Settings.load(file).webhook_networks == found.webhook_networks
    monkeypatch.setenv("NEURAVERSE_REGISTRY_WEBHOOK_NETWORKS", "10.0.0.1/8")
    with pytest.raises(ConfigError, match="NEURAVERSE_REGISTRY_WEBHOOK_NETWORKS: "):
        Settings.load()
