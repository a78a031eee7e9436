"""Share: organisations, their members and keys, and who sees their skills."""

from __future__ import annotations

import json as plain_json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from neuraverse.cli import options, webhooks
from neuraverse.cli.accounts import HOURS
from neuraverse.cli.options import SHARE, Org, Visibility, group
from neuraverse.cli.output import Out, note
from neuraverse.errors import IntegrityError, UsageError

_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_DEFAULT = "default"
Account = Annotated[
    str, typer.Argument(metavar="ACCOUNT", help="The member's account, such as alice.", show_default=False)
]


class Role(StrEnum):
    """What a member may be."""

    READER = "reader"
    PUBLISHER = "publisher"
    MAINTAINER = "maintainer"
    OWNER = "owner"


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    org = group(
        "org",
        "Organisations: members and roles, keys, quotas, and who sees which skill.",
        ("make", make, "acme"),
        ("show", show, "acme"),
        ("set", change, "acme --visibility private --protected stable,prod"),
        ("visibility", visibility, "acme/weld-seam public"),
        ("invite", invite, "acme --role publisher"),
        ("invitations", list_invitations, "acme"),
        ("withdraw", withdraw, "acme 0f8a1c2b3d4e5f60"),
        ("members", list_members, "acme"),
        ("role", set_role, "acme bob maintainer"),
        ("remove", remove, "acme bob"),
        ("leave", leave, "acme"),
        ("audit", audit, "acme"),
    )
    key = group(
        "org key",
        "Keys that may sign an organisation's skills.",
        ("add", add_key, "acme default"),
        ("list", list_keys, "acme"),
        ("remove", remove_key, f"acme {'3f' * 32}"),
    )
    org.add_typer(key, name="key")
    org.add_typer(webhooks.commands(), name="webhook")
    app.add_typer(org, name="org", rich_help_panel=SHARE)


def make(
    org: Org,
    seen: Annotated[
        Visibility,
        typer.Option("--visibility", metavar="public|network|private", help="Who may see its new skills."),
    ] = Visibility.PRIVATE,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Make an organisation and be its owner; for the registry's operators."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        made = accounts.make_org(there, org, seen)
    out.line(f"{org} is there and you are its owner; its new skills are {made['visibility']}")
    note(f"next: neuraverse org key add {org} default, neuraverse org invite {org}")
    out.json(made)


def show(org: Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """Show what is set for an organisation, and how much of its quotas it uses."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.describe_org(there, org)
    _say_org(out, found)


def change(
    org: Org,
    seen: Annotated[
        Visibility | None,
        typer.Option(
            "--visibility",
            metavar="public|network|private",
            help="Who may see its new skills.",
            show_default=False,
        ),
    ] = None,
    protected: Annotated[
        str | None,
        typer.Option(
            "--protected",
            metavar="ALIASES",
            help="Aliases that only maintainers and owners move, with commas between; '' for none.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", metavar="N", help="Quota of stored bytes, such as 50GB.", show_default=False),
    ] = None,
    versions: Annotated[
        str | None, typer.Option("--versions", metavar="N", help="Quota of versions.", show_default=False)
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option("--requests", metavar="N", help="Quota of requests a minute.", show_default=False),
    ] = None,
    events: Annotated[
        str | None, typer.Option("--events", metavar="N", help="Quota of events an hour.", show_default=False)
    ] = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Set visibility of new skills and protected aliases (owners), or quotas (operators).

    A quota of 0 is without limit, and of `default` is what the registry gives everybody.
    """
    from neuraverse.client import accounts

    out = Out(json)
    changes: dict[str, Any] = {} if seen is None else {"visibility": str(seen)}
    if protected is not None:
        changes["protected"] = [alias.strip() for alias in protected.split(",") if alias.strip()]
    quotas = {"bytes": size, "versions": versions, "requests": requests, "events": events}
    for name, text in quotas.items():
        if text is not None:
            changes[f"quota_{name}"] = _quota(name, text)
    if not changes:
        raise UsageError("nothing is to be set", remedy=f"name an option, or see `neuraverse org show {org}`")
    with accounts.reach(registry) as there:
        found = accounts.change_org(there, org, changes)
    _say_org(out, found)


def _quota(name: str, text: str) -> int | None:
    units = "|".join(_UNITS) if name == "bytes" else ""
    if text == _DEFAULT:
        return None
    found = re.fullmatch(f"([0-9]{{1,15}}) ?({units})", text)
    if found is None:
        more = ", with kB, MB, GB or TB behind it" if units else ""
        raise UsageError(f"--{name} {text!r} is no quota", remedy=f"give a number{more}, or {_DEFAULT!r}")
    return int(found[1]) * _UNITS[found[2]]


def _say_org(out: Out, found: dict[str, Any]) -> None:
    quota, used = found["quota"], found["used"]
    limits = {name: _DEFAULT if value is None else f"{value:,}" for name, value in quota.items()}
    out.fields(
        [
            ("organisation", found["name"]),
            ("members", f"{found['members']}"),
            ("new skills are", found["visibility"]),
            ("protected", ", ".join(found["protected"]) or "no alias"),
            ("bytes", f"{used['bytes']:,} of {limits['bytes']}"),
            ("versions", f"{used['versions']:,} of {limits['versions']}"),
            ("requests a minute", limits["requests"]),
            ("events an hour", limits["events"]),
        ]
    )
    out.json(found)


def visibility(
    name: Annotated[str, typer.Argument(metavar="ORG/SKILL", help="The skill.", show_default=False)],
    seen: Annotated[
        Visibility,
        typer.Argument(
            metavar="public|network|private",
            help="public: everybody, network: whoever signs in, private: the organisation.",
            show_default=False,
        ),
    ],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Show a skill to everybody, to whoever signs in, or to its organisation alone; all its versions."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.show_skill(there, name, seen)
    out.line(f"{name} is {seen}")
    out.json({"name": name, "visibility": str(seen)})


def invite(
    org: Org,
    role: Annotated[
        Role,
        typer.Option("--role", metavar="reader|publisher|maintainer|owner", help="What its bearer becomes."),
    ] = Role.READER,
    days: Annotated[
        float, typer.Option("--days", metavar="N", min=0.001, help="How long the code holds.")
    ] = 7.0,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Make a code that lets its bearer join, once. It is printed now, alone on stdout, and never again."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        made = accounts.invite(there, org, role, days * HOURS)
        note(f"a code for a {made['role']} of {org}, until {made['expires']}; it works once.")
        note(f"whoever joins: neuraverse login --registry {there.url}, and gives it:")
    out.secret(made["code"])
    out.json(made, secret=True)


def list_invitations(org: Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """List invitations, and who used them."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.invitations(there, org)
    out.table(
        ("id", "role", "holds until", "used"),
        [
            (
                each["id"],
                each["role"],
                each["expires_at"],
                f"by {each['used_by']} at {each['used_at']}" if each["used_at"] else "–",
            )
            for each in found
        ],
    )
    out.json(found)


def withdraw(
    org: Org,
    invitation: Annotated[
        str, typer.Argument(metavar="ID", help="As `org invitations` shows it.", show_default=False)
    ],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """End an invitation that was not used."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.withdraw(there, org, invitation)
    out.line(f"the invitation {invitation} is over")
    out.json({"id": invitation})


def list_members(org: Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """List the people of an organisation and their roles."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.members(there, org)
    out.table(("account", "role", "since"), [(each["name"], each["role"], each["since"]) for each in found])
    out.json(found)


def set_role(
    org: Org,
    account: Account,
    role: Annotated[
        Role,
        typer.Argument(
            metavar="reader|publisher|maintainer|owner", help="What the member becomes.", show_default=False
        ),
    ],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Change a member's role; it holds at once."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.set_role(there, org, account, role)
    out.line(f"{account} is {role} of {org}")
    out.json({"org": org, "account": account, "role": str(role)})


def remove(org: Org, account: Account, registry: options.Registry = None, json: options.Json = None) -> None:
    """Take a member out; what is private to the organisation is closed to them at once."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.remove_member(there, org, account)
    out.line(f"{account} is no member of {org} any more")
    out.json({"org": org, "account": account})


def leave(org: Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """Leave an organisation. Its last owner cannot."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        account = accounts.whoami(there)["account"]
        if account is None:
            raise UsageError(f"nobody is signed in to {there.url}", remedy="`neuraverse login` first")
        accounts.remove_member(there, org, account)
    out.line(f"you are no member of {org} any more")
    out.json({"org": org, "account": account})


def audit(
    org: Annotated[
        str | None,
        typer.Argument(metavar="[ORG]", help="The registry's own, for operators, if not given."),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option("--before", metavar="ID", min=1, help="Go on before this entry.", show_default=False),
    ] = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Show who did what, the newest first; nothing is ever taken out of it."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.audit(there, org, before)
    out.table(
        ("id", "when", "who", "did", "to", "with"),
        [
            (
                f"{each['id']}",
                each["at"],
                each["actor"] or "–",
                each["action"],
                each["target"],
                plain_json.dumps(each["data"]) if each["data"] else "",
            )
            for each in found
        ],
    )
    out.json(found)


def add_key(
    org: Org,
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY", help="Name of an own key, or a file PUBLIC.pem of somebody's.", show_default=False
        ),
    ],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Let a key sign an organisation's skills from now on."""
    from neuraverse.client import accounts

    out = Out(json)
    pem = _public(key)
    with accounts.reach(registry) as there:
        fingerprint = accounts.add_key(there, org, pem)
    out.line(f"skills of {org} may now be signed by {fingerprint}")
    out.json({"org": org, "fingerprint": fingerprint})


def _public(key: str) -> bytes:
    """A public key from a file, or the public half of an own one."""
    from neuraverse.keys import MAX_KEY_BYTES, KeyStore, PublicKey
    from neuraverse.storage import read_regular

    if "/" not in key and not key.endswith(".pem"):
        return KeyStore().public_key(key).pem
    try:
        return PublicKey.parse(read_regular(Path(key).expanduser(), MAX_KEY_BYTES)).pem
    except IntegrityError as error:
        raise UsageError(error.message, remedy="name a public.pem, or an own key") from error


def list_keys(org: Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """List the keys that sign, or signed, an organisation's skills."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.keys(there, org)
    out.table(
        ("fingerprint", "since", "signs"),
        [
            (k["fingerprint"], k["created_at"], f"until {k['revoked_at']}" if k["revoked_at"] else "yes")
            for k in found
        ],
    )
    out.json(found)


def remove_key(
    org: Org,
    fingerprint: Annotated[
        str, typer.Argument(metavar="FINGERPRINT", help="As `org key list` shows it.", show_default=False)
    ],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Let a key sign nothing more; what it signed stays."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.remove_key(there, org, fingerprint)
    out.line(f"{fingerprint} signs nothing of {org} any more")
    out.json({"org": org, "fingerprint": fingerprint})
