"""Sending events to webhooks: one at a time to each, to many at once. `deliveries` tells what is due."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from neuraverse.errors import NetworkError
from neuraverse.registry.limits import MAX_DELIVERIES
from neuraverse.registry.webhooks import deliveries, outbound
from neuraverse.registry.webhooks.deliveries import Delivery, Outcome

if TYPE_CHECKING:
    from neuraverse.registry.config import Settings
    from neuraverse.registry.database import Database
    from neuraverse.registry.feed import Feed

log = logging.getLogger("neuraverse.registry")
_IN_A_ROW = 50  # to one webhook, before others have a turn
_PAUSE_S = 0.05  # between looks: what is told meanwhile is found by one of them


class Deliveries:
    """Sends to webhooks, as long as it is open.

    Args:
        database: The index.
        feed: Tells when there is something new.
        settings: Which networks may be sent to.
    """

    def __init__(self, database: Database, feed: Feed, settings: Settings) -> None:
        self._database = database
        self._feed = feed
        self._networks = settings.webhook_networks
        self._dirty = asyncio.Event()
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to send."""
        if not self._database.shared:  # leases of a process that was killed are nobody's
            await self._database.write(deliveries.release)
        self._task = asyncio.create_task(self._working())

    async def close(self) -> None:
        """Stop; what is under way is sent again later."""
        tasks = [*self._under_way.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._task = None

    def wake(self) -> None:
        """There is another webhook, or something to send again."""
        self._dirty.set()

    async def try_out(self, row: Row[Any], name: str, body: bytes) -> Outcome:
        """Send a message to a webhook now, whatever else is under way there."""
        return await self._post(row.url, deliveries.message(row, name, body), body)

    async def _working(self) -> None:
        seen: dict[str, int] = {}
        while True:
            ticket = self._feed.ticket()
            self._dirty.clear()
            try:
                found = await self._database.read(deliveries.waiting, seen)
                if found.idle:
                    await self._database.write(deliveries.move, found.idle)
            except Exception as error:  # whatever it is: the next look may do better
                log.error("webhooks are sent late: %s", error)
                await asyncio.sleep(1.0)
                continue
            seen = found.seen
            for webhook in found.due:
                if webhook not in self._under_way and len(self._under_way) < MAX_DELIVERIES:
                    task = asyncio.create_task(self._deliver(webhook))
                    self._under_way[webhook] = task
                    task.add_done_callback(functools.partial(self._ended, webhook))
            await asyncio.sleep(_PAUSE_S)
            await self._news(ticket, found.seconds)

    def _ended(self, webhook: str, _: asyncio.Task[None]) -> None:
        del self._under_way[webhook]
        self.wake()

    async def _news(self, ticket: asyncio.Event, seconds: float) -> None:
        """Wait until something is told, a webhook wants another look, or so many seconds are over."""
        waits = [asyncio.create_task(each.wait()) for each in (ticket, self._dirty)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _deliver(self, webhook: str) -> None:
        """Send one event after the other, while there are some and they are taken."""
        try:
            delivery = await self._database.write(deliveries.step, webhook)
            for left in reversed(range(_IN_A_ROW)):
                if delivery is None:
                    return
                outcome = await self._send(delivery)
                if not outcome.taken:
                    log.info("webhook %s, event %d: %s", webhook, delivery.event, outcome.said)
                ended = (delivery, outcome)
                delivery = await self._database.write(deliveries.step, webhook, ended, go_on=left > 0)
        except Exception as error:  # whatever it is: its lease ends by itself, and others go on
            log.error("webhook %s: %s", webhook, error)

    async def _send(self, delivery: Delivery) -> Outcome:
        try:
            return await self._post(delivery.url, delivery.headers, delivery.body)
        except asyncio.CancelledError:
            with contextlib.suppress(SQLAlchemyError, OSError):
                await self._database.write(deliveries.release, delivery)
            raise

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        try:
            target = outbound.Target.parse(url)
            return Outcome(status=await outbound.post(target, headers, body, self._networks))
        except NetworkError as error:
            return Outcome(error=error.message[:300])
