"""Operate: what the robots of an organisation run, pins, holds and roll-outs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.options import OPERATE, group
from neuraverse.cli.output import Out, score_words
from neuraverse.errors import UsageError

RobotName = Annotated[
    str, typer.Argument(metavar="ORG/ROBOT", help="The robot, such as acme/arm-7.", show_default=False)
]
SkillName = Annotated[str, typer.Argument(metavar="ORG/SKILL", help="The skill.", show_default=False)]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever looks later.", show_default=False)
]
Org = Annotated[
    str | None,
    typer.Option(
        "--org",
        metavar="ORG",
        help="Whose robots; not needed if you may steer those of one organisation alone.",
        show_default=False,
    ),
]
Rollout = Annotated[
    str, typer.Argument(metavar="ID", help="The roll-out, as `show` lists it.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    fleet = group(
        "fleet",
        "See what robots run, keep them at a version, or send one to a share of them first.",
        ("status", status, "acme"),
        ("reports", reports, "acme/weld-seam --org acme"),
        ("pin", pin, "acme/arm-7 acme/weld-seam@1.0.0 --reason 'audit'"),
        ("hold", hold, "acme/arm-7 acme/weld-seam"),
        ("free", free, "acme/arm-7 acme/weld-seam"),
    )
    rollout = group(
        "fleet rollout",
        "Send a version to a share of the robots first, and on or back by how it does there.",
        ("start", start, "acme/weld-seam@stable 1.2.0 --stages 5,25,100 --episodes 50"),
        ("show", show, "--org acme"),
        ("next", go_on, "0f8a1c2b3d4e5f60"),
        ("back", back, "0f8a1c2b3d4e5f60"),
        ("hold", halt, "0f8a1c2b3d4e5f60"),
        ("resume", resume, "0f8a1c2b3d4e5f60"),
        ("end", end, "0f8a1c2b3d4e5f60"),
    )
    fleet.add_typer(rollout, name="rollout")
    app.add_typer(fleet, name="fleet", rich_help_panel=OPERATE)


def status(
    org: Annotated[
        str, typer.Argument(metavar="ORG", help="Whose robots, such as acme.", show_default=False)
    ],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Show what each robot follows and runs, since when, and what keeps it there."""
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    with accounts.reach(registry) as there:
        found = robots.status(there, org)
    out.table(("robot", "follows", "runs", "state", "since", "kept by", "reason"), _status_rows(found))
    if not found:
        out.line(f"{org} has no robots; `neuraverse robot add {org}/NAME` makes one an account")
    out.json({"robots": found})


def reports(
    skill: SkillName, org: Org = None, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Show how a skill does on the robots of an organisation: success, and physical errors, as sums."""
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    with accounts.reach(registry) as there:
        org = org or robots.own_org(there)
        found = robots.reports(there, org, skill)
    out.table(
        ("robot", "version", "success", "errors: mean, greatest", "body", "last"),
        [
            (
                each["robot"],
                each["version"],
                _success(each["field"]),
                "; ".join(
                    f"{name} {e['mean']:.3g}, {e['max']:.3g} {e['unit']}"
                    for name, e in each["errors"].items()
                ),
                each["body"].removeprefix("sha256:")[:12],
                each["last"],
            )
            for each in found
        ],
    )
    if not found:
        out.line(f"no robot of {org} has reported on {skill}; see docs/robots.md")
    out.json({"reports": found})


def pin(
    robot: RobotName,
    ref: Annotated[
        str, typer.Argument(metavar="ORG/SKILL@VERSION", help="Where to keep it.", show_default=False)
    ],
    reason: Reason = "",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Keep a robot at a version, whatever the alias that it follows means, until it is freed."""
    if "@" not in ref:
        raise UsageError(f"{ref} names no version", remedy=f"`neuraverse fleet hold {robot} {ref}` keeps it")
    _pin(robot, ref, reason, registry, json, f"{robot} is pinned at {ref}")


def hold(
    robot: RobotName,
    skill: SkillName,
    reason: Reason = "",
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Keep a robot at what it runs of a skill, until it is freed."""
    if "@" in skill:
        raise UsageError(
            f"{skill} names a version", remedy=f"`neuraverse fleet pin {robot} {skill}` keeps it"
        )
    _pin(robot, skill, reason, registry, json, f"{robot} is held at what it runs of {skill}")


def _pin(robot: str, ref: str, reason: str, registry: str | None, json: str | None, done: str) -> None:
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    with accounts.reach(registry) as there:
        robots.pin(there, robot, ref, reason)
    out.line(done)
    out.json({"robot": robot, "at": ref, "reason": reason})


def free(
    robot: RobotName, skill: SkillName, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Let a robot that is pinned or held follow again."""
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    with accounts.reach(registry) as there:
        robots.free(there, robot, skill)
    out.line(f"{robot} follows {skill} again")
    out.json({"robot": robot, "at": skill})


def start(
    follows: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="What the robots follow, such as acme/weld-seam@stable.", show_default=False
        ),
    ],
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="What they shall get.", show_default=False)
    ],
    stages: Annotated[
        str,
        typer.Option("--stages", metavar="PERCENT,...", help="Shares of the robots, one after the other."),
    ] = "5,25,100",
    episodes: Annotated[
        int,
        typer.Option(
            "--episodes",
            metavar="N",
            help="Episodes that robots must report in a stage before it goes on or back by itself; 0 for by"
            " hand alone.",
        ),
    ] = 50,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="RATE",
            help="Success that the field must show, 0 to 1; else what the version before shows there, or"
            " 0.05 below the bound in simulation.",
            show_default=False,
        ),
    ] = None,
    org: Org = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Send a version to a share of an organisation's robots first.

    A stage goes on once the 95 % lower bound of success in the field reaches the threshold, and back once
    the upper bound stays below it. A robot that refuses the version, or rolls it back, is a failed episode.
    """
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    try:
        shares = [float(each) for each in stages.split(",")]
    except ValueError:
        raise UsageError(f"--stages {stages}: not numbers with commas between", remedy="5,25,100") from None
    with accounts.reach(registry) as there:
        made = robots.start_rollout(
            there,
            org or robots.own_org(there),
            follows,
            version,
            stages=shares,
            episodes=episodes,
            threshold=threshold,
        )
    _say(out, made)
    out.json(made)


def show(
    rollout: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="One roll-out; all of them without.", show_default=False),
    ] = None,
    org: Org = None,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Show roll-outs, or how far one is: its robots, and how its stage does in the field."""
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    with accounts.reach(registry) as there:
        whose = org or robots.own_org(there)
        if rollout is not None:
            one = robots.rollout(there, whose, rollout)
            _say(out, one)
            out.json(one)
            return
        found = robots.rollouts(there, whose)
    out.table(
        ("id", "follows", "to", "from", "state", "share", "changed"),
        [
            (
                each["id"],
                each["follows"],
                each["target"]["version"],
                each["baseline"]["version"],
                each["state"],
                f"{each['share']:g} %",
                each["changed"],
            )
            for each in found
        ],
    )
    if not found:
        out.line(f"{whose} has no roll-outs")
    out.json({"rollouts": found})


def go_on(
    rollout: Rollout, org: Org = None, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Go on to the next share, whatever was reported; from the last one, to the end of all stages."""
    _step(rollout, "next", org, registry, json)


def back(
    rollout: Rollout, org: Org = None, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Give all robots what they had before, until the roll-out ends."""
    _step(rollout, "back", org, registry, json)


def halt(
    rollout: Rollout, org: Org = None, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Stay at this share until somebody lets it go on."""
    _step(rollout, "hold", org, registry, json)


def resume(
    rollout: Rollout, org: Org = None, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Let a stage that is held decide by itself again; it begins to count anew."""
    _step(rollout, "resume", org, registry, json)


def end(
    rollout: Rollout, org: Org = None, registry: options.Registry = None, json: options.Json = None
) -> None:
    """End a roll-out: what the robots follow means what it says again."""
    _step(rollout, "end", org, registry, json)


def _step(rollout: str, to: str, org: str | None, registry: str | None, json: str | None) -> None:
    from neuraverse.client import accounts
    from neuraverse.client import fleet as robots

    out = Out(json)
    with accounts.reach(registry) as there:
        found = robots.take_step(there, org or robots.own_org(there), rollout, to)
    _say(out, found)
    out.json(found)


def _say(out: Out, rollout: dict[str, Any]) -> None:
    counts = rollout["robots"]
    decides = f"from {rollout['episodes']} episodes on" if rollout["episodes"] else "by hand"
    out.fields(
        [
            ("roll-out", rollout["id"]),
            ("follows", rollout["follows"]),
            ("version", f"{rollout['target']['version']}, from {rollout['baseline']['version']}"),
            ("state", f"{rollout['state']}; {rollout['reason']}"),
            ("share", f"{rollout['share']:g} % of {', '.join(f'{s:g}' for s in rollout['stages'])}"),
            ("field", _success(rollout["field"])),
            ("decides", f"{decides}; success of {rollout['threshold']:.1%} is needed"),
            (
                "robots",
                ""
                if counts is None
                else f"{counts['following']} follow, {counts['in_share']} in the share; "
                f"{counts['run_target']} run {rollout['target']['version']}, "
                f"{counts['run_baseline']} run {rollout['baseline']['version']}, "
                f"{counts['refused']} refused",
            ),
        ]
    )


def _status_rows(robots: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for robot in robots:
        pins = {each["skill"]: each for each in robot["pins"]}
        for each in robot["follows"]:
            pinned = pins.get(each["follows"].partition("@")[0])
            why = each["reason"] or (pinned["reason"] if pinned is not None else "")
            runs = "-" if each["runs"] is None else each["runs"]["version"]
            kept = each["kept"] or ""
            found.append((robot["robot"], each["follows"], runs, each["state"], each["since"], kept, why))
        followed = {each["follows"].partition("@")[0] for each in robot["follows"]}
        for skill, each in pins.items():
            if skill in followed:
                continue
            kept = "pin" if each["version"] else "hold"
            found.append((robot["robot"], skill, "-", "", each["since"], kept, each["reason"]))
        if not robot["follows"] and not robot["pins"]:
            found.append((robot["robot"], "-", "-", "", robot["last_seen"] or "", "", ""))
    return found


def _success(field: dict[str, Any]) -> str:
    """A success rate in the field, with its bound; empty before the first episode."""
    from neuraverse.manifest import Score

    n, k = field["n"], field["successes"]
    return score_words(Score.of(k, n)) if 0 <= k <= n and n else ""
