"""Telling readers what is new: one look into the database for all of them, and a place to wait.

The database holds the truth. What is kept here is its newest part, as it was when it was told; when rights
change it is dropped, so that nobody is shown by it what has been hidden meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from neuraverse.registry import events
from neuraverse.registry.events import Event, Wanted
from neuraverse.registry.limits import HEARTBEAT_S, MAX_STREAMED, READER_S
from neuraverse.registry.problems import Problem
from neuraverse.registry.tenants.access import Access, Caller, digest

if TYPE_CHECKING:
    from neuraverse.registry.database import Database

log = logging.getLogger("neuraverse.registry")
_KEPT = 4096
# A wake-up that was lost costs that long, and no event.
_LOOK_S = 0.5
_LOOK_ALONE_S = 5.0
_CLOCK_S = 0.25


class _Told:
    """One event in memory, and how it is sent."""

    __slots__ = ("_block", "row")

    def __init__(self, row: Row[Any]) -> None:
        self.row = row
        self._block: bytes | None = None

    def block(self, mark: str) -> bytes:
        if self._block is None:
            self._block = block(events.plain(self.row, mark))
        return self._block


class Feed:
    """Wakes whoever waits, when there is something new.

    Args:
        database: The index.
        access: Told when another process changes rights.
    """

    def __init__(self, database: Database, access: Access) -> None:
        self._database = database
        self.access = access
        self._look_s = _LOOK_S if database.shared else _LOOK_ALONE_S
        self._told: deque[_Told] = deque()
        self._from = self._head = 0  # all events between are in `_told`, that one not included
        self._forgotten = 0  # how often
        self._dirty = asyncio.Event()
        self._changed = asyncio.Event()
        self._pages: dict[tuple[int, Any, Wanted], tuple[bytes, int]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.readers: set[Reader] = set()
        self.mark = ""
        self.closed = False

    async def open(self) -> None:
        """Begin to look."""
        self.mark, self._head = await self._database.read(_start)
        self._from = self._head
        self._tasks = [asyncio.create_task(self._looking()), asyncio.create_task(self._looking_after())]

    async def close(self) -> None:
        """Stop looking."""
        self.end()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    def end(self) -> None:
        """Send every waiting reader home; the server is stopping."""
        self.closed = True
        self._announce()

    def wake(self) -> None:
        """There may be something new."""
        self._dirty.set()

    def forget(self) -> None:
        """Rights have changed: what is kept may not be shown to everybody who could see it."""
        self._told.clear()
        self._from = self._head
        self._forgotten += 1
        self._announce()  # readers look whether they still may read
        self._dirty.set()

    def ticket(self) -> asyncio.Event:
        """Take this before reading: what is told afterwards sets it."""
        return self._changed

    def _announce(self) -> None:
        self._pages.clear()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for reader in self.readers:
            reader.catch_up(self)

    async def _looking(self) -> None:
        while True:
            await wait(self._dirty, self._look_s)
            self._dirty.clear()
            try:
                if self._database.shared and await self.access.look():
                    self.forget()
                    self._dirty.clear()
                await self._look()
            except (SQLAlchemyError, OSError) as error:
                log.warning("events come late: %s", error)
                await asyncio.sleep(1.0)

    async def _look(self) -> None:
        while True:
            forgotten = self._forgotten
            found = await self._database.read(events.told, self._head, MAX_STREAMED)
            if forgotten != self._forgotten:
                continue  # it may have been read before rights changed
            if not found:
                return
            self._head = found[-1].id
            self._told.extend(map(_Told, found))
            while len(self._told) > _KEPT:
                self._from = self._told.popleft().row.id
            self._announce()

    async def _looking_after(self) -> None:
        """One clock for all readers: a timer for each costs more than what it watches."""
        while True:
            await asyncio.sleep(min(_CLOCK_S, HEARTBEAT_S))
            at = time.monotonic()
            for reader in self.readers:
                reader.look_after(at)

    def page(self, caller: Caller, after: int, wanted: Wanted) -> tuple[bytes, int] | None:
        """As `blocks`, if it needs no look into the database; else None."""
        if after >= self._head:
            return b"", after
        if after < self._from:
            return None
        key = (after, caller.view, wanted)  # most readers stand at the same place
        found = self._pages.get(key)
        if found is None:
            found = self._pages[key] = self._page(caller, after, wanted)
        return found

    async def blocks(self, caller: Caller, after: int, wanted: Wanted) -> tuple[bytes, int]:
        """What to send to a reader that stands behind `after`, and where it stands then; at most a page."""
        found = self.page(caller, after, wanted)
        if found is not None:
            return found
        start = self._from  # of before reading: what is told meanwhile may not be in it
        rows = await self._database.read(events.behind, caller, after, MAX_STREAMED, wanted)
        data = b"".join(block(events.plain(row, self.mark)) for row in rows)
        if len(rows) == MAX_STREAMED:
            return data, rows[-1].id
        return data, max(after, start, rows[-1].id if rows else 0)

    def _page(self, caller: Caller, after: int, wanted: Wanted) -> tuple[bytes, int]:
        """The same from what is kept."""
        page = list(takewhile(lambda each: each.row.id > after, reversed(self._told)))[::-1][:MAX_STREAMED]
        passed = [t.block(self.mark) for t in page if events.sees(caller, t.row) and wanted.passes(t.row)]
        return b"".join(passed), page[-1].row.id


async def wait(ticket: asyncio.Event, seconds: float) -> bool:
    """Whether the ticket was set within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await ticket.wait()
    except TimeoutError:
        return False
    return True


def block(event: Event) -> bytes:
    """One event as Server-Sent Event."""
    text = json.dumps(event, separators=(",", ":"))
    return f"id: {event['cursor']}\nevent: {event['type']}\ndata: {text}\n\n".encode()


def count_pushed(scope: Scope, count: Callable[[int], None]) -> None:
    """Tell a middleware of the bytes that a stream sends past the `send` that it wraps."""
    push = scope.get("state", {}).get("push")
    if push is None:
        return

    def counted(data: bytes) -> bool:
        done: bool = push(data)
        if done:
            count(len(data))
        return done

    scope["state"]["push"] = counted


class EventStream(Response):
    """Events as Server-Sent Events, for ever, with heartbeats.

    The first block carries a cursor and no data: it gives a new reader its place. A reader that does not take
    what it is sent is dropped, and comes back with its cursor; nothing is kept for it meanwhile. One whose
    token ends, or whose rights are withdrawn, is sent home.

    Args:
        feed: Where from.
        authorization: Header of the reader's request, by which they are known as long as they read.
        after: Where the reader stands.
        wanted: What it asks for.
        reset: Whether its cursor was not of this feed.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        feed: Feed,
        authorization: str | None,
        after: int,
        wanted: Wanted,
        *,
        reset: bool = False,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._authorization = authorization
        self._after = after
        self._wanted = wanted
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader until it leaves."""
        work = asyncio.current_task()
        assert work is not None
        left = False

        async def leave() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            work.cancel()

        listener = asyncio.create_task(leave())
        state = scope.get("state", {})
        reader = Reader(self._authorization, self._after, self._wanted, state.get("abort"), state.get("push"))
        self._feed.readers.add(reader)
        try:
            await self._serve(reader, send)
        except asyncio.CancelledError:
            if not left:
                raise
            work.uncancel()
        finally:
            self._feed.readers.discard(reader)
            listener.cancel()

    async def _serve(self, reader: Reader, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        cursor = events.cursor(self._feed.mark, self._after)
        reset = "event: reset\ndata: {}\n" if self._reset else ""
        data = f"retry: 1000\nid: {cursor}\n{reset}\n".encode()
        while True:
            if data:
                reader.sending_since = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                reader.sent()
            reader.expect()
            try:
                caller = await self._feed.access.caller(self._authorization)
            except Problem:
                break
            data, reader.after = await self._feed.blocks(caller, reader.after, self._wanted)
            if self._feed.closed:
                break
            if not data:
                data = await reader.wait(caller.ends)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Reader:
    """One open stream: where its reader stands, whether it takes what it is sent, and when it last did.

    Args:
        authorization: Header by which the reader is known.
        after: Where it stands.
        wanted: What it asks for.
        abort: Ends the connection at once; None where there is none.
        push: Sends a piece of the body past everything between, and says whether it could; None likewise.
    """

    __slots__ = (
        "_abort",
        "_due",
        "_ends",
        "_idle",
        "_key",
        "_news",
        "_push",
        "_wanted",
        "after",
        "sending_since",
    )

    def __init__(
        self,
        authorization: str | None,
        after: int,
        wanted: Wanted,
        abort: Callable[[], None] | None,
        push: Callable[[bytes], bool] | None,
    ) -> None:
        self._key = None if authorization is None else digest(authorization)
        self._wanted = wanted
        self._abort = abort
        self._push = push
        self._news: asyncio.Future[bytes] | None = None
        self._idle = False
        self._ends = math.inf  # when its token does [s, monotonic]
        self._due = 0.0
        self.after = after
        self.sending_since: float | None = None

    def sent(self) -> None:
        """It took what it was sent."""
        self.sending_since = None
        self._due = min(time.monotonic() + HEARTBEAT_S, self._ends)

    def expect(self) -> None:
        """From now on, `wait` returns at once if something was told meanwhile."""
        self._news = asyncio.get_running_loop().create_future()

    async def wait(self, ends: float) -> bytes:
        """Wait for news, a heartbeat, or the end of a token [s since 1970]; what to send of it."""
        assert self._news is not None
        if ends != math.inf:
            self._ends = time.monotonic() + max(0.0, ends - time.time()) + 0.01
            self._due = min(self._due, self._ends)
        self._idle = True
        try:
            return await self._news
        finally:
            self._idle = False

    def catch_up(self, feed: Feed) -> None:
        """Send it what is new while it waits; where that is not for now to decide, let it look for itself.

        To wake each of 2,000 readers for the same event, and to send through all that wraps a request,
        took twice as long.
        """
        push = self._push if self._idle and not feed.closed else None
        caller = None if push is None else feed.access.known(self._key)
        while push is not None and caller is not None:
            found = feed.page(caller, self.after, self._wanted)
            if found is None or (found[0] and not push(found[0])):
                break
            data, after = found
            if data:
                self.sent()
            if after == self.after:
                return
            self.after = after
        self.tell()

    def tell(self, data: bytes = b"") -> None:
        """Let it look for news, or send this."""
        if self._news is not None and not self._news.done():
            self._news.set_result(data)

    def look_after(self, at: float) -> None:
        """End what has been stuck for long; send a heartbeat that is due."""
        if self.sending_since is not None:
            if at - self.sending_since > READER_S and self._abort is not None:
                self._abort()  # closing would wait until it has read what it does not read
        elif at >= self._due:
            self.tell(b": heartbeat\n\n")


def _start(db: Connection) -> tuple[str, int]:
    return events.mark(db), events.head(db)
