"""A robot: follow a skill at a registry and run it. Needs the base install alone, no torch, no MuJoCo.

    python examples/robot.py lab/weld-seam --ticks 200

`Cell` stands for your sensors and drives: observe() returns one array for each signal, in SI units, and
apply() hands the commanded twist to the robot.
"""

import argparse

import numpy as np

from neuraverse.client import Client
from neuraverse.interface import Offer
from neuraverse.runtime import RobotAgent, run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("skill", help="org/skill, or org/skill@alias; its publisher's key must be trusted here")
parser.add_argument("--ticks", type=int, default=200)
args = parser.parse_args()


class Cell:
    """A cell at rest: replace by what reads your sensors and drives your arm."""

    def __init__(self, signals):
        self.signals = signals

    def observe(self):
        return {s.name: np.zeros(s.shape, np.float32) for s in self.signals}

    def apply(self, action):
        self.last = action


with Client() as client:
    interface = client.pull(args.skill).manifest.interface
    offer = Offer(  # what this robot has; a skill that needs more is refused before it is downloaded
        robot="my-arm",
        max_rate_hz=500.0,
        reach_m=0.85,
        linear_speed_m_s=1.0,
        angular_speed_rad_s=3.0,
        observation=interface.observation,
        action=interface.action,
    )
    with RobotAgent(client, None, offer, follow=args.skill, on_refusal=print) as agent:
        agent.wait(timeout_s=60.0)
        cell = Cell(interface.observation)
        print("running", agent.skill.ref)
        print(run(agent, cell, interface.rate_hz, args.ticks))  # newer versions are swapped in between ticks
        print("last command", cell.last)
