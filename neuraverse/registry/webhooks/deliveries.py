"""What each webhook is sent next, and what becomes of it; all of it functions of a transaction.

A webhook is sent what its organisation sees, in order, one event at a time. The cursor moves in the
transaction that records how a delivery ended, so that whoever dies in between sends the same event again and
skips none; by the message's id the receiver can tell.

A process works on a webhook for as long as it has the lease. What is not taken is tried again, later and
later, and becomes a dead letter in the end; then the next event follows.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, insert, select, update

from neuraverse.registry import events
from neuraverse.registry.events import Wanted
from neuraverse.registry.limits import MAX_DEAD_LETTERS, MAX_EVENTS, OUTBOUND_S
from neuraverse.registry.tables import accounts, dead_letters, members, now, orgs, webhooks
from neuraverse.registry.tenants.access import ROLES, Caller, note

SECRET = "whsec_"
TRIES = 8  # of an event, within about three hours
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 3600.0
_GROWTH = 4.0
_GONE = 410  # the receiver wants no more
_LEASE_S = 4 * OUTBOUND_S
_IDLE_S = 30.0
_FAR_US = 600_000_000  # ten minutes, as ids of events are microseconds
_HOUR_S = 3600.0
_UNTRIED = {"attempts": 0, "next_at": "", "error": ""}
_ALL = (
    select(webhooks, orgs.c.name.label("org"), accounts.c.disabled_at.label("maker_ended"), members.c.role)
    .join(orgs, orgs.c.id == webhooks.c.org_id)
    .join(accounts, accounts.c.id == webhooks.c.created_by)
    .outerjoin(
        members, and_(members.c.org_id == webhooks.c.org_id, members.c.account_id == webhooks.c.created_by)
    )
)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """An event on its way.

    Attributes:
        webhook: Id of the webhook.
        event: Id of the event.
        url: Where to.
        headers: With the signature.
        body: The event as JSON.
        lease: The right to record how it ended.
        again: Whether it is a dead letter that is tried once more.
    """

    webhook: str
    event: int
    url: str
    headers: Mapping[str, str]
    body: bytes
    lease: str
    again: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a delivery ended: the ``status`` of the answer, or without one (0) an ``error`` in a few words."""

    status: int = 0
    error: str = ""

    @property
    def taken(self) -> bool:
        """Whether the receiver has it."""
        return 200 <= self.status < 300

    @property
    def said(self) -> str:
        """What went wrong."""
        return self.error or f"answered with status {self.status}"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Which webhooks have something to send.

    Attributes:
        due: Their ids.
        seen: By id, the event up to which nothing is for a webhook.
        idle: Those of `seen` that are far ahead of the cursor, which `move` should move there.
        seconds: When to look again, if nothing is told before.
    """

    due: list[str]
    seen: dict[str, int]
    idle: dict[str, int]
    seconds: float


def message(row: Row[Any], name: str, body: bytes) -> dict[str, str]:
    """The headers of a message, as the Standard Webhooks specification has them.

    Args:
        row: The webhook.
        name: The message's id, the same each time that it is sent.
        body: What is sent.
    """
    at = str(int(time.time()))
    return {
        "Content-Type": "application/json",
        "User-Agent": "neuraverse",
        "webhook-id": name,
        "webhook-timestamp": at,
        "webhook-signature": signature(row.secret, name, at, body),
    }


def signature(secret: str, name: str, at: str, body: bytes) -> str:
    """The signature of a message; `at` are seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(SECRET))
    signed = hmac.digest(key, b".".join((name.encode(), at.encode(), body)), hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def as_json(plain: Mapping[str, Any]) -> bytes:
    """The body of a message."""
    return json.dumps(plain, separators=(",", ":")).encode()


def waiting(db: Connection, seen: Mapping[str, int]) -> Waiting:
    """Which webhooks have something to send now.

    Args:
        db: A transaction.
        seen: What the last look found of each.
    """
    letters = exists().where(dead_letters.c.webhook_id == webhooks.c.id, dead_letters.c.again)
    rows = db.execute(_ALL.add_columns(letters.label("again")).where(webhooks.c.disabled_at.is_(None))).all()
    at, due, idle, seconds = now(), [], {}, _IDLE_S
    reached: dict[str, int] = {}
    together: dict[int, list[Row[Any]]] = defaultdict(list)  # those that stand at one event share a look
    for row in rows:
        busy_until = max(row.next_at, row.lease_until)
        if busy_until > at:
            seconds = min(seconds, _seconds_until(busy_until))
        elif row.again:
            due.append(row.id)
        else:
            together[max(row.cursor, seen.get(row.id, 0))].append(row)
    for position, stand_there in together.items():
        page = events.told(db, position, MAX_EVENTS)
        for row in stand_there:
            reader, wanted = _reader(row), _wanted(row)
            first = next((e.id for e in page if events.sees(reader, e) and wanted.passes(e)), None)
            reached[row.id] = (page[-1].id if page else position) if first is None else first - 1
            if first is not None:
                due.append(row.id)
            elif reached[row.id] - row.cursor > _FAR_US:
                idle[row.id] = reached[row.id]
        if len(page) == MAX_EVENTS:
            seconds = 0.0
    return Waiting(due=due, seen=reached, idle=idle, seconds=seconds)


def move(db: Connection, idle: Mapping[str, int]) -> None:
    """Move cursors over what is not for their webhooks: a process that starts need not look at it again."""
    for webhook, event in idle.items():
        at = and_(webhooks.c.id == webhook, webhooks.c.cursor < event, webhooks.c.lease_until <= now())
        db.execute(update(webhooks).where(at).values(cursor=event, **_UNTRIED))


def step(
    db: Connection, webhook: str, ended: tuple[Delivery, Outcome] | None = None, *, go_on: bool = True
) -> Delivery | None:
    """Record how a delivery ended, if one did, and take up the next one, if it is time.

    Args:
        db: A transaction that writes.
        webhook: Id of the webhook.
        ended: The delivery, which has the lease.
        go_on: False gives the lease back in any case.

    Returns:
        What to send, with the lease; None if there is nothing, it is too early, or another process is at it.
    """
    row = _active(db, webhook)
    if row is None or (row.lease_until != ended[0].lease if ended else row.lease_until > now()):
        return None
    if ended is not None:
        _record(db, row, *ended)
        row = _active(db, webhook)
        if row is None:
            return None
    if row.maker_ended is not None or row.role is None or "admin" not in ROLES[row.role]:
        _disable(db, row, "whoever made it is no owner any more")
        return None
    found = _next(db, row) if go_on and row.next_at <= now() else None
    lease = "" if found is None else now(_LEASE_S / _HOUR_S)
    db.execute(update(webhooks).where(webhooks.c.id == webhook).values(lease_until=lease))
    if found is None:
        return None
    event, again = found
    body = as_json(events.plain(event, events.mark(db)))
    name = events.cursor(events.mark(db), event.id)
    return Delivery(
        webhook=webhook,
        event=event.id,
        url=row.url,
        headers=message(row, name, body),
        body=body,
        lease=lease,
        again=again,
    )


def release(db: Connection, delivery: Delivery | None = None) -> None:
    """Give back the lease of a delivery that was cut off; or all leases, where no other process is."""
    mine = webhooks.c.lease_until != ""
    if delivery is not None:
        mine = and_(webhooks.c.id == delivery.webhook, webhooks.c.lease_until == delivery.lease)
    db.execute(update(webhooks).where(mine).values(lease_until=""))


def _active(db: Connection, webhook: str) -> Row[Any] | None:
    enabled = and_(webhooks.c.id == webhook, webhooks.c.disabled_at.is_(None))
    return db.execute(_ALL.where(enabled)).one_or_none()


def _reader(row: Row[Any]) -> Caller:
    """A webhook sees what a reader of its organisation sees."""
    rights = {row.org_id: ROLES["reader"]}
    return Caller(account=row.created_by, kind="person", orgs={row.org_id: row.org}, rights=rights)


def _wanted(row: Row[Any]) -> Wanted:
    f = row.filters
    return Wanted(org=f["org"], name=f["skill"], interface=f["interface"], types=tuple(f["types"]))


def _next(db: Connection, row: Row[Any]) -> tuple[Row[Any], bool] | None:
    """The event to send next, and whether it is a dead letter; those go first."""
    letter = _letter(db, row)
    if letter is not None:
        return letter, True
    found = events.behind(db, _reader(row), row.cursor, 1, _wanted(row))
    if found:
        return found[0], False
    last = max(row.cursor, events.head(db))  # nothing is for it, up to now
    db.execute(update(webhooks).where(webhooks.c.id == row.id).values(cursor=last, **_UNTRIED))
    return None


def _letter(db: Connection, row: Row[Any]) -> Row[Any] | None:
    """The first dead letter to try once more; those that the organisation sees no more are dropped."""
    mine = and_(dead_letters.c.webhook_id == row.id, dead_letters.c.again)
    for event in db.scalars(
        select(dead_letters.c.event_id).where(mine).order_by(dead_letters.c.event_id)
    ).all():
        found = events.behind(db, _reader(row), event - 1, 1)
        if found and found[0].id == event:
            return found[0]
        db.execute(delete(dead_letters).where(_of(row.id, event)))
    return None


def _record(db: Connection, row: Row[Any], delivery: Delivery, outcome: Outcome) -> None:
    letter = _of(row.id, delivery.event)
    if outcome.status == _GONE:
        _disable(db, row, "its receiver said that it is gone (status 410)")
    elif delivery.again and outcome.taken:
        db.execute(delete(dead_letters).where(letter))
    elif delivery.again:
        db.execute(update(dead_letters).where(dead_letters.c.webhook_id == row.id).values(again=False))
        once_more = {"attempts": dead_letters.c.attempts + 1, "error": outcome.said, "at": now()}
        db.execute(update(dead_letters).where(letter).values(**once_more))
    elif outcome.taken or row.attempts + 1 >= TRIES:
        if not outcome.taken:
            _bury(db, row, delivery.event, outcome)
        at = webhooks.c.id == row.id
        db.execute(update(webhooks).where(at).values(cursor=delivery.event, **_UNTRIED))
    else:
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * _GROWTH**row.attempts) * random.uniform(0.8, 1.2)
        later = {"attempts": row.attempts + 1, "next_at": now(pause_s / _HOUR_S), "error": outcome.said}
        db.execute(update(webhooks).where(webhooks.c.id == row.id).values(**later))


def _bury(db: Connection, row: Row[Any], event: int, outcome: Outcome) -> None:
    letter = {"webhook_id": row.id, "event_id": event, "attempts": row.attempts + 1}
    db.execute(insert(dead_letters).values(**letter, error=outcome.said, at=now()))
    kept = select(dead_letters.c.event_id).where(dead_letters.c.webhook_id == row.id)
    oldest = db.scalar(kept.order_by(dead_letters.c.event_id.desc()).offset(MAX_DEAD_LETTERS).limit(1))
    if oldest is not None:
        too_old = and_(dead_letters.c.webhook_id == row.id, dead_letters.c.event_id <= oldest)
        db.execute(delete(dead_letters).where(too_old))


def _disable(db: Connection, row: Row[Any], why: str) -> None:
    values = {"disabled_at": now(), "error": why, "lease_until": ""}
    db.execute(update(webhooks).where(webhooks.c.id == row.id).values(**values))
    note(db, Caller(), row.org_id, "webhook.disable", row.id, why=why)


def _of(webhook: str, event: int) -> ColumnElement[bool]:
    return and_(dead_letters.c.webhook_id == webhook, dead_letters.c.event_id == event)


def _seconds_until(moment: str) -> float:
    return max(0.0, (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds())
