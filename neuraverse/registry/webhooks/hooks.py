"""Webhooks of organisations: add, list and end them, and what they did not take."""

from __future__ import annotations

import base64
import secrets
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from neuraverse.registry import events, tables
from neuraverse.registry.events import Wanted
from neuraverse.registry.limits import MAX_LISTED, MAX_WEBHOOKS
from neuraverse.registry.problems import Problem
from neuraverse.registry.tables import accounts, dead_letters, now, skills, webhooks
from neuraverse.registry.tenants.access import Caller, needs, note
from neuraverse.registry.webhooks.deliveries import SECRET


def add(db: Connection, caller: Caller, org: str, url: str, wanted: Wanted) -> dict[str, Any]:
    """A webhook for what is told from now on, and its secret.

    Raises:
        Problem: 401, 403, 404, 409 there are too many.
    """
    row = needs(db, caller, org, "admin", "add webhooks")
    count = select(func.count()).select_from(webhooks).where(webhooks.c.org_id == row.id)
    if (db.scalar(count) or 0) >= MAX_WEBHOOKS:
        raise Problem(
            409,
            "too-many",
            f"{org} has {MAX_WEBHOOKS} webhooks, which is the most",
            remedy=f"remove one first; `neuraverse org webhook list {org}`",
        )
    secret = SECRET + base64.b64encode(secrets.token_bytes(32)).decode()
    filters = {"org": wanted.org, "skill": wanted.name, "interface": wanted.interface}
    values = {
        "id": secrets.token_hex(8),
        "url": url,
        "filters": filters | {"types": list(wanted.types)},
        "created_at": now(),
    }
    owner = {"org_id": row.id, "created_by": caller.account, "cursor": events.head(db)}
    db.execute(insert(webhooks).values(**values, **owner, secret=secret))
    note(db, caller, row.id, "webhook.add", str(values["id"]))
    return {**values, "secret": secret}


def listed(db: Connection, caller: Caller, org: str) -> list[dict[str, Any]]:
    """Webhooks, the oldest first, and how each does; without the secrets.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", "see webhooks")
    w = webhooks.c
    letters = select(func.count()).where(dead_letters.c.webhook_id == w.id).scalar_subquery()
    columns = (w.id, w.url, w.filters, w.created_at, w.attempts, w.next_at, w.error, w.disabled_at)
    query = select(*columns, accounts.c.name.label("made_by"), letters.label("dead_letters"))
    query = query.join(accounts, accounts.c.id == w.created_by).where(w.org_id == row.id)
    return [dict(each._mapping) for each in db.execute(query.order_by(w.created_at, w.id))]


def remove(db: Connection, caller: Caller, org: str, webhook: str) -> None:
    """End a webhook, and forget its dead letters.

    Raises:
        Problem: 401, 403, 404.
    """
    row = find(db, caller, org, webhook, "remove webhooks")
    db.execute(delete(dead_letters).where(dead_letters.c.webhook_id == webhook))
    db.execute(delete(webhooks).where(webhooks.c.id == webhook))
    note(db, caller, row.org_id, "webhook.remove", webhook)


def find(db: Connection, caller: Caller, org: str, webhook: str, what: str) -> Row[Any]:
    """A webhook of one of the caller's organisations.

    Raises:
        Problem: 401, 403, 404.
    """
    row = needs(db, caller, org, "admin", what)
    mine = and_(webhooks.c.id == webhook, webhooks.c.org_id == row.id)
    found = db.execute(select(webhooks).where(mine)).one_or_none()
    if found is None:
        raise Problem(
            404,
            "no-such-webhook",
            f"{org} has no webhook {webhook}",
            remedy=f"`neuraverse org webhook list {org}` shows them",
        )
    return found


def dead(db: Connection, caller: Caller, org: str, webhook: str) -> list[dict[str, Any]]:
    """Events that a webhook did not take, as far as the caller sees them; in order.

    Raises:
        Problem: 401, 403, 404.
    """
    find(db, caller, org, webhook, "see dead letters")
    d, feed = dead_letters.c, events.mark(db)
    query = select(tables.events, d.attempts, d.error, d.at.label("died_at"), d.again)
    query = query.select_from(tables.events.join(skills, skills.c.id == tables.events.c.skill_id))
    query = query.join(dead_letters, d.event_id == tables.events.c.id)
    query = query.where(d.webhook_id == webhook, events.seen(caller)).order_by(d.event_id)
    return [
        {
            "event": events.plain(row, feed),
            "attempts": row.attempts,
            "error": row.error,
            "at": row.died_at,
            "again": row.again,
        }
        for row in db.execute(query.limit(MAX_LISTED))
    ]


def retry(db: Connection, caller: Caller, org: str, webhook: str) -> int:
    """Let each dead letter be tried once more, in order, until one is not taken; how many.

    Raises:
        Problem: 401, 403, 404, 409 the webhook was disabled.
    """
    row = find(db, caller, org, webhook, "retry dead letters")
    if row.disabled_at is not None:
        raise Problem(
            409,
            "disabled",
            f"the webhook was disabled at {row.disabled_at}: {row.error}",
            remedy="remove it, and add one anew",
        )
    mine = dead_letters.c.webhook_id == webhook
    count = int(db.execute(update(dead_letters).where(mine).values(again=True)).rowcount)
    db.execute(
        update(webhooks).where(webhooks.c.id == webhook).values(next_at="")
    )  # it does not wait for more
    note(db, caller, row.org_id, "webhook.retry", webhook, letters=count)
    return count
