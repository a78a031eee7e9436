"""Publish: keys, publish, and what is said of a skill afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuraverse.cli import options
from neuraverse.cli.options import PUBLISH, example
from neuraverse.cli.output import Out, transfer

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
    alias = typer.Typer(help="Let a name such as 'stable' mean a version.")
    alias.callback()(_group)
    alias.command("set", epilog=example("neuraverse alias set acme/weld-seam stable 1.2.0"))(set_alias)
    app.add_typer(
        alias, name="alias", rich_help_panel=PUBLISH, help="Let a name such as 'stable' mean a version."
    )


def _group() -> None:
    """Keep a group of one command a group."""


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
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Check a skill, upload it and make it visible. A publish that was cut can be run again."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client, transfer(f"publishing {path}") as progress:
        found = client.publish(path, key=key, progress=progress)
        url = f"{client.url}/v1/skills/{found.name}/{found.version}"
    out.fields([("published", found.ref), ("digest", found.digest), ("at", url)])
    out.json({"skill": found.ref, "digest": found.digest, "url": url})


def set_alias(
    name: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as stable.", show_default=False)],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Such as 1.2.0.", show_default=False)],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Point an alias at a version; who watches the skill is told."""
    from neuraverse.client import Client

    out = Out(json)
    with Client(registry) as client:
        client.set_alias(name, alias, version)
    out.line(f"{name}@{alias} now means {name}@{version}")
    out.json({"name": name, "alias": alias, "version": version})
