"""What an operator asks a registry about robots: what they run, pins, holds and roll-outs.

Each function is one request, or one for each page of an answer; see `neuraverse.client.accounts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from neuraverse.client import accounts
from neuraverse.client.answers import COUNT, LIST, MAYBE_TEXT, NUMBER, OBJECT, TEXT, checked, rows
from neuraverse.client.refs import Ref
from neuraverse.client.transport import Transport
from neuraverse.errors import NetworkError, UsageError

STEPS = ("next", "back", "hold", "resume", "end")
_ID = "[0-9a-f]{16}"


def status(registry: Transport, org: str) -> list[dict[str, Any]]:
    """Robots by name, and of each what it ``follows`` and its ``pins``.

    Raises:
        RegistryError: The registry refused; the message says why.
        NetworkError: It could not be asked.
    """
    found = accounts.robots(registry, org)
    for robot in found:
        for each in rows(robot, "follows", follows=TEXT, state=TEXT, reason=TEXT, since=TEXT):
            kept, runs = each.get("kept"), each.get("runs")
            if runs is not None:
                checked(runs, version=TEXT, digest=TEXT)
            if kept not in (None, "pin", "hold", "rollout"):
                raise NetworkError(f"{registry.url} keeps a robot by what is not known here: {kept!r:.100}")
        rows(robot, "pins", skill=TEXT, version=MAYBE_TEXT, reason=TEXT, since=TEXT)
    return found


def reports(registry: Transport, org: str, skill: str) -> list[dict[str, Any]]:
    """What robots of an organisation reported of a skill, those that reported last first.

    Raises:
        UsageError: The skill cannot be one.
        RegistryError: The registry refused; the message says why.
        NetworkError: It could not be asked.
    """
    path = f"/v1/orgs/{accounts.label('organisation', org)}/reports"
    answer = registry.json("GET", path, params={"skill": _skill(skill)})
    found = rows(
        answer, "reports", robot=TEXT, version=TEXT, body=TEXT, field=OBJECT, errors=OBJECT, last=TEXT
    )
    for each in found:
        checked(each["field"], n=COUNT, successes=COUNT, lower=NUMBER)
        for error in each["errors"].values():
            checked(error, unit=TEXT, n=COUNT, mean=NUMBER, max=NUMBER)
    return found


def pin(registry: Transport, robot: str, ref: str, reason: str) -> None:
    """Keep a robot at a version of a skill, ``org/skill@1.0.0``; without the version, at what it runs of it.

    Raises:
        UsageError: The robot or the skill cannot be one, or the version is none.
        RegistryError: The registry refused; the message says why.
        NetworkError: It could not be asked.
    """
    wanted = Ref.parse(ref)
    named = "@" in ref
    if wanted.digest or (named and not wanted.is_exact):
        raise UsageError(f"{ref} is no version of a skill", remedy="write ORG/SKILL@1.0.0")
    body = {"version": wanted.which if named else None, "reason": reason}
    with registry.stream("PUT", _pin_of(robot, wanted.name), json=body, ok=(204,)):
        pass


def free(registry: Transport, robot: str, skill: str) -> None:
    """Let a robot follow again; see `pin`."""
    with registry.stream("DELETE", _pin_of(robot, _skill(skill)), ok=(204,)):
        pass


def own_org(registry: Transport) -> str:
    """The organisation whose robots the token may steer, if there is one alone.

    Raises:
        UsageError: There is none, or there are several.
    """
    may = [each["name"] for each in accounts.whoami(registry).get("orgs", ()) if "fleet" in each["rights"]]
    if len(may) != 1:
        which = f"several organisations: {', '.join(may)}" if may else "no organisation"
        raise UsageError(f"you may steer the robots of {which}", remedy="say whose with --org ORG")
    return str(may[0])


def start_rollout(
    registry: Transport,
    org: str,
    follows: str,
    version: str,
    *,
    stages: Sequence[float],
    episodes: int,
    threshold: float | None,
) -> dict[str, Any]:
    """Send a version to a share of an organisation's robots first; the roll-out.

    Args:
        registry: Where.
        org: Whose robots.
        follows: Those that follow this, ``org/skill@alias``.
        version: What they get.
        stages: Shares in percent, each larger than the one before.
        episodes: Reported in a stage before it decides by itself; 0 leaves it to people.
        threshold: Success that the field must show; None leaves it to the registry.

    Raises:
        UsageError: The organisation or the reference cannot be one.
        RegistryError: The registry refused; the message says why.
        NetworkError: It could not be asked.
    """
    body = {
        "follows": str(Ref.parse(follows)),
        "version": version,
        "stages": list(stages),
        "episodes": episodes,
        "threshold": threshold,
    }
    return _rollout(registry.json("POST", _rollouts(org), json=body, ok=(201,)))


def rollouts(registry: Transport, org: str) -> list[dict[str, Any]]:
    """An organisation's roll-outs, the newest first."""
    found = rows(registry.json("GET", _rollouts(org)), "rollouts")
    return [_rollout(each) for each in found]


def rollout(registry: Transport, org: str, number: str) -> dict[str, Any]:
    """How far a roll-out is, and how its stage does."""
    return _rollout(registry.json("GET", f"{_rollouts(org)}/{_id(number)}"))


def take_step(registry: Transport, org: str, number: str, step: str) -> dict[str, Any]:
    """Take one of `STEPS`; the roll-out after it."""
    return _rollout(registry.json("POST", f"{_rollouts(org)}/{_id(number)}/steps", json={"to": step}))


def _rollout(plain: Any) -> dict[str, Any]:
    checked(plain, id=TEXT, follows=TEXT, state=TEXT, reason=TEXT, created=TEXT, changed=TEXT)
    checked(plain, target=OBJECT, baseline=OBJECT, stages=LIST, stage=COUNT, share=NUMBER)
    checked(plain, episodes=COUNT, threshold=NUMBER, field=OBJECT)
    for each in ("target", "baseline"):
        checked(plain[each], version=TEXT, digest=TEXT)
    checked(plain["field"], n=COUNT, successes=COUNT, lower=NUMBER, upper=NUMBER)
    if plain.get("robots") is not None:
        counts = ("following", "in_share", "run_target", "run_baseline", "refused")
        checked(plain["robots"], **dict.fromkeys(counts, COUNT))
    if not all(isinstance(each, int | float) for each in plain["stages"]):
        raise NetworkError("the registry's answer is malformed: stages that are no numbers")
    return dict(plain)


def _rollouts(org: str) -> str:
    return f"/v1/orgs/{accounts.label('organisation', org)}/rollouts"


def _pin_of(robot: str, skill: str) -> str:
    org, name = accounts.robot_name(robot)
    return f"/v1/orgs/{org}/robots/{name}/pins/{skill}"


def _skill(text: str) -> str:
    wanted = Ref.parse(text)
    if wanted.digest or "@" in text:
        raise UsageError(f"{text} is no skill", remedy="write ORG/SKILL; it concerns all its versions")
    return wanted.name


def _id(number: str) -> str:
    if not re.fullmatch(_ID, number):
        raise UsageError(
            f"{number[:100]!r} is no id of a roll-out", remedy="`neuraverse fleet rollout show` lists them"
        )
    return number
