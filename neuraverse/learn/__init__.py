"""Learning: policy, PPO, trainer, evaluation, export and adoption.

    result = Trainer.from_recipe("weld-seam").fit()      # learn
    child = fine_tune(parent, robot="ur5e", ...)         # or go on from a parent skill

Names are loaded on first use, so that reading a recipe needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuraverse.learn.evaluate import Scored, evaluate
    from neuraverse.learn.policy import ActorCritic
    from neuraverse.learn.recipe import Recipe
    from neuraverse.learn.trainer import Progress, Result, Trainer

_HOME = {
    "ActorCritic": "policy",
    "Progress": "trainer",
    "Recipe": "recipe",
    "Result": "trainer",
    "Scored": "evaluate",
    "Trainer": "trainer",
    "evaluate": "evaluate",
}
__all__ = ["ActorCritic", "Progress", "Recipe", "Result", "Scored", "Trainer", "evaluate"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'neuraverse.learn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"neuraverse.learn.{_HOME[name]}"), name)
    globals()[name] = value
    return value
