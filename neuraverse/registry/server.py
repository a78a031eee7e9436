"""One server process: claims its folder and address, runs, and leaves in good order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import gc
import json
import math
import os
import resource
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from neuraverse.errors import StorageError, UsageError
from neuraverse.registry import logs
from neuraverse.registry.app import create_app
from neuraverse.registry.config import Settings
from neuraverse.registry.limits import MAX_HEADER_BYTES
from neuraverse.registry.tenants.accounts import first_operator
from neuraverse.storage import disk_errors, write_atomic


def serve(
    settings: Settings | Path | str,
    *,
    ready_file: Path | str | None = None,
    on_ready: Callable[[str], None] | None = None,
    on_first: Callable[[str, str], None] | None = None,
) -> None:
    """Run a registry until SIGTERM or SIGINT; open event streams are ended, requests in flight finish.

    Args:
        settings: How it is set up; or the folder that holds it, all else by default.
        ready_file: Gets ``{"url": …, "pid": …}`` once requests are answered, and is removed at the end.
        on_ready: Called with the URL at the same moment; prints it if not given.
        on_first: Called before with the URL and a code, if the registry has no operator and is not open:
            whoever signs in with the code operates it. Prints it if not given.

    Raises:
        UsageError: The address is in use, not ours, or not to be had.
        StorageError: The folder cannot be written, the database or the store cannot be used, or another
            server is using the folder.
    """
    if not isinstance(settings, Settings):
        settings = Settings.load(data=Path(settings))
    host = settings.host
    _allow_connections(settings.max_connections)
    ready = Path(ready_file) if ready_file is not None else None
    with (
        logs.to_stderr(settings),
        claimed(settings),
        contextlib.closing(_listen(host, settings.port)) as listener,
    ):
        url = _url(host, listener.getsockname()[1])

        def announce(code: str | None) -> None:
            if code is not None:
                (on_first or _print_code)(url, code)
            if ready is not None:
                write_atomic(ready, json.dumps({"url": url, "pid": os.getpid()}).encode())
            _collect_rarely()
            (on_ready or _print)(url)

        if ready is not None:
            ready.unlink(missing_ok=True)
        thresholds = gc.get_threshold()
        try:
            asyncio.run(_run(settings, listener, announce))
        finally:
            gc.unfreeze()
            gc.set_threshold(*thresholds)
            if ready is not None:
                ready.unlink(missing_ok=True)


def _collect_rarely() -> None:
    """Keep the garbage collector from holding everybody up.

    To look through all of a server with 2,000 readers takes 0.2 s, and Python does so whenever a quarter has
    been added. What is there at the start stays, and is passed over; young garbage is collected as ever, in
    larger lots; what is left over of it waits long.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 500)


def _allow_connections(count: int) -> None:
    """Let this process open as many files as it may take connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1000 if hard == resource.RLIM_INFINITY else min(count + 1000, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def background(settings: Settings | Path | str, port: int = 0) -> Iterator[str]:
    """A registry in a thread of this process, on loopback, for notebooks and tests.

    Args:
        settings: How it is set up, the address of which does not count; or the folder that holds it, which is
            then open to whoever publishes from this machine.
        port: Port to listen on; 0 takes a free one.

    Yields:
        Its URL, once requests are answered.

    Raises:
        UsageError: The port is in use.
        StorageError: The folder or its database cannot be used.
    """
    if not isinstance(settings, Settings):
        settings = Settings.load(data=Path(settings), open=True)
    ready = threading.Event()
    servers: list[Server] = []
    failures: list[BaseException] = []

    def run(listener: socket.socket) -> None:
        try:
            asyncio.run(_run(settings, listener, lambda _: ready.set(), servers.append))
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    with claimed(settings), contextlib.closing(_listen("127.0.0.1", port)) as listener:
        url = _url("127.0.0.1", listener.getsockname()[1])
        thread = threading.Thread(target=run, args=(listener,), name="neuraverse-registry", daemon=True)
        thread.start()
        ready.wait()
        try:
            if failures:
                raise failures[0]
            yield url
        finally:
            for server in servers:
                server.should_exit = True
            thread.join()


class Server(uvicorn.Server):
    """uvicorn that says when it is ready, and ends event streams before it waits for connections to close."""

    def __init__(
        self, config: uvicorn.Config, announce: Callable[[], None], end_streams: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._end_streams = end_streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then announce."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then all else."""
        self._end_streams()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and return to the caller instead of dying of them."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        try:
            for number in signals:
                loop.add_signal_handler(number, self.handle_exit, number, None)
        except (RuntimeError, ValueError):  # not in the main thread: whoever runs it sets should_exit
            yield
            return
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


class Protocol(H11Protocol):
    """uvicorn's HTTP, with limits on how long a client may take where no route is waiting for it.

    That is over its request line and headers, and over a body whose request has been answered already.
    """

    waited_s = 30.0
    bytes_per_s = 1024.0

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        push = functools.partial(Protocol.push, weakref.proxy(self))  # for streams of events, see `feed`
        self.app_state = {**self.app_state, "abort": transport.abort, "push": push}
        self._clock: asyncio.TimerHandle | None = None
        self._unread = 0
        self._watch()

    def push(self, data: bytes) -> bool:
        """Send more of the body that is under way, as the application could; False if it has to wait."""
        if self.flow.write_paused or self.transport.is_closing() or self.conn.our_state is not h11.SEND_BODY:
            return False
        self.transport.write(self.conn.send(h11.Data(data=data)))
        return True

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is whole; uvicorn's own runs between requests."""
        super().data_received(data)
        if self._unwanted():
            self._unread += len(data)
        elif self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._clock is None and data:
            self._watch()  # the beginning of another request

    def on_response_complete(self) -> None:
        """Start the clock if the body is still coming."""
        super().on_response_complete()
        if self._unwanted():
            self._unread = 0
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _unwanted(self) -> bool:
        """Whether the client sends a body that nobody will read."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is not h11.SEND_RESPONSE

    def _watch(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(self.waited_s, self._give_up)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        self._clock = None
        if self._unwanted() and self._unread >= self.waited_s * self.bytes_per_s:
            self._unread = 0
            self._watch()
        elif (self._unwanted() or self.conn.their_state is h11.IDLE) and not self.transport.is_closing():
            self.transport.close()


async def _run(
    settings: Settings,
    listener: socket.socket,
    announce: Callable[[str | None], None],
    started: Callable[[Server], None] = lambda _: None,
) -> None:
    app = create_app(settings)
    registry = app.state.registry
    await registry.open(serving=True)
    code = None if settings.open else await registry.database.write(first_operator)
    config = uvicorn.Config(
        app,
        http=type(
            "Protocol",
            (Protocol,),
            {"waited_s": settings.body_idle_s, "bytes_per_s": settings.body_bytes_per_s},
        ),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_s),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=settings.max_connections,
        ws="none",
    )
    server = Server(config, lambda: announce(code), registry.feed.end)
    started(server)
    try:
        await server.serve(sockets=[listener])
    finally:
        await registry.close()


@contextlib.contextmanager
def claimed(settings: Settings | Path | str, *, alone: bool | None = None) -> Iterator[None]:
    """Hold the data folder's lock; the system frees it however this process ends.

    SQLite serves one server process. With PostgreSQL several may share the folder and hold the lock together.

    Args:
        settings: Whose folder, or the folder.
        alone: Whether nobody else may hold it; by default, whether the database is SQLite.

    Raises:
        StorageError: Another server is using the folder, or it cannot be used.
    """
    if not isinstance(settings, Settings):
        settings = Settings.load(data=Path(settings))
    folder = settings.data
    if alone is None:
        alone = settings.database_url.startswith("sqlite")
    with disk_errors("use the data folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            raise StorageError(
                f"another server (process {other}) is using {folder}",
                remedy="stop it, or give this one a data folder of its own",
            ) from None
        with disk_errors("use the data folder", folder):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


_LISTEN_ERRORS = {
    errno.EADDRINUSE: (
        "the port is in use",
        "stop what uses it, or choose another with --port (0 takes a free one)",
    ),
    errno.EACCES: ("that port needs more rights", "choose one above 1023"),
    errno.EADDRNOTAVAIL: (
        "the address is not one of this machine",
        "use 127.0.0.1, or 0.0.0.0 for all addresses",
    ),
}


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host!r}: {reason}", remedy="use 127.0.0.1 or 0.0.0.0") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY only where it sees TCP named
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)  # two servers could bind with SO_REUSEADDR; only one can listen
    except OSError as error:
        listener.close()
        reason, remedy = _LISTEN_ERRORS.get(error.errno or 0, (str(error.strerror), "choose another address"))
        raise UsageError(f"cannot listen on {_url(host, port)}: {reason}", remedy=remedy) from error
    return listener


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _print_code(url: str, code: str) -> None:
    print(
        f"This registry has no operator yet. To become it, within a day: neuraverse login --registry {url}\n"
        f"and give this code, which works once: {code}",
        flush=True,
    )


def _print(url: str) -> None:
    print(f"neuraverse registry ready at {url}", flush=True)
