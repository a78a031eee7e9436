"""The command line as a whole: its story, its commands in that order, and what becomes of errors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from neuraverse.cli import accounts, cache, fleet, learn, operate, orgs, publish, receive, use
from neuraverse.cli.demo import demo
from neuraverse.cli.failures import INTERRUPTED, told
from neuraverse.cli.options import LEARN, example
from neuraverse.cli.output import note

STORY = (
    *("demo", "train", "fine-tune", "eval", "recipes", "envs"),
    *("keys", "publish", "alias", "yank", "unyank", "revoke", "deprecate"),
    *("serve", "registry", "fleet"),
    *("login", "logout", "whoami", "org", "token", "robot"),
    *("search", "show", "lineage", "diff", "watch", "pull", "verify", "cache"),
    *("run", "robots", "version"),
)
_DEBUG = "--debug"
# Typer brings its own copy of click, or uses click's, by version: this is ClickException of either.
_ClickError = typer.BadParameter.__mro__[2]


class Cli(TyperGroup):
    """The group of all commands: lists them in the order of the story and turns errors into one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the story."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: STORY.index(name) if name in STORY else len(STORY))

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run one command and exit."""
        given = list(sys.argv[1:] if args is None else args)
        words = [word for word in given if word != _DEBUG]
        debug = len(words) < len(given)
        try:
            code = super().main(words, "neuraverse", standalone_mode=False, **extra)
            sys.stdout.flush()
        except (typer.Abort, KeyboardInterrupt):
            code = INTERRUPTED
        except Exception as error:
            _drop_what_cannot_be_written()
            if isinstance(error, BrokenPipeError):  # the reader of stdout has gone, as `| head` does
                sys.exit(1)
            if debug and not isinstance(error, _ClickError):
                raise
            code = _say(error, words)
        if code == INTERRUPTED:
            note("interrupted; run the same command again to go on")
        sys.exit(code if isinstance(code, int) else 0)


def _say(error: Exception, words: Sequence[str]) -> int:
    """Print `error` in one line on stderr; the exit code."""
    if isinstance(error, _ClickError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "neuraverse"
        message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
        note(f"error: {message} - see `{command} --help`")
        return 2
    name = next((f"neuraverse {word}" for word in words if not word.startswith("-")), "neuraverse")
    ours = told(error, name)
    note(f"error: {ours}")
    return ours.exit_code


def _drop_what_cannot_be_written() -> None:
    """What stdout still holds and cannot take; else the interpreter fails over it, with a code of its own."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=Cli,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    epilog=example("neuraverse train weld-seam", "neuraverse publish runs/weld-seam-seed0/skill"),
)


@app.callback(invoke_without_command=True)
def story(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; may stand anywhere in a command.")
    ] = False,
) -> None:
    """Robots that teach each other skills.

    A robot learns a skill in simulation (train), signs and publishes it to a registry that you host
    (keys, publish, serve); other robots are told, fetch it, check it (watch, pull, verify), and use it as
    it is or improve it for their own body (run, eval, fine-tune).
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit


for room in (learn, publish, operate, fleet, accounts, orgs, receive, cache, use):
    room.add_to(app)
app.command(
    "demo",
    rich_help_panel=LEARN,
    epilog=example("neuraverse demo", "neuraverse demo --dir /tmp/demo --json demo.json"),
)(demo)
