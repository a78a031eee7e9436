"""Share: webhooks of organisations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.options import Org, group
from neuraverse.cli.output import Out, note
from neuraverse.errors import NetworkError

Webhook = Annotated[
    str, typer.Argument(metavar="ID", help="As `org webhook list` shows it.", show_default=False)
]


class Type(StrEnum):
    """Types of events."""

    PUBLISHED = "published"
    ALIAS = "alias"
    UNALIAS = "unalias"
    YANKED = "yanked"
    UNYANKED = "unyanked"
    REVOKED = "revoked"
    DEPRECATED = "deprecated"
    UNDEPRECATED = "undeprecated"
    VISIBILITY = "visibility"
    FLEET = "fleet"


def commands() -> typer.Typer:
    """The commands of this module."""
    one = "acme 0f8a1c2b3d4e5f60"
    return group(
        "org webhook",
        "Addresses that an organisation's events are sent to, signed.",
        ("add", add, "acme https://hooks.example/skills --of acme --type published --type revoked"),
        ("list", list_webhooks, "acme"),
        ("test", try_out, one),
        ("dead", list_dead, one),
        ("retry", retry, one),
        ("remove", remove, one),
    )


def add(
    org: Org,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to; https, or http.", show_default=False)],
    of: Annotated[
        str, typer.Option("--of", metavar="ORG", help="Only what is about this organisation's skills.")
    ] = "",
    skill: Annotated[
        str, typer.Option("--skill", metavar="ORG/SKILL", help="Only what is about this skill.")
    ] = "",
    interface: Annotated[
        str,
        typer.Option(
            "--interface", metavar="sha256:HEX", help="Only what is about versions with this interface."
        ),
    ] = "",
    types: Annotated[
        list[Type] | None,
        typer.Option(
            "--type",
            metavar="|".join(Type),
            help="Only events of this type; may be said more than once.",
            show_default=False,
        ),
    ] = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Send events to an address from now on: what the organisation sees, of its own skills and of others.

    The secret that signs them is printed now, alone on stdout, and never again. Messages are as the Standard
    Webhooks specification has them; see docs/sharing.md.
    """
    from neuraverse.client import accounts

    out = Out(json)
    wanted: dict[str, Any] = {"org": of, "skill": skill, "interface": interface, "types": types or []}
    with accounts.reach(registry) as there:
        made = accounts.add_webhook(there, org, url, wanted)
    note(f"webhook {made['id']} of {org}; its secret is shown now and never again:")
    out.secret(made["secret"])
    out.json(made, secret=True)


def list_webhooks(org: Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """List webhooks, and how each does."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.webhooks(there, org)
    out.table(
        ("id", "address", "only", "state", "dead letters"),
        [(each["id"], each["url"], _only(each), _state(each), f"{each['dead_letters']}") for each in found],
    )
    out.json(found)


def _only(webhook: dict[str, Any]) -> str:
    kept = [value for value in webhook["filters"].values() if value]
    return " ".join(", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in kept)


def _state(webhook: dict[str, Any]) -> str:
    if webhook["disabled_at"]:
        return f"disabled: {webhook['error']}"
    if webhook["attempts"]:
        return f"failed {webhook['attempts']} times, again at {webhook['next_at']}: {webhook['error']}"
    return "fine"


def try_out(org: Org, webhook: Webhook, registry: options.Registry = None, json: options.Json = None) -> None:
    """Send a message of the type `test` now; exit 1 if it is not taken."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        why = accounts.try_webhook(there, org, webhook)
    if not why:
        out.line("taken")
    out.json({"id": webhook, "taken": not why, "error": why})
    if why:
        raise NetworkError(f"the message was not taken: {why}", remedy="look at the receiver's log")


def list_dead(
    org: Org, webhook: Webhook, registry: options.Registry = None, json: options.Json = None
) -> None:
    """List events that were not taken, however often they were tried."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.dead_letters(there, org, webhook)
    out.table(
        ("event", "type", "skill", "tried", "last", "why"),
        [
            (
                f"{each['event']['id']}",
                each["event"]["type"],
                "@".join(filter(None, (each["event"]["name"], each["event"]["version"]))),
                f"{each['attempts']}",
                each["at"],
                each["error"],
            )
            for each in found
        ],
    )
    out.json(found)


def retry(org: Org, webhook: Webhook, registry: options.Registry = None, json: options.Json = None) -> None:
    """Send each dead letter once more, in order, until one is not taken."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        count = accounts.retry_webhook(there, org, webhook)
    out.line(f"{count} {'event is' if count == 1 else 'events are'} sent again")
    out.json({"id": webhook, "retried": count})


def remove(org: Org, webhook: Webhook, registry: options.Registry = None, json: options.Json = None) -> None:
    """Send nothing more, and forget what was not taken."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.remove_webhook(there, org, webhook)
    out.line(f"the webhook {webhook} is over")
    out.json({"id": webhook})
