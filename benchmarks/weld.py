"""WeldSeam's ceiling and floor: the scripted expert and random actions, one episode for each seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Options, Report, say
from neuraverse.manifest import Score
from neuraverse.sim.testing import success_rate
from neuraverse.sim.vector_env import TaskVectorEnv
from neuraverse_envs.weld_seam import WeldSeam

ROBOTS = ("panda", "ur5e", "iiwa14", "ur5e-slow")
SEED_FIRST = 2_000_000_000  # the seeds of published scores
EPISODES, BATCH = 1000, 250


def measure(options: Options) -> Report:
    """Success of expert and chance on each built-in robot, each at its own figures."""
    report = Report()
    episodes = BATCH if options.quick else EPISODES
    for robot in ROBOTS:
        env = TaskVectorEnv(WeldSeam(robot=robot), BATCH, backend="torch")
        for name, act in _policies(env).items():
            rate = success_rate(env, episodes, act, SEED_FIRST)
            score = Score.of(round(rate * episodes), episodes)
            report.rows.append(
                {
                    "contender": f"{name} on {robot}",
                    "round": 0,
                    "value": 100.0 * score.rate,
                    "unit": "% success",
                    "lower": score.lower,
                    "n": score.n,
                }
            )
            say(f"{robot}, {name}: {score.rate:.1%}, lower bound {score.lower:.1%}, n = {score.n}")
    return report


def _policies(env: TaskVectorEnv) -> dict[str, Callable[[Tensor], Tensor]]:
    scale = torch.from_numpy(env.action_scale)
    generator = torch.Generator().manual_seed(0)
    size = env.num_envs, len(env.action_scale)
    return {
        "expert": lambda _: env.task.expert() / scale,
        "random": lambda _: 2.0 * torch.rand(size, generator=generator) - 1.0,
    }
