"""A live registry, a publisher and a robot; and networks that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading

import httpx
import pytest

from neuraverse.client import Client
from neuraverse.registry import background


@pytest.fixture
def url(tmp_path):
    with background(tmp_path / "data") as address:
        yield address


@pytest.fixture
def author(url, publisher):
    """The publisher's client."""
    with Client(url, home=publisher.home) as client:
        yield client


@pytest.fixture
def robot(url, key_store):
    """The client of a robot that trusts the publisher."""
    with Client(url, home=key_store.home) as client:
        yield client


class Meddler(httpx.BaseTransport):
    """Passes requests on and lets a function change each response; remembers the requests."""

    def __init__(self, meddle):
        self._inner = httpx.HTTPTransport()
        self._meddle = meddle
        self.requests = []

    def handle_request(self, request):
        self.requests.append(request)
        return self._meddle(request, self._inner.handle_request(request))

    def close(self):
        self._inner.close()


class Cut(httpx.SyncByteStream):
    """A body that breaks after so many bytes."""

    def __init__(self, stream, allowed):
        self._stream = stream
        self._allowed = allowed

    def __iter__(self):
        for chunk in self._stream:
            if len(chunk) > self._allowed:
                yield chunk[: self._allowed]
                raise httpx.ReadError("the cable was pulled")
            self._allowed -= len(chunk)
            yield chunk

    def close(self):
        self._stream.close()


def cut(response, allowed):
    """The response, whose body breaks after `allowed` bytes."""
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=Cut(response.stream, allowed),
        extensions=response.extensions,
    )


def replaced(response, content, status=None, **headers):
    """A response with another body."""
    response.close()
    kept = {k: v for k, v in response.headers.items() if k not in ("content-length", "etag")}
    return httpx.Response(
        status or response.status_code, headers=kept | headers, stream=httpx.ByteStream(content)
    )


@pytest.fixture
def through(url, key_store):
    """A client behind a meddler: ``through(meddle, home=)`` gives the client and the meddler."""
    with contextlib.ExitStack() as stack:

        def make(meddle=lambda request, response: response, home=key_store.home):
            meddler = Meddler(meddle)
            http = stack.enter_context(httpx.Client(transport=meddler))
            return stack.enter_context(Client(url, home=home, http=http)), meddler

        yield make


@pytest.fixture
def net():
    """Ways to meddle."""

    class Net:
        pass

    Net.cut, Net.replaced = staticmethod(cut), staticmethod(replaced)
    return Net


@pytest.fixture
def answering():
    """A server that sends fixed bytes to whoever connects: ``answering(data, hold=False)`` gives its URL."""
    with contextlib.ExitStack() as stack:

        def make(data, hold=False):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            done = threading.Event()

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        with connection:
                            connection.settimeout(5)
                            connection.recv(65536)
                            connection.sendall(data)
                            if hold:
                                done.wait(30)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()

            def close():
                done.set()
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                thread.join()

            stack.callback(close)
            return f"http://127.0.0.1:{server.getsockname()[1]}"

        yield make
