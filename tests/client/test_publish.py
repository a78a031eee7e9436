"""Publishing over networks that break, and to registries that lie."""

from __future__ import annotations

import json
import threading

import httpx
import pytest

from neuraverse.client import publishing
from neuraverse.errors import IntegrityError, NetworkError, NotFoundError, RegistryError
from tests.client.test_pull import NAME

JSON = {"content-type": "application/json"}


@pytest.fixture
def in_pieces(monkeypatch):
    """As a large skill goes up."""
    monkeypatch.setattr(publishing, "PARCEL_BYTES", 0)
    monkeypatch.setattr(publishing, "PIECE_BYTES", 1000)
    monkeypatch.setattr(publishing, "_PAUSE_S", 0.001)


def failing(method, ending, times=1, before=False):
    """Break the first `times` requests of a kind, after or before they arrive."""
    left = [times]

    def meddle(request, respond):
        if request.method == method and request.url.path.endswith(ending) and left[0]:
            left[0] -= 1
            if not before:
                respond().close()
            raise httpx.ReadError("cut")
        return respond()

    return meddle


class Line(httpx.BaseTransport):
    """Like the meddler of the other tests, but may break a request before it arrives."""

    def __init__(self, meddle):
        self._inner, self._meddle, self._lock = httpx.HTTPTransport(), meddle, threading.Lock()
        self.requests = []

    def handle_request(self, request):
        with self._lock:
            self.requests.append(request)
            return self._meddle(request, lambda: self._inner.handle_request(request))

    def close(self):
        self._inner.close()


@pytest.fixture
def over(url, publisher):
    """A publisher behind a line: ``over(meddle)`` gives the client and the line."""
    from neuraverse.client import Client

    made = []

    def make(meddle=lambda request, respond: respond()):
        line = Line(meddle)
        made.append(httpx.Client(transport=line))
        made.append(Client(url, home=publisher.home, http=made[-1]))
        return made[-1], line

    yield make
    for each in reversed(made):
        each.close()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_cut_upload_goes_on(over, robot, tiny_skill, in_pieces, method, times, before):
    client, line = over(failing(method, "", times, before))
    steps = []
    assert client.publish(tiny_skill.path, progress=lambda *s: steps.append(s)).digest == tiny_skill.digest
    assert robot.pull(NAME).digest == tiny_skill.digest
    total = sum(entry.size for entry in tiny_skill.manifest.files.values())
    assert steps[-1] == (total, total)
    assert all(0 <= done <= total for done, _ in steps)
    asked = [r for r in line.requests if r.method == "GET" and "/uploads/" in r.url.path]
    assert len(asked) >= 1


def test_where_it_stands_may_be_cut_as_well(over, robot, tiny_skill, in_pieces):
    """A network that is gone for a moment takes several requests with it."""
    gone = [4]
    begun = threading.Event()

    def meddle(request, respond):
        if request.method == "PATCH":
            begun.set()
        if begun.is_set() and gone[0]:
            gone[0] -= 1
            raise httpx.ConnectError("no network")
        return respond()

    client, _ = over(meddle)
    assert client.publish(tiny_skill.path).digest == tiny_skill.digest
    assert robot.pull(NAME).digest == tiny_skill.digest


def test_a_network_that_is_gone_for_good(over, robot, tiny_skill, in_pieces):
    client, _ = over(failing("PATCH", "", 10**9, before=True))
    with pytest.raises(NetworkError):
        client.publish(tiny_skill.path)
    with pytest.raises(NotFoundError):
        robot.resolve(NAME)
    again, _ = over()
    assert again.publish(tiny_skill.path).digest == tiny_skill.digest


@pytest.mark.parametrize("offset", [0, -1, None, "5", True, 1.5])
def test_a_registry_that_takes_nothing(over, net, tiny_skill, in_pieces, offset):
    """It says that it is where it was, again and again."""

    def meddle(request, respond):
        response = respond()
        if request.method in ("PATCH", "GET") and "/uploads/" in request.url.path:
            return net.replaced(response, json.dumps({"offset": offset}).encode(), 200, **JSON)
        return response

    client, line = over(meddle)
    with pytest.raises(NetworkError):
        client.publish(tiny_skill.path)
    assert len(line.requests) < 100


def test_other_bytes_arrived(over, net, tiny_skill, in_pieces):
    def meddle(request, respond):
        if request.method == "PATCH":
            spoilt = bytes([request.content[0] ^ 1]) + request.content[1:]
            request = httpx.Request("PATCH", request.url, headers=request.headers, content=spoilt)
            with httpx.Client() as http:
                answer = http.send(request)
            return httpx.Response(answer.status_code, stream=httpx.ByteStream(answer.content), headers=JSON)
        return respond()

    client, _ = over(meddle)
    with pytest.raises(RegistryError):
        client.publish(tiny_skill.path)


def test_a_registry_that_publishes_something_else(over, net, tiny_skill):
    said = json.dumps({"name": NAME, "version": "1.0.0", "digest": "sha256:" + "0" * 64}).encode()

    def meddle(request, respond):
        response = respond()
        if request.method == "POST" and request.url.path == "/v1/skills":
            return net.replaced(response, said, 201, **JSON)
        return response

    client, _ = over(meddle)
    with pytest.raises(IntegrityError, match="not what was sent"):
        client.publish(tiny_skill.path)


@pytest.mark.parametrize("missing", [None, 5, {}, "x"])
def test_a_list_of_missing_files_that_is_none(over, net, tiny_skill, in_pieces, missing):
    def meddle(request, respond):
        response = respond()
        if request.url.path == "/v1/blobs/missing":
            return net.replaced(response, json.dumps({"missing": missing}).encode(), 200, **JSON)
        return response

    client, _ = over(meddle)
    with pytest.raises(NetworkError, match="list of missing blobs"):
        client.publish(tiny_skill.path)


def test_ctrl_c_ends_all_uploads_soon(over, tiny_skill, in_pieces):
    """What the progress raises comes from where Ctrl-C would; the other files do not go on to their end."""
    client, line = over()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.publish(tiny_skill.path, progress=interrupt)
    assert sum(r.method == "PATCH" for r in line.requests) <= 8
    assert not any(r.method == "POST" and r.url.path == "/v1/skills" for r in line.requests)
    assert not [t for t in threading.enumerate() if t.name.startswith("upload")]
