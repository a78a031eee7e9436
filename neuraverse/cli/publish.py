"""Publish: keys, publish, and what is said of a skill afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuraverse.cli import options
from neuraverse.cli.options import PUBLISH, example
from neuraverse.cli.output import Out, transfer
from neuraverse.errors import UsageError

Name = Annotated[str, typer.Argument(metavar="ORG/SKILL", help="The skill.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    keys = typer.Typer(help="Make a key to sign with, trust the keys of others, list both.")
    keys.command("new", epilog=example("neuraverse keys new"))(new_key)
    keys.command("trust", epilog=example("neuraverse keys trust acme.pem --org acme"))(trust_key)
    keys.command("list", epilog=example("neuraverse keys list"))(list_keys)
    app.add_typer(keys, name="keys", rich_help_panel=PUBLISH)
    app.command(
        "publish", rich_help_panel=PUBLISH, epilog=example("neuraverse publish runs/weld-seam-seed0/skill")
    )(publish)
    alias = typer.Typer(help="Let a name such as 'stable' mean a version; each move is signed and kept.")
    alias.command("set", epilog=example("neuraverse alias set acme/weld-seam stable 1.2.0"))(set_alias)
    alias.command("undo", epilog=example("neuraverse alias undo acme/weld-seam stable"))(undo_alias)
    alias.command("list", epilog=example("neuraverse alias list acme/weld-seam stable"))(list_aliases)
    app.add_typer(alias, name="alias", rich_help_panel=PUBLISH)
    for name, command, line in (
        ("yank", yank, 'yank acme/weld-seam@1.2.0 --reason "too fast on thin sheet"'),
        ("unyank", unyank, "unyank acme/weld-seam@1.2.0"),
        ("revoke", revoke, 'revoke acme/weld-seam@1.2.0 --reason "burns through"'),
        ("deprecate", deprecate, 'deprecate acme/weld-seam "no longer kept" --successor acme/weld'),
    ):
        app.command(name, rich_help_panel=PUBLISH, epilog=example(f"neuraverse {line}"))(command)


def new_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")] = "default",
    json: options.Json = None,
) -> None:
    """Make a key pair to sign with. The private half never leaves this machine; give the public half away."""
    from neuraverse.trust import KeyStore

    out, store = Out(json), KeyStore()
    key = store.new(name)
    public = store.private_key_path(name).with_name("public.pem")
    out.fields([("key", name), ("fingerprint", key.fingerprint), ("public half", str(public))])
    out.json({"name": name, "fingerprint": key.fingerprint, "public": str(public)})


def trust_key(
    pem: Annotated[
        Path, typer.Argument(metavar="PUBLIC.pem", help="The publisher's public key.", show_default=False)
    ],
    org: Annotated[
        str,
        typer.Option(
            "--org", metavar="ORG", help="Whose skills it may sign: the part of a name before the slash."
        ),
    ],
    json: options.Json = None,
) -> None:
    """Trust a publisher's key for every skill of an organisation."""
    from neuraverse.trust import KeyStore

    out = Out(json)
    key = KeyStore().trust(pem, org)
    out.line(f"skills of {org} may now be signed by {key.fingerprint}")
    out.json({"org": org, "fingerprint": key.fingerprint})


def list_keys(json: options.Json = None) -> None:
    """List the keys that you sign with and those that you trust."""
    from neuraverse.trust import KeyStore

    out = Out(json)
    found = KeyStore().list()
    out.table(
        ("key", "", "fingerprint"),
        [(k.name or k.org, "yours" if k.name else "trusted for its skills", k.fingerprint) for k in found],
    )
    out.json([{"name": k.name or None, "org": k.org or None, "fingerprint": k.fingerprint} for k in found])


def publish(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The skill's folder.", show_default=False)],
    key: Annotated[
        str, typer.Option("--key", metavar="NAME", help="Own key that signed it, or signs it now.")
    ] = ("default"),
    visibility: Annotated[
        options.Visibility | None,
        typer.Option(
            "--visibility",
            metavar="public|network|private",
            help="Who may see a skill that is new: everybody, whoever signs in, or the organisation; what"
            " the organisation has set if not given.",
            show_default=False,
        ),
    ] = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Check a skill, upload it and make it visible. A publish that was cut can be run again."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client, transfer(f"publishing {path}") as progress:
        found = client.publish(path, key=key, progress=progress, visibility=visibility)
        url = f"{client.url}/v1/skills/{found.name}/{found.version}"
    out.fields([("published", found.ref), ("digest", found.digest), ("at", url)])
    out.json({"skill": found.ref, "digest": found.digest, "url": url})


AliasName = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as stable.", show_default=False)]
Exact = Annotated[
    str, typer.Argument(metavar="ORG/SKILL@VERSION", help="The exact version.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; whoever pulls it is told.")]
OwnKey = Annotated[str, typer.Option("--key", metavar="NAME", help="Own key of the organisation; signs.")]


def set_alias(
    name: Name,
    alias: AliasName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Such as 1.2.0.", show_default=False)],
    key: OwnKey = "default",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Point an alias at a version; who watches the skill is told."""
    _say(
        json,
        registry,
        key,
        f"{name}@{alias} now means {name}@{version}",
        name,
        "alias",
        alias=alias,
        version=version,
    )


def undo_alias(
    name: Name,
    alias: AliasName,
    key: OwnKey = "default",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Take the last move of an alias back; that is a move, too."""
    from neuraverse.client import Client

    with Client(registry) as client:
        last = client.alias_history(name, alias)["moves"][0]
    before = last.get("previous")
    if before is None:
        _say(json, registry, key, f"{name}@{alias} means nothing any more", name, "unalias", alias=alias)
    else:
        text = f"{name}@{alias} means {name}@{before} again"
        _say(json, registry, key, text, name, "alias", alias=alias, version=before)


def list_aliases(
    name: Name,
    alias: Annotated[
        str | None, typer.Argument(metavar="[ALIAS]", help="Show how this one moved.", show_default=False)
    ] = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """List the aliases of a skill, or the moves of one: when, and signed by whom."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client:
        found = client.describe(name)["aliases"] if alias is None else client.alias_history(name, alias)
    if alias is None:
        out.table(("alias", "version"), sorted(found.items()))
    else:
        out.table(
            ("when", "from", "to", "signed by"),
            [(m["at"], m["previous"] or "–", m["version"] or "–", m["by"][:16]) for m in found["moves"]],
        )
    out.json(found)


def yank(
    ref: Exact,
    reason: Reason = "",
    key: OwnKey = "default",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Let no range and no alias choose a version; who names it exactly still gets it, and is told."""
    name, version = _exact(ref)
    _say(json, registry, key, f"{ref} is yanked", name, "yank", version=version, reason=reason)


def unyank(
    ref: Exact,
    key: OwnKey = "default",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Let a yanked version be chosen again."""
    name, version = _exact(ref)
    _say(json, registry, key, f"{ref} can be chosen again", name, "unyank", version=version)


def revoke(
    ref: Exact,
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    key: OwnKey = "default",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Take a version back for good: nobody gets it any more, and robots that run it leave it."""
    name, version = _exact(ref)
    if not yes:
        typer.confirm(f"revoke {ref} for good? Robots that run it will stop using it", abort=True)
    _say(json, registry, key, f"{ref} is revoked", name, "revoke", version=version, reason=reason)


def deprecate(
    name: Name,
    message: Annotated[
        str, typer.Argument(metavar="[MESSAGE]", help="Why; whoever pulls it is told.", show_default=False)
    ] = "",
    successor: Annotated[
        str, typer.Option("--successor", metavar="ORG/SKILL", help="The skill to use instead.")
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="It is not deprecated any more.")] = False,
    key: OwnKey = "default",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Say that a skill should not be used any more, and which one instead."""
    if undo:
        _say(json, registry, key, f"{name} is not deprecated any more", name, "undeprecate")
        return
    if not message:
        raise UsageError("deprecate needs a MESSAGE", remedy="say why, or name --undo")
    fields = {"message": message} | ({"successor": successor} if successor else {})
    _say(json, registry, key, f"{name} is deprecated", name, "deprecate", **fields)


def _exact(ref: str) -> tuple[str, str]:
    from neuraverse.client import Ref

    parsed = Ref.parse(ref)
    if not parsed.is_exact:
        raise UsageError(f"{ref!r} names no exact version", remedy="write org/skill@1.2.0")
    return parsed.name, parsed.which


def _say(
    json: str | None, registry: str | None, key: str, text: str, name: str, action: str, **fields: str
) -> None:
    """Sign and send a statement, and say what holds now."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client:
        event = client.state(name, action, key=key, **{k: v for k, v in fields.items() if v})
    out.line(text)
    out.json({"name": name, "action": action, "event": event, **fields})
