"""Telling readers that there is something new. The database holds the truth; this only wakes them up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anyio

from neuraverse.registry.limits import HEARTBEAT_S

Event = dict[str, Any]
_RESET = "event: reset\ndata: {}\n"


class Feed:
    """Wakes whoever waits. A reader takes a `ticket`, reads, and waits on it if there was nothing."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.closed = False

    def ticket(self) -> asyncio.Event:
        """Take this before reading: what is committed afterwards sets it."""
        return self._changed

    def wake(self) -> None:
        """There is something new."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self) -> None:
        """Send every waiting reader home; the server is stopping."""
        self.closed = True
        self.wake()


async def wait(ticket: asyncio.Event, seconds: float) -> bool:
    """Whether the ticket was set within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await ticket.wait()
    except TimeoutError:
        return False
    return True


async def sse(
    feed: Feed, read: Callable[[int], Awaitable[Sequence[Event]]], after: int, *, reset: bool = False
) -> AsyncIterator[bytes]:
    """Events behind `after` as Server-Sent Events, for ever, with heartbeats.

    The first block carries an id and no data: it gives a new reader its cursor.
    A heartbeat also reads again, so that a wake-up that was lost costs seconds and no event.
    """
    yield f"retry: 1000\nid: {after}\n{_RESET if reset else ''}\n".encode()
    while not feed.closed:
        ticket = feed.ticket()
        with anyio.CancelScope(shield=True):  # a reader that leaves in the middle spoils no connection
            found = await read(after)
        if found:
            after = found[-1]["id"]
            yield "".join(map(_block, found)).encode()
        elif not await wait(ticket, HEARTBEAT_S):
            yield b": heartbeat\n\n"


def _block(event: Event) -> str:
    text = json.dumps(event, separators=(",", ":"))
    return f"id: {event['id']}\nevent: {event['type']}\ndata: {text}\n\n"
