"""What a training run says while it goes on, and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from neuraverse.learn.evaluation import Scored
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.ppo import UpdateStats
from neuraverse.manifest import Score


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands after an iteration. Rates over recent episodes are None before any has ended."""

    iteration: int
    env_steps: int
    total_steps: int
    steps_per_s: float
    seconds: float
    seconds_left: float
    success: float | None
    ep_return: float | None
    ep_length: float | None
    validation: Score | None  # of this iteration, if there was one
    validation_return: float | None
    update: UpdateStats

    def curve_entry(self) -> dict[str, float | None]:
        """This point of the learning curve, as it is published."""
        return {
            "env_steps": self.env_steps,
            "seconds": round(self.seconds, 3),
            "ep_return": self.ep_return,
            "ep_length": self.ep_length,
            "success": self.success,
            "validation": None if self.validation is None else self.validation.rate,
            "validation_lower": None if self.validation is None else self.validation.lower,
            "validation_return": self.validation_return,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run ended with.

    Attributes:
        policy: The best by validation, or the last where nothing was validated.
        validation: Its validation, if any.
        curve: One entry per iteration, plain JSON types.
        env_steps: Steps learned from, over all environments.
        validation_steps: Steps spent on validation.
        wall_s: Seconds, validation included, all sittings of a resumed run together.
        cpu_s: CPU seconds of this process, likewise.
        device: What it ran on.
        seed: The seed of the run.
        reached: Whether the run ended because validation reached its bar.
    """

    policy: ActorCritic
    validation: Scored | None
    curve: tuple[dict[str, float | None], ...]
    env_steps: int
    validation_steps: int
    wall_s: float
    cpu_s: float
    device: str
    seed: int
    reached: bool
