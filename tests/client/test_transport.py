"""Whatever a registry, or what sits in its place, does: one error that says what is wrong and what to do."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from neuraverse.client import Client, transport
from neuraverse.errors import (
    ConflictError,
    NetworkError,
    NotFoundError,
    RegistryError,
    UsageError,
)


def client_of(handler, home):
    return Client(
        "http://registry.test", home=home, http=httpx.Client(transport=httpx.MockTransport(handler))
    )


def answer(status=200, content=b"{}", kind="application/json", **headers):
    return lambda _: httpx.Response(
        status, stream=httpx.ByteStream(content), headers={"content-type": kind, **headers}
    )


def problem(status, detail="it is so", remedy="do so"):
    body = {"status": status, "detail": detail, "remedy": remedy}
    return answer(status, json.dumps(body).encode(), "application/problem+json")


def test_no_registry(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun = time.monotonic()
    with Client(f"http://127.0.0.1:{port}", home=tmp_path) as client, pytest.raises(NetworkError) as caught:
        client.search()
    assert f"cannot reach a registry at http://127.0.0.1:{port}" in caught.value.message
    assert "neuraverse serve" in caught.value.remedy
    assert time.monotonic() - begun < 5.0


def test_no_such_host(tmp_path):
    client = Client("http://no-such-host.invalid", home=tmp_path)
    with (
        client,
        pytest.raises(NetworkError, match=r"cannot reach a registry at http://no-such-host\.invalid"),
    ):
        client.resolve("acme/weld")


@pytest.mark.parametrize(
    "url", ["registry", "ftp://x", "http://", "http://x?y=1", "http:///x", "file:///etc", "x:1"]
)
def test_what_is_no_address(url, tmp_path):
    with pytest.raises(UsageError, match="no address of a registry"):
        Client(url, home=tmp_path)


def test_the_address_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURAVERSE_REGISTRY", "http://there:1/")
    with Client(home=tmp_path) as client:
        assert client.url == "http://there:1"
    monkeypatch.delenv("NEURAVERSE_REGISTRY")
    with Client(home=tmp_path) as client:
        assert client.url == "http://127.0.0.1:8420"


def test_a_registry_on_this_machine_needs_no_proxy(url, monkeypatch, tmp_path):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(url, home=tmp_path) as client:
        assert client.search() == []
    with Client("http://registry.invalid", home=tmp_path) as client, pytest.raises(NetworkError):
        client.search()


def test_a_slow_registry(answering, monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "READ_S", 0.2)
    url = answering(b"", hold=True)
    with Client(url, home=tmp_path) as client, pytest.raises(NetworkError, match=r"was silent for 0\.2 s"):
        client.search()


def test_a_dripping_registry(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "ANSWER_S", 0.1)

    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                time.sleep(0.02)
                yield b" "

    def handler(_):
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=Drip())

    with pytest.raises(NetworkError, match=r"took more than 0\.1 s"):
        client_of(handler, tmp_path).search()


def test_an_endless_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 10_000)
    taken = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            nonlocal taken
            while True:
                taken += 1000
                yield b" " * 1000

    def handler(_):
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=Endless())

    with pytest.raises(NetworkError, match="more than 10000 bytes"):
        client_of(handler, tmp_path).search()
    assert taken < 1_000_000


@pytest.mark.parametrize(
    "handler",
    [
        answer(200, b"<html>hello", "text/html"),
        answer(200, b"", ""),
        answer(200, b"{", "application/json"),
        answer(200, b"[" * 100_000, "application/json"),
        answer(200, b"[]", "application/json"),
        answer(404, b"<html>not here", "text/html"),
        answer(302, b"", "text/html", location="http://elsewhere.test/"),
        answer(401, b"", "text/html"),
        answer(404, b"no json", "application/problem+json"),
        answer(200, b"\x1f\x8b\x08broken", "application/json", **{"content-encoding": "gzip"}),
    ],
)
def test_something_else_answers(handler, tmp_path):
    with pytest.raises(NetworkError, match="does not answer as a neuraverse registry") as caught:
        client_of(handler, tmp_path).search()
    assert "http://registry.test" in caught.value.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RegistryError),
        (403, RegistryError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, RegistryError),
        (422, RegistryError),
        (507, RegistryError),
        (500, NetworkError),
        (503, NetworkError),
        (429, NetworkError),
    ],
)
def test_refusals_carry_reason_and_remedy(status, kind, tmp_path):
    with pytest.raises(kind) as caught:
        client_of(problem(status), tmp_path).search()
    assert type(caught.value) is kind
    assert "it is so" in caught.value.message
    assert caught.value.remedy == "do so"


def test_a_bad_gateway_is_worth_a_retry(tmp_path):
    with pytest.raises(NetworkError, match="answered with status 502 - try again later"):
        client_of(answer(502, b"<html>", "text/html"), tmp_path).search()


def test_redirects_are_not_followed_and_tokens_stay(tmp_path):
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(
            302, headers={"location": "http://elsewhere.test/"}, stream=httpx.ByteStream(b"")
        )

    http = httpx.Client(transport=httpx.MockTransport(handler), follow_redirects=True)
    client = Client("http://registry.test", home=tmp_path, http=http, token="secret")
    with client, pytest.raises(NetworkError) as caught:
        client.search()
    assert [r.url.host for r in seen] == ["registry.test"]
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "page",
    [{"skills": 5, "next": None}, {"skills": [5], "next": None}, {"skills": [{}], "next": None}, {}],
)
def test_malformed_lists(page, tmp_path):
    with pytest.raises(NetworkError):
        client_of(answer(content=json.dumps(page).encode()), tmp_path).search()


def test_a_cursor_that_does_not_move_ends_the_search(tmp_path):
    page = json.dumps({"skills": [], "next": "a/b"}).encode()
    assert client_of(answer(content=page), tmp_path).search() == []


@pytest.mark.parametrize(
    "page", [{}, {"events": [], "next": "x"}, {"events": {}, "next": 1}, {"events": [{}], "next": 1}]
)
def test_malformed_events(page, tmp_path):
    with pytest.raises(NetworkError):
        client_of(answer(content=json.dumps(page).encode()), tmp_path).events()
