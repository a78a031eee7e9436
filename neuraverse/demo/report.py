"""What the demo found, as plain data: the JSON of ``neuraverse demo --json`` and the rows of its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neuraverse.manifest import Score


@dataclass(kw_only=True)
class Taken:
    """What one robot made of the skill.

    Attributes:
        robot: Name of the robot.
        verified: Whether the skill's signature was found to be that of a trusted key.
        outside: A sentence for each figure of the body outside the ranges of training.
        notified_s: From the registry's record of the event to its arrival [s].
        zero_shot: Success of the skill as it is, in the robot's own cell.
        decision: ``use``, ``fine-tune`` or ``refuse``.
        reason: Why.
        after: Success at the end: of the child if there is one, else as it is.
        steps: Environment steps learned from; 0 without fine-tuning.
        probe_steps: Environment steps of the probe.
        seconds: From the event to the robot's being ready.
        scratch_steps: Steps after which learning from nothing reached the same bar; None if it did not.
        scratch_limit: Steps up to which that was tried; 0 if it was not.
        published: ``org/skill@version`` of the child, if there is one.
        digest: Of the child.
    """

    robot: str
    verified: bool
    outside: tuple[str, ...] = ()
    notified_s: float = 0.0
    zero_shot: Score | None = None
    decision: str = "refuse"
    reason: str = ""
    after: Score | None = None
    steps: int = 0
    probe_steps: int = 0
    seconds: float = 0.0
    scratch_steps: int | None = None
    scratch_limit: int = 0
    published: str | None = None
    digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {k: v for k, v in vars(self).items() if k not in ("zero_shot", "after", "outside")}
        return {
            **plain,
            "outside": list(self.outside),
            "zero_shot": score_dict(self.zero_shot),
            "after": score_dict(self.after),
        }


@dataclass(kw_only=True)
class Report:
    """The whole run; see `to_dict` for the keys."""

    skill: str
    digest: str
    seeds: tuple[int, ...]
    seed_scores: Mapping[str, float]
    train_seconds: float
    env_steps: int
    success: Score
    metrics: Mapping[str, float]
    robots: list[Taken] = field(default_factory=list)
    registry: str = ""
    registry_data: str = ""
    author_key: str = ""
    pictures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "seconds": round(self.seconds, 1),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "trained": {
                "skill": self.skill,
                "digest": self.digest,
                "seeds": list(self.seeds),
                "seed_scores": dict(self.seed_scores),
                "train_seconds": round(self.train_seconds, 1),
                "env_steps": self.env_steps,
                "success": score_dict(self.success),
                "metrics": dict(self.metrics),
            },
            "robots": [taken.to_dict() for taken in self.robots],
            "registry": {"url": self.registry, "data": self.registry_data, "author_key": self.author_key},
            "pictures": dict(self.pictures),
        }


def score_dict(score: Score | None) -> dict[str, Any] | None:
    """``{"rate", "lower", "n"}``, or None."""
    return None if score is None else {"rate": score.rate, "lower": score.lower, "n": score.n}
