"""An end for answers that never begin.

httpx bounds the silence between two bytes, so that whoever sends a byte of the head now and then is waited
for without end. Here its connections are shut down from outside.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_CHECK_S = 1.0
Trace = Callable[[str, Mapping[str, Any]], None]


class Connections:
    """The connections of one HTTP client, as far as its requests are traced."""

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._due: dict[object, float] = {}  # when each answer must have begun [s, monotonic]
        self._watched = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def answered_within(self, seconds: float) -> Iterator[Trace]:
        """Cut every connection if the head of the answer is not here in time, once the request is sent.

        All of them lead to the same registry, and which of them it was is not ours to know.

        Yields:
            What the request needs as its extension ``trace``.
        """
        request = object()

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith("send_request_body.complete"):
                self._expect(request, seconds)
            elif event.endswith("receive_response_headers.complete"):
                self._due.pop(request, None)
            elif event.endswith(("connect_tcp.complete", "start_tls.complete")):
                connection = info["return_value"].get_extra_info("socket")
                if connection is not None:
                    with self._lock:
                        self._sockets.add(connection)

        try:
            yield trace
        finally:
            self._due.pop(request, None)

    def _expect(self, request: object, seconds: float) -> None:
        self._due[request] = time.monotonic() + seconds
        with self._lock:
            if self._watched:  # one thread for all: one for each request would cost as much as asking
                return
            self._watched = True
        pause_s = min(_CHECK_S, seconds / 2)
        threading.Thread(target=self._watch, args=(pause_s,), name="neuraverse-deadline", daemon=True).start()

    def _watch(self, pause_s: float) -> None:
        while True:
            time.sleep(pause_s)
            with self._lock:
                due = list(self._due.values())
                if not due:
                    self._watched = False
                    return
                if min(due) < time.monotonic():
                    for connection in self._sockets:
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_RDWR)
