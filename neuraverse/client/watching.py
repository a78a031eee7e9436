"""Following the event feed: stream while that works, poll in between, wait out failures, lose nothing.

Each round polls behind the cursor, then streams until the stream ends, then pauses. The cursor only grows, so
that no event comes twice; the server replays what lies behind it, so that none is lost. Pauses are drawn by
chance, so that those who lost the same server do not all come back at the same moment.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from neuraverse.client.refs import BEGINNING, CURSOR, Event
from neuraverse.client.sse import parse
from neuraverse.client.transport import Transport
from neuraverse.errors import NetworkError, RegistryError

if TYPE_CHECKING:
    import httpx

POLLING_S = 60.0  # where a stream did not get through, this long passes before the next try
POLL_S = 2.0  # mean pause between polls where streams do not get through
SILENCE_S = 45.0  # a stream without even a heartbeat for so long is dead
MAX_PAUSE_S = 30.0
_FIRST_PAUSE_S = 0.5
_DOUBLINGS = 10  # of a pause; beyond any longest one, and no number overflows
_STOP_CHECK_S = 0.1

Page = tuple[list[Event], str, bool]


def watch(
    transport: Transport,
    poll: Callable[..., Page],
    after: str,
    wanted: Mapping[str, str],
    stop: threading.Event | None,
) -> Iterator[Event]:
    """Events behind `after`; see `Client.watch`.

    Args:
        transport: The registry.
        poll: Gives events behind a cursor, the next cursor, and whether the feed was reset.
        after: Cursor to begin behind.
        wanted: What the events must be of: ``skill``, ``org``, ``interface``; resets come in any case.
        stop: Ends the iteration.
    """
    skill, org = wanted.get("skill"), wanted.get("org")
    for event in _Watch(transport, poll, after, wanted, stop or threading.Event()).run():
        # A registry that does not know the filters sends everything.
        other = skill not in (None, event.name) or (org and not event.name.startswith(f"{org}/"))
        if event.type == "reset" or not other:
            yield event


class _Watch:
    def __init__(
        self,
        transport: Transport,
        poll: Callable[..., Page],
        after: str,
        wanted: Mapping[str, str],
        stop: threading.Event,
    ) -> None:
        self._transport = transport
        self._poll = poll
        self._cursor = after
        self._wanted = wanted
        self._last = 0  # id of the last event that was given on: none comes twice, whatever a registry sends
        self._stop = stop
        self._stream_from = 0.0  # when to try a stream again [s, monotonic]
        self._failures = 0

    def run(self) -> Iterator[Event]:
        while not self._stop.is_set():
            try:
                yield from self._catch_up()
                self._failures = 0
                if time.monotonic() >= self._stream_from:
                    yield from self._follow()
            except NetworkError:
                self._failures += 1
            self._pause()

    def _pause(self) -> None:
        if self._failures:
            longest = min(MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failures, _DOUBLINGS))
        else:
            longest = _FIRST_PAUSE_S if time.monotonic() >= self._stream_from else 2.0 * POLL_S
        self._stop.wait(random.uniform(0.0, longest))

    def _catch_up(self) -> Iterator[Event]:
        """Polls until there is nothing new."""
        while not self._stop.is_set():
            events, cursor, reset = self._poll(self._cursor, 0.0, **self._wanted)
            if reset:
                yield self._reset(cursor)
                continue
            yield from self._new(events)
            self._cursor = cursor
            if not events:
                return

    def _follow(self) -> Iterator[Event]:
        """Streams until the stream ends; if nothing gets through, polling does for a while."""
        heard = False
        headers = {"Accept": "text/event-stream", "Last-Event-ID": self._cursor}
        try:
            with (
                self._transport.stream(
                    "GET", "/v1/events/stream", params=self._wanted, headers=headers, read_s=SILENCE_S
                ) as response,
                _cutter.cut_on(self._stop, response),
            ):
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    self._do_without_stream()
                    return
                for message in parse(response.iter_raw()):
                    heard = True
                    if self._stop.is_set():
                        return
                    if message.type == "reset":
                        yield self._reset(_cursor(message.id))
                        continue
                    if message.data:
                        yield from self._new([Event.of(_json(message.data))])
                    self._cursor = _cursor(message.id)
        except RegistryError:
            self._do_without_stream()
        except NetworkError:
            if heard:
                raise
            self._do_without_stream()

    def _do_without_stream(self) -> None:
        self._stream_from = time.monotonic() + POLLING_S

    def _new(self, events: list[Event]) -> Iterator[Event]:
        for event in events:
            if event.id > self._last:
                self._last = event.id
                yield event

    def _reset(self, cursor: str) -> Event:
        self._cursor, self._last = cursor, 0
        return Event(id=0, type="reset", cursor=cursor)


def _cursor(text: str) -> str:
    """Where a stream says that its reader stands; whatever is none means the beginning."""
    return text if re.fullmatch(CURSOR, text) else BEGINNING


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NetworkError("the registry sent an event that is no JSON") from None


class _Cutter:
    """Shuts the sockets of readers that are to stop, so that a blocked read returns; one thread for all."""

    def __init__(self) -> None:
        self._readers: dict[object, tuple[threading.Event, socket.socket]] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def cut_on(self, stop: threading.Event, response: httpx.Response) -> Iterator[None]:
        """Shut the response's socket when `stop` is set within the block."""
        stream = response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is None:
            yield
            return
        reader = object()
        with self._lock:
            self._readers[reader] = (stop, connection)
            if self._thread is None or not self._thread.is_alive():  # it does not live on in a fork
                self._thread = threading.Thread(target=self._run, name="neuraverse-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._readers.pop(reader, None)

    def _run(self) -> None:
        while True:
            time.sleep(_STOP_CHECK_S)
            with self._lock:
                if not self._readers:
                    self._thread = None
                    return
                for reader, (stop, connection) in list(self._readers.items()):
                    if stop.is_set():
                        del self._readers[reader]
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_RDWR)


_cutter = _Cutter()
