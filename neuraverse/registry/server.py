"""One server process on one data folder: claims both, runs, and leaves in good order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from neuraverse.errors import StorageError, UsageError
from neuraverse.registry.app import create_app
from neuraverse.registry.limits import GRACE_S
from neuraverse.storage import disk_errors, write_atomic

DEFAULT_PORT = 8420


def serve(
    data_dir: Path | str,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    ready_file: Path | str | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run a registry until SIGTERM or SIGINT; open event streams are ended, requests in flight finish.

    Args:
        data_dir: Folder of the registry; made if missing.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        ready_file: Gets ``{"url": …, "pid": …}`` once requests are answered, and is removed at the end.
        on_ready: Called with the URL at the same moment; prints it if not given.

    Raises:
        UsageError: The address is in use, not ours, or not to be had.
        StorageError: The folder cannot be written, its database is broken, or another server is using it.
    """
    folder = Path(data_dir)
    ready = Path(ready_file) if ready_file is not None else None
    with claimed(folder), contextlib.closing(_listen(host, port)) as listener:
        url = _url(host, listener.getsockname()[1])

        def announce() -> None:
            if ready is not None:
                write_atomic(ready, json.dumps({"url": url, "pid": os.getpid()}).encode())
            (on_ready or _print)(url)

        if ready is not None:
            ready.unlink(missing_ok=True)
        try:
            asyncio.run(_run(folder, listener, announce))
        finally:
            if ready is not None:
                ready.unlink(missing_ok=True)


@contextlib.contextmanager
def background(data_dir: Path | str, port: int = 0) -> Iterator[str]:
    """A registry in a thread of this process, on loopback, for notebooks and tests.

    Args:
        data_dir: Folder of the registry; made if missing.
        port: Port to listen on; 0 takes a free one.

    Yields:
        Its URL, once requests are answered.

    Raises:
        UsageError: The port is in use.
        StorageError: The folder or its database cannot be used.
    """
    folder = Path(data_dir)
    ready = threading.Event()
    servers: list[Server] = []
    failures: list[BaseException] = []

    def run(listener: socket.socket) -> None:
        try:
            asyncio.run(_run(folder, listener, ready.set, servers.append))
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    with claimed(folder), contextlib.closing(_listen("127.0.0.1", port)) as listener:
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


async def _run(
    folder: Path,
    listener: socket.socket,
    announce: Callable[[], None],
    started: Callable[[Server], None] = lambda _: None,
) -> None:
    app = create_app(folder)
    registry = app.state.registry
    await registry.open()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_S),
        ws="none",
    )
    server = Server(config, announce, registry.feed.close)
    started(server)
    try:
        await server.serve(sockets=[listener])
    finally:
        await registry.close()


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it however this process ends."""
    with disk_errors("use the data folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is not between 0 and 65535")
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


def _print(url: str) -> None:
    print(f"neuraverse registry ready at {url}", flush=True)
