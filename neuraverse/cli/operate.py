"""Operate: serve a registry, and look after the one that runs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from neuraverse.cli import options
from neuraverse.cli.options import OPERATE, example
from neuraverse.cli.output import Out, note, steps, transfer
from neuraverse.errors import IntegrityError

if TYPE_CHECKING:
    from neuraverse.registry import Settings
    from neuraverse.registry.service import Registry

T = TypeVar("T")
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder of the registry; ./registry if not set anywhere."),
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML; see docs/deploying.md.")
]
Backups = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of backups; it may hold several.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command(
        "serve",
        rich_help_panel=OPERATE,
        epilog=example("neuraverse serve --data registry --port 8420", "neuraverse serve --print-config"),
    )(serve)
    group = typer.Typer(
        help="Back up, restore, check and tidy a registry, or get into it; while it is served."
    )
    for name, command, line in (
        ("backup", back_up, "backup /mnt/backups --data registry"),
        ("restore", restore, "restore /mnt/backups --data registry-2"),
        ("check", check, "check --data registry"),
        ("gc", gc, "gc --data registry --dry-run"),
        ("stats", stats, "stats --data registry"),
        ("migrate", migrate, "migrate --data registry --to 0001"),
        ("operator", operator, "operator --data registry"),
        ("recover", recover, "recover alice --data registry"),
    ):
        group.command(name, epilog=example(f"neuraverse registry {line}"))(command)
    app.add_typer(group, name="registry", rich_help_panel=OPERATE)


def serve(
    data: Data = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on, 127.0.0.1 by default; 0.0.0.0 for all."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="N", help="Port to listen on, 8420 by default; 0 takes a free one."),
    ] = None,
    everybody: Annotated[
        bool | None,
        typer.Option(
            "--open/--closed",
            help="Whether anybody may publish under names that no organisation with members has; closed by"
            " default.",
        ),
    ] = None,
    config: Config = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting as it holds, as TOML, and end.")
    ] = False,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            "--ready-file",
            metavar="FILE",
            help="Gets the address as JSON once it answers; removed at the end.",
        ),
    ] = None,
) -> None:
    """Host a registry until Ctrl-C.

    Its first start prints a code, with which `neuraverse login` makes you its operator; you make
    organisations and invite. With --open, anybody may publish under names that are free. Robots trust keys,
    not the server. Settings come from the command line, the environment (NEURAVERSE_REGISTRY_...), the file,
    and defaults, in this order.
    """
    from neuraverse.registry import serve as run

    settings = _settings(data, config, host=host, port=port, open=everybody)
    if print_config:
        print(settings.as_toml(), end="")
        return

    def ready(url: str) -> None:
        print(f"neuraverse registry ready at {url}", flush=True)
        note(f"publish to it with: neuraverse publish PATH --registry {url}")

    run(settings, ready_file=ready_file, on_ready=ready)


def back_up(folder: Backups, data: Data = None, config: Config = None, json: options.Json = None) -> None:
    """Copy a registry into a folder of backups, on a live server too; only what is new is copied."""
    from neuraverse.registry.backup import backup

    out = Out(json)
    with transfer(f"backing up into {folder}") as progress:
        found = _with(_settings(data, config), lambda registry: backup(registry, folder, progress))
    out.line(f"backed up {found.versions} versions, {found.blobs} blobs, {found.bytes:,} bytes into {folder}")
    out.json(dataclasses.asdict(found))


def restore(
    folder: Backups,
    at: Annotated[
        str | None, typer.Option("--at", metavar="SNAPSHOT", help="Which snapshot; the newest if not given.")
    ] = None,
    data: Data = None,
    config: Config = None,
    json: options.Json = None,
) -> None:
    """Fill a new, empty registry from a backup."""
    from neuraverse.registry.backup import restore as bring
    from neuraverse.registry.server import claimed

    out, settings = Out(json), _settings(data, config)
    with claimed(settings, alone=True), transfer(f"restoring {folder}") as progress:
        found = _with(settings, lambda registry: bring(registry, folder, at, progress), migrate=True)
    out.line(f"restored {found.versions} versions as of {found.created} into {settings.data}")
    out.json(dataclasses.asdict(found))


def check(
    data: Data = None,
    config: Config = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair/--no-repair", help="Take rotten blobs out of the way, so that nobody is served them."
        ),
    ] = True,
    json: options.Json = None,
) -> None:
    """Read every byte of a registry and compare it with its digest; exit 1 if something is wrong."""
    from neuraverse.registry.scrub import check as look

    out = Out(json)
    with steps("checking") as progress:
        found = _with(
            _settings(data, config), lambda registry: look(registry, repair=repair, progress=progress)
        )
    for fault in found.faults:
        needed = f"; needed by {', '.join(fault.versions)}" if fault.versions else ""
        out.line(f"{fault.kind}: {fault.detail}{needed}")
    out.line(f"checked {found.versions} versions, {found.blobs} blobs, {found.bytes:,} bytes")
    out.json(dataclasses.asdict(found))
    if found.faults:
        raise IntegrityError(
            f"{len(found.faults)} things are wrong in the registry",
            remedy="publish the skills again that need them, or restore a backup",
        )


def gc(
    data: Data = None,
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    json: options.Json = None,
) -> None:
    """Remove blobs that no version refers to, what crashes left, and expired uploads; past their grace."""
    from neuraverse.registry.collect import collect

    out = Out(json)
    found = _with(_settings(data, config), lambda registry: collect(registry, dry_run=dry_run))
    out.line(f"{'would remove' if dry_run else 'removed'} {found.sentence}")
    out.json(dataclasses.asdict(found))


def stats(data: Data = None, config: Config = None, json: options.Json = None) -> None:
    """Show how much a registry holds."""
    from neuraverse.registry import index

    out = Out(json)

    async def count(registry: Registry) -> dict[str, Any]:
        places = {"database": registry.database.name, "store": registry.store.name}
        counts = await registry.database.read(index.counts)
        counts["bytes"] = counts.pop("blob_bytes")
        return {"registry": registry.database.registry_id, **places, **counts}

    found = _with(_settings(data, config), count)
    out.fields([(name, f"{v:,}" if isinstance(v, int) else v) for name, v in found.items()])
    out.json(found)


def migrate(
    to: Annotated[
        str, typer.Option("--to", metavar="SCHEMA", help="Such as 0001, or head for this release's.")
    ] = "head",
    data: Data = None,
    config: Config = None,
) -> None:
    """Bring a database to another schema, up or down; `serve` goes up by itself. Back it up first."""
    from neuraverse.registry.database import Database
    from neuraverse.registry.server import claimed

    settings = _settings(data, config)
    with claimed(settings, alone=True):
        asyncio.run(Database(settings.database_url).migrate(to))
    Out().line(f"the database has the schema {to}")


def operator(data: Data = None, config: Config = None, json: options.Json = None) -> None:
    """Make a code that lets its bearer operate the registry; alone on stdout.

    For who has the registry's machine and lost the code of its first start. It works once, within a day, for
    a new account or one that is signed in; earlier codes of this kind end.
    """
    from neuraverse.registry.tenants.accounts import new_operator

    _give(data, config, json, "operate the registry", new_operator)


def recover(
    account: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="Whose it is, such as alice.", show_default=False)
    ],
    data: Data = None,
    config: Config = None,
    json: options.Json = None,
) -> None:
    """Make a code that signs somebody in whose tokens are lost or over; alone on stdout.

    It works once, within a day. What was lost still counts: `neuraverse token list` and `token revoke`.
    """
    from neuraverse.registry.tenants.accounts import recover as code_for

    _give(data, config, json, f"sign in as {account}", code_for, account)


def _give(
    data: Path | None, config: Path | None, json: str | None, what: str, make: Callable[..., str], *args: str
) -> None:
    """Show a code that the registry makes, once."""
    out = Out(json)
    code = _with(_settings(data, config), lambda registry: registry.database.write(make, *args))
    note(f"to {what}, within a day: neuraverse login, and give this code, which works once:")
    out.secret(code)
    out.json({"code": code}, secret=True)


def _settings(data: Path | None, config: Path | None, **given: Any) -> Settings:
    from neuraverse.registry import Settings

    return Settings.load(config, data=data, **given)


def _with(settings: Settings, task: Callable[[Registry], Awaitable[T]], *, migrate: bool = False) -> T:
    """Run a task on a registry that is there, without making one by mistake."""
    from neuraverse.errors import StorageError
    from neuraverse.registry.service import opened

    path = settings.data / "registry.db"
    if not migrate and settings.database_url.startswith("sqlite") and not path.exists():
        raise StorageError(f"there is no registry in {settings.data}", remedy="name its folder with --data")

    async def run() -> T:
        async with opened(settings, migrate=migrate) as registry:
            return await task(registry)

    return asyncio.run(run())
