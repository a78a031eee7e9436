"""Real Ray, real simulation, tiny budgets."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch

from neuraverse.fleet import connect
from neuraverse.learn import Recipe, Trainer, make_env

PLAIN = {
    "skill": {"name": "acme/weld-seam", "title": "Weld a seam"},
    "env": {"id": "neuraverse_envs:neuraverse/WeldSeam-v0", "robot": "panda"},
    "ppo": {
        "num_envs": 16,
        "steps": 8,
        "epochs": 1,
        "minibatches": 2,
        "hidden": [16],
        "total_steps": 16 * 8 * 60,
        "checkpoint_every": 3,
    },
    "validation": {"every": 0, "episodes": 16},
    "fine_tune": {"total_steps": 16 * 8 * 12, "probe_episodes": 16, "warmup": 2},
}


def weld_recipe(*overrides: str) -> Recipe:
    """Sixty iterations of WeldSeam on a Panda; a checkpoint after every third."""
    return Recipe.parse(PLAIN, overrides)


def train_here(recipe: Recipe, run_dir=None):
    """The same training in this process, from beginning to end."""
    env = make_env(recipe.env, recipe.ppo.num_envs, threads=1)
    return Trainer(env, recipe, device="cpu", run_dir=run_dir).fit()


def numbers(result) -> list[dict]:
    """The learning curve without the clock."""
    return [{k: v for k, v in point.items() if k != "seconds"} for point in result.curve]


def same(a, b) -> bool:
    """Whether two results learned the same, to the last bit."""
    one, other = a.policy.tensors(), b.policy.tensors()
    return numbers(a) == numbers(b) and all(torch.equal(one[name], other[name]) for name in one)


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="session")
def weld() -> SimpleNamespace:
    """``recipe(*overrides)``, ``train(recipe, run_dir)`` in this process, ``same(a, b)``, ``gone(pid)``."""
    return SimpleNamespace(recipe=weld_recipe, train=train_here, numbers=numbers, same=same, gone=gone)


@pytest.fixture(autouse=True)
def _one_thread():
    """As in a worker of one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fleet():
    """Ray on this machine, for the tests of a module."""
    with connect(num_cpus=3):
        yield
