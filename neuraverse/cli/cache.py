"""Receive: what the cache keeps."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.options import RECEIVE, example
from neuraverse.cli.output import Out
from neuraverse.errors import ContentError, UsageError

if TYPE_CHECKING:
    from neuraverse.client.cache import Cache
    from neuraverse.client.keeping import Kept

_UNITS = ("B", "kB", "MB", "GB")


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    cache = typer.Typer(help="List, check and thin out the skills on this machine.")
    cache.command("list", epilog=example("neuraverse cache list"))(list_kept)
    cache.command("verify", epilog=example("neuraverse cache verify"))(verify_kept)
    cache.command(
        "prune",
        epilog=example(
            "neuraverse cache prune --keep 2", "neuraverse cache prune --all --except acme/weld-seam@1.2.0"
        ),
    )(prune)
    app.add_typer(cache, name="cache", rich_help_panel=RECEIVE)


def list_kept(json: options.Json = None) -> None:
    """List the skills in the cache, the last used first."""
    from neuraverse.client.keeping import kept

    out = Out(json)
    found = kept(_cache())
    if found:
        out.table(
            ("skill", "digest", "size", "last used"),
            [(each.ref, each.digest[:19], _size(each.size), _when(each)) for each in found],
        )
    else:
        out.line("the cache is empty")
    out.json([_plain(each) for each in found])


def verify_kept(json: options.Json = None) -> None:
    """Check every byte of every skill in the cache and that you trust who signed it; exit 1 if not."""
    from neuraverse.client.keeping import verify
    from neuraverse.trust import KeyStore

    out, said, wrong = Out(json), [], 0
    for each, error in verify(_cache(), KeyStore()):
        wrong += error is not None
        out.line(f"{each.ref}  {'good' if error is None else error}")
        said.append(_plain(each) | {"ok": error is None, "error": "" if error is None else str(error)})
    if not said:
        out.line("the cache is empty")
    out.json(said)
    if wrong:
        raise ContentError(
            f"{wrong} of {len(said)} skills in the cache must not be used",
            remedy="pull them again, or trust their publisher's key",
        )


def prune(
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0.0, help="Remove what was not used for so long."),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=0, help="Remove all but the N last used versions of each skill."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every skill.")] = False,
    spared: Annotated[
        list[str] | None,
        typer.Option(
            "--except",
            metavar="REF",
            help="Spare it: org/skill, org/skill@1.0.0 or sha256:HEX; may be given several times.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: options.Json = None,
) -> None:
    """Remove skills from the cache, and what is left over from cut downloads; never what is in use.

    With both --older-than and --keep, a skill goes only if both say so. With neither and no --all, no skill
    goes.
    """
    from neuraverse.client import Ref
    from neuraverse.client.keeping import DAY_S, Pruned, chosen, kept
    from neuraverse.client.keeping import prune as remove

    out, cache = Out(json), _cache()
    chooses = everything or older_than is not None or keep is not None
    if spared and not chooses:
        raise UsageError("--except needs to know what to remove", remedy="add --all, --older-than or --keep")
    names = [text if Ref.parse(text).digest or "@" in text else Ref.parse(text).name for text in spared or ()]
    unused_s = None if older_than is None else older_than * DAY_S
    going = chosen(kept(cache), unused_s=unused_s, last=keep, spared=names) if chooses else []
    done = Pruned(skills=tuple(going), in_use=(), files=0, size=0) if dry_run else remove(cache, going)
    for each in done.skills:
        out.line(f"{'would remove' if dry_run else 'removed'} {each.ref}  {each.digest}")
    for each in done.in_use:
        out.line(f"in use: {each.ref}  {each.digest}")
    if not dry_run:
        out.line(f"freed {_size(done.size)}")
    out.json(
        {
            "removed": [_plain(each) for each in done.skills],
            "in_use": [_plain(each) for each in done.in_use],
            "left_over": done.files,
            "freed": done.size,
            "dry_run": dry_run,
        }
    )


def _cache() -> Cache:
    from neuraverse.client.cache import Cache
    from neuraverse.keys import home

    return Cache(home())


def _plain(each: Kept) -> dict[str, Any]:
    return {
        "skill": each.ref,
        "digest": each.digest,
        "path": str(each.path),
        "size": each.size,
        "used": _when(each),
    }


def _when(each: Kept) -> str:
    return datetime.datetime.fromtimestamp(each.used, datetime.UTC).isoformat(timespec="seconds")


def _size(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"
