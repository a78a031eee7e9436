"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LEARN, PUBLISH, OPERATE = "Learn", "Publish", "Operate"
SHARE, RECEIVE, USE = "Share", "Receive", "Use"
"""The panels of ``neuraverse --help``, in the order of the story."""

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="org/skill, org/skill@1.0.0, org/skill@^1.2, org/skill@alias, sha256:HEX, or a folder.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.FIELD=VALUE",
        help="Changes to the recipe, such as ppo.lr=3e-4.",
        show_default=False,
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - writes it to stdout."),
]
Registry = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        envvar="NEURAVERSE_REGISTRY",
        help="The registry; http://127.0.0.1:8420 if not given.",
        show_default=False,
    ),
]


Org = Annotated[
    str, typer.Argument(metavar="ORG", help="The organisation, such as acme.", show_default=False)
]


class Visibility(StrEnum):
    """Who may see a skill."""

    PUBLIC = "public"
    NETWORK = "network"
    PRIVATE = "private"


Robot = Annotated[
    str | None,
    typer.Option("--robot", metavar="NAME|FILE", help="A robot by name, or an arm's MJCF file with --tool."),
]
Tool = Annotated[
    str | None,
    typer.Option(
        "--tool", metavar="BODY", help="Body or site that carries the tool, for a robot from a file."
    ),
]
Env = Annotated[
    str | None,
    typer.Option("--env", metavar="ID", help="Gymnasium id of the task; the skill's own if not given."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Own key that signs; 'default' if not given, which is made if you have no key yet.",
        show_default=False,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed of weights, exploration and environments.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="cpu|cuda", help="CUDA if there is one, if not given.", show_default=False
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="Checkpoints and TensorBoard files; a run found there goes on. runs/NAME-seedN if not given.",
        show_default=False,
    ),
]
SkillDir = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Where the skill is written; RUN_DIR/skill if not given.",
        show_default=False,
    ),
]
Episodes = Annotated[
    int | None,
    typer.Option(
        "--episodes",
        metavar="N",
        min=1,
        help="Episodes to score; those of the recipe if not given.",
        show_default=False,
    ),
]


def example(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(("Example:", *(f"  {line}" for line in lines))).replace("[", r"\[")


def group(words: str, text: str, *commands: tuple[str, Callable[..., None], str]) -> typer.Typer:
    """Commands under one word: of each its name, its function, and what stands behind both in an example."""
    made = typer.Typer(help=text)
    for name, command, rest in commands:
        made.command(name, epilog=example(f"neuraverse {words} {name} {rest}".rstrip()))(command)
    return made
