"""docs/cli.md, from the commands themselves: ``python -m neuraverse.cli.reference > docs/cli.md``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from neuraverse.cli.app import Cli, app

INTRODUCTION = """\
# The command line

Written by `python -m neuraverse.cli.reference > docs/cli.md`; a test fails when it is out of date.

Results go to stdout, progress and errors to stderr. With `--json -` stdout is the JSON alone. An error is one
line, `error: what is wrong - what to do`; `--debug`, anywhere in a command, shows the traceback too.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a refusal or a failed check: a bad signature, a registry that is down, a full disk |
| 2 | wrong usage: an unknown name, a wrong field of a recipe, an extra that is not installed |
| 130 | interrupted; the same command again goes on |

| variable | meaning |
|---|---|
| `NEURAVERSE_HOME` | folder of keys, trust, tokens and cache; `~/.local/share/neuraverse` if not set |
| `NEURAVERSE_REGISTRY` | address of the registry; `http://127.0.0.1:8420` if not set |
| `NEURAVERSE_TOKEN` | token for it; what `neuraverse login` got if not set |
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Name and click command of every command, groups and hidden ones included, in the order of the story."""
    yield from _below("neuraverse", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    known = getattr(command, "commands", {})
    names = command.list_commands(None) if isinstance(command, Cli) else known
    for below in names:
        yield from _below(f"{name} {below}", known[below])


def parameters(command: Any) -> list[Any]:
    """Its arguments and options, without ``--help``."""
    return [p for p in command.params if p.name != "help"]


def examples(command: Any) -> list[str]:
    """Its example lines."""
    lines = (line.strip().replace("\\[", "[") for line in (command.epilog or "").splitlines())
    return [line for line in lines if line.startswith("neuraverse ")]


def reference() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(_section(name, command) for name, command in commands())])


def _section(name: str, command: Any) -> str:
    usage = " ".join([name, *dict.fromkeys(map(_place, parameters(command)))])
    help_text = inspect.cleandoc(command.help or "")
    lines = [f"## `{name}`", "", help_text, ""]
    if not hasattr(command, "commands"):
        lines += ["```", usage, "```", ""]
    if parameters(command):
        lines += ["| | | default |", "|---|---|---|", *map(_row, parameters(command)), ""]
    if examples(command):
        lines += ["```", *examples(command), "```", ""]
    return "\n".join(lines)


def _place(parameter: Any) -> str:
    """An argument as a usage line shows it; options are left to the table."""
    if parameter.param_type_name != "argument":
        return "[OPTIONS]"
    name = parameter.metavar + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar}"
        name = f"{', '.join(parameter.opts)}{value}"
    default = parameter.default
    shown = "" if default in (None, "") or default is False or parameter.required else f"`{default}`"
    needed = "needed" if parameter.required else shown
    cells = (f"`{name}`", parameter.help, needed)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
