"""Training, fine-tuning and evaluation in Ray actors, on this machine or on a cluster.

    with connect():                                        # joins RAY_ADDRESS, or starts Ray here
        results = train(recipe, seeds=(0, 1), run_dir="runs/weld")
        scored = evaluate(best_of(results).policy, recipe.env, episodes=1000, seed_first=2_000_000_000)

A worker that dies is started again and goes on from its checkpoint. `Cell` is one robot in its cell, which
waits for a skill, checks it, and says what it is worth to this robot.

On several machines ``run_dir`` and the folders of skills must lie on storage that all of them share.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from neuraverse.errors import MissingExtraError

if importlib.util.find_spec("ray") is None:
    raise MissingExtraError("ray", "train", "training in workers")

if TYPE_CHECKING:
    from neuraverse.fleet.cell import AdoptionReport, Cell, start_cell
    from neuraverse.fleet.cluster import Resources, connect, get
    from neuraverse.fleet.jobs import best_of, evaluate, fine_tune, fine_tune_job, train, train_job
    from neuraverse.fleet.supervisor import Job, run
    from neuraverse.fleet.workers import Where

__all__ = [
    "AdoptionReport",
    "Cell",
    "Job",
    "Resources",
    "Where",
    "best_of",
    "connect",
    "evaluate",
    "fine_tune",
    "fine_tune_job",
    "get",
    "run",
    "start_cell",
    "train",
    "train_job",
]
_HOME = {
    "AdoptionReport": "cell",
    "Cell": "cell",
    "Job": "supervisor",
    "Resources": "cluster",
    "Where": "workers",
    "best_of": "jobs",
    "connect": "cluster",
    "evaluate": "jobs",
    "fine_tune": "jobs",
    "fine_tune_job": "jobs",
    "get": "cluster",
    "run": "supervisor",
    "start_cell": "cell",
    "train": "jobs",
    "train_job": "jobs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'neuraverse.fleet' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"neuraverse.fleet.{_HOME[name]}"), name)
    globals()[name] = value
    return value
