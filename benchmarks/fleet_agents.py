"""Robots in one process: ``python -m benchmarks.fleet_agents URL FOLDER TOKENS NAME KIND``.

TOKENS is a file with a token in each line; each is a `RobotAgent` with a home of its own below FOLDER that
follows NAME. KIND is ``stream``, or ``poll`` for robots to whom streams do not get through. ``ready`` is
printed when all run a version. The end of stdin ends the process, which prints when each robot was told of
each digest, had resolved and pulled it, and ran it [s, of the system's monotonic clock].
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neuraverse.client import Client, Resolved, watching
from neuraverse.interface import Offer
from neuraverse.keys import KeyStore
from neuraverse.runtime import RobotAgent
from neuraverse.skill import Skill
from neuraverse_envs.weld_seam import WeldSeam

STEPS = ("told", "resolved", "pulled", "running")


class _Timed(Client):
    """A client that notes when it is asked and when it has answered."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.times: dict[str, float] = {}
        self.seen: dict[str, dict[str, float]] = {}

    def pull_if(self, ref: Any, wants: Callable[[Resolved], bool], **options: Any) -> Skill | None:
        self.times = {"told": time.monotonic()}

        def noted(found: Resolved) -> bool:
            self.times["resolved"] = time.monotonic()
            return wants(found)

        skill = super().pull_if(ref, noted, **options)
        self.times["pulled"] = time.monotonic()
        return skill

    def staged(self, skill: Skill) -> None:
        self.seen[skill.digest] = {**self.times, "running": time.monotonic()}


def _no_stream(self: Any) -> Iterator[Any]:
    self._do_without_stream()
    yield from ()


def main(url: str, folder: Path, tokens: list[str], name: str, kind: str) -> None:
    """Run the robots until stdin ends."""
    logging.disable(logging.WARNING)
    if kind == "poll":
        watching._Watch._follow = _no_stream  # type: ignore[method-assign]
    interface = WeldSeam().interface
    offer = Offer(
        robot="panda",
        max_rate_hz=1000.0,
        reach_m=10.0,
        linear_speed_m_s=10.0,
        angular_speed_rad_s=10.0,
        wrench_sensor=True,
        grip_stroke_m=1.0,
        observation=interface.observation,
        action=interface.action,
    )
    pem = (folder / "public.pem").read_bytes()
    clients, agents = [], []
    for number, token in enumerate(tokens):
        home = folder / f"{kind}-{tokens[0][4:12]}-{number}"
        KeyStore(home).trust(pem, name.partition("/")[0])
        clients.append(_Timed(url, home=home, token=token))
        agents.append(RobotAgent(clients[-1], None, offer, follow=name, on_skill=clients[-1].staged))
    for agent in agents:
        agent.start()
    for agent in agents:
        if not agent.wait(120.0):
            raise SystemExit("a robot got no skill")
    print("ready", flush=True)
    sys.stdin.read()
    print(json.dumps([client.seen for client in clients]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_text().split(), sys.argv[4], sys.argv[5])
