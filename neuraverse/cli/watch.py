"""Receive: watch, which prints what happens in a registry or keeps installed skills up to date."""

from __future__ import annotations

import contextlib
import dataclasses
import json as jsons
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.output import Out
from neuraverse.errors import UsageError

if TYPE_CHECKING:
    from neuraverse.client import Client, Event
    from neuraverse.interface import Offer
    from neuraverse.runtime import Change

_MOST_REFS = 50  # each has a connection of its own
_END_S = 5.0  # so long may what is on its way take at the end
_LOOK_S = 0.5
_OFFER_BYTES = 1 << 20


def watch(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            help="org/skill: only this skill, everything without. With --apply: what to keep, one or more of"
            " org/skill, org/skill@alias or org/skill@^1.2.",
            show_default=False,
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="CURSOR",
            help="Events behind this one, as `--json` shows it; 0 is the beginning, now if not given.",
        ),
    ] = None,
    org: Annotated[
        str | None, typer.Option("--org", metavar="ORG", help="Only skills of this organisation.")
    ] = None,
    interface: Annotated[
        str | None,
        typer.Option("--interface", metavar="DIGEST", help="Only versions with this interface, sha256:…"),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Keep skills installed at what each REF means.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into",
            metavar="DIR",
            help="With --apply: DIR/org/skill is a link to the skill's folder, swapped in one step.",
            show_default=False,
        ),
    ] = None,
    robot: Annotated[
        str | None,
        typer.Option(
            "--robot",
            metavar="NAME|FILE",
            help="With --apply: refuse what it cannot run. A robot by name, an arm's MJCF file with --tool,"
            " or a .json file of what it offers.",
        ),
    ] = None,
    tool: options.Tool = None,
    env: Annotated[
        str | None,
        typer.Option(
            "--env",
            metavar="ID",
            help="Gymnasium id of the task whose cell a robot by name stands in; all that come along if not"
            " given.",
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe",
            metavar="COMMAND",
            help="With --apply: must end with 0 on a new skill's folder before it is swapped in.",
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            "--health",
            metavar="COMMAND",
            help="With --apply: must end with 0 after the swap, else the link goes back.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option("--health-timeout", metavar="S", min=0.1, max=3600.0, help="How long either may take."),
    ] = 30.0,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help="With --apply: tell the registry what runs here; if the token is a robot's, if not given.",
            show_default=False,
        ),
    ] = None,
    registry: options.Registry = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print what happens in a registry as it happens, until Ctrl-C. Lost connections are made anew.

    With --apply it is a robot's: each skill is pulled, verified, tried, and swapped in for whoever runs what
    the link points to; a revoked one is left. Probe and health check get the skill's folder as their last
    argument and in $NEURAVERSE_SKILL. What failed is not tried again until REF means something else.
    """
    from neuraverse.client import Client, Ref

    if not apply:
        given = {"--into": into, "--robot": robot, "--tool": tool, "--env": env, "--probe": probe}
        _only_with("--apply", {**given, "--health": health, "--report": report})
        with Client(registry) as client:
            events = client.watch(after, _one_name(refs or ()), org=org, interface=interface)
            _print_events(events, json=json)
        return
    _only_with("no --apply", {"--after": after, "--org": org, "--interface": interface})
    if not refs or into is None:
        raise UsageError(
            "--apply needs at least one REF, and --into DIR", remedy="name what to keep, and where"
        )
    if len(refs) > _MOST_REFS:
        raise UsageError(f"{len(refs)} references are too many for one process", remedy="start another one")
    if len({Ref.parse(ref).name for ref in refs}) < len(refs):
        raise UsageError("a skill is named twice", remedy="there is one link for each")
    if robot is None and (tool or env):
        raise UsageError("--tool and --env are for checking a robot", remedy="name it with --robot")
    commands = {"probe": _command("--probe", probe), "health": _command("--health", health)}
    with Client(registry) as client:
        _keep(client, refs, into, _offer(robot, tool, env), commands, timeout, report, json=json)


def _only_with(what: str, given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} is for a watch with {what}", remedy="see `neuraverse watch --help`")


def _one_name(refs: list[str] | tuple[()]) -> str | None:
    from neuraverse.client import Ref

    if len(refs) > 1:
        raise UsageError("one skill can be watched, or all of them", remedy="with --apply, it can be several")
    for name in refs:
        if Ref.parse(name).name != name:
            raise UsageError(
                f"{name!r} is not ORG/SKILL", remedy="leave out the version: all of them are watched"
            )
    return refs[0] if refs else None


def _print_events(events: Iterable[Event], *, json: bool) -> None:
    out = Out()
    for event in events:
        if json:
            out_line(dataclasses.asdict(event))
        else:
            out.line(_words(event))
            sys.stdout.flush()


def _words(event: Event) -> str:
    alias = f" as {event.alias}" if event.alias else ""
    parents = f"  child of {' '.join(event.parents)}" if event.parents else ""
    version = f"@{event.version}" if event.version else ""
    why = f": {event.reason}" if event.reason else ""
    return f"{event.at}  {event.type} {event.name}{version}{alias}{why}{parents}"


def out_line(value: dict[str, Any]) -> None:
    """One JSON object as one line, at once."""
    print(jsons.dumps(value), flush=True)


def _command(option: str, text: str | None) -> list[str]:
    if text is None:
        return []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}", remedy="quote it as for a shell") from error
    if not words or shutil.which(words[0]) is None:
        raise UsageError(
            f"{option} {text!r}: there is no such program",
            remedy="name one that can be run; no shell does it",
        )
    return words


def _offer(robot: str | None, tool: str | None, env: str | None) -> Offer | None:
    """What the robot offers, if that is to be asked."""
    from neuraverse.cli.cell import offer_here
    from neuraverse.interface import Offer
    from neuraverse.storage import read_regular

    if robot is None:
        return None
    if robot.endswith(".json"):
        return Offer.parse(read_regular(Path(robot).expanduser(), _OFFER_BYTES))
    return offer_here(robot, tool, env)


def _keep(
    client: Client,
    refs: list[str],
    into: Path,
    offer: Offer | None,
    commands: dict[str, list[str]],
    timeout: float,
    report: bool | None,
    *,
    json: bool,
) -> None:
    from neuraverse.runtime import Installer, Reporter

    out, one_at_a_time = Out(), threading.Lock()
    reporter = None if report is False else Reporter(client, wanted=report is True)

    def tell(change: Change) -> None:
        if reporter is not None:
            reporter.tell(change)
        with one_at_a_time, contextlib.suppress(OSError, ValueError):  # a robot goes on, whoever listens
            if json:
                out_line(dataclasses.asdict(change))
                return
            version = f" {change.version}" if change.version else ""
            why = f": {change.reason}" if change.reason else ""
            out.line(f"{change.at}  {change.follows}  {change.state}{version}{why}")
            sys.stdout.flush()

    installers = [
        Installer(client, ref, into, offer=offer, timeout_s=timeout, tell=tell, **commands) for ref in refs
    ]
    started = []
    try:
        for installer in installers:
            installer.start()
            started.append(installer)
        while True:
            time.sleep(_LOOK_S)  # not without end: a signal just before it would not be seen
    finally:
        for installer in started:
            installer.agent.ending.set()  # all at once, before each is waited for
        for installer in started:
            installer.stop(_END_S)
        if reporter is not None:
            reporter.stop(_END_S)
