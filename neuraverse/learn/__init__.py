"""Learning: policy, PPO, trainer, evaluation, export and adoption.

    result = Trainer.from_recipe("weld-seam").fit()      # learn
    result = fine_tune(parent, robot="ur5e")             # or go on from a parent skill
    skill = seal(result, recipe, scored, path, env=env, key=key)

Names are loaded on first use, so that reading a recipe needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuraverse.learn.adopt import Decision, Probe, child_recipe, decide, fine_tune, probe
    from neuraverse.learn.envs import make_env
    from neuraverse.learn.evaluation import Scored, evaluate
    from neuraverse.learn.export import policy_of, to_onnx
    from neuraverse.learn.policy import ActorCritic
    from neuraverse.learn.progress import Progress, Result
    from neuraverse.learn.recipe import Recipe
    from neuraverse.learn.sealing import seal
    from neuraverse.learn.trainer import Trainer

__all__ = [
    "ActorCritic",
    "Decision",
    "Probe",
    "Progress",
    "Recipe",
    "Result",
    "Scored",
    "Trainer",
    "child_recipe",
    "decide",
    "evaluate",
    "fine_tune",
    "make_env",
    "policy_of",
    "probe",
    "seal",
    "to_onnx",
]
_HOME = {
    "ActorCritic": "policy",
    "Decision": "adopt",
    "Probe": "adopt",
    "Progress": "progress",
    "Recipe": "recipe",
    "Result": "progress",
    "Scored": "evaluation",
    "Trainer": "trainer",
    "child_recipe": "adopt",
    "decide": "adopt",
    "evaluate": "evaluation",
    "fine_tune": "adopt",
    "make_env": "envs",
    "policy_of": "export",
    "probe": "adopt",
    "seal": "sealing",
    "to_onnx": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'neuraverse.learn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"neuraverse.learn.{_HOME[name]}"), name)
    globals()[name] = value
    return value
