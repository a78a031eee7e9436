"""Scoring a policy: deterministic, one episode per seed, on seeds that training never saw.

`run_episodes` gives what each episode came to and `score` the figures; several processes may run stretches of
the seeds, and `join` puts those together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from neuraverse.errors import IncompatibleError, TrainingError
from neuraverse.learn.denormals import flush_denormals
from neuraverse.learn.envs import TorchEnv
from neuraverse.learn.policy import ActorCritic
from neuraverse.manifest import Evaluation, Score

_NOT_METRICS = {"success", "episode_return", "episode_length", "diverged"}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The outcome of an evaluation.

    Attributes:
        score: Success; None if the environment does not report any.
        episodes: How many.
        seed_first: Seed of the first; the others follow by ones.
        mean_return: Undiscounted, over the episodes.
        mean_length: Steps.
        steps: Environment steps spent, over all environments.
        metrics: Median and 95th percentile of what the environment reports of an episode, by name.
        returns: (episodes,) by seed.
        successes: (episodes,) bool by seed, or None.
        finite: Whether every observation was finite.
    """

    score: Score | None
    episodes: int
    seed_first: int
    mean_return: float
    mean_length: float
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    returns: tuple[float, ...] = ()
    successes: tuple[bool, ...] | None = None
    finite: bool = True

    @property
    def rank(self) -> tuple[float, float]:
        """Better is greater: success first, return next."""
        return (self.score.rate if self.score else 0.0, self.mean_return)

    def for_manifest(self, source: Score | None = None) -> Evaluation:
        """What a manifest says of it; without a notion of success no episode counts as one.

        Args:
            source: The parent's score on the same seeds.
        """
        score = self.score or Score.of(0, self.episodes)
        return Evaluation(
            episodes=self.episodes,
            successes=round(score.rate * score.n),
            rate=score.rate,
            lower=score.lower,
            seed_first=self.seed_first,
            seed_count=self.episodes,
            metrics={"mean_return": self.mean_return, "mean_length": self.mean_length, **self.metrics},
            source=source,
        )


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """What each episode of a stretch of consecutive seeds came to.

    Attributes:
        seed_first: Seed of the first.
        returns: (n,) undiscounted.
        lengths: (n,) int64, steps.
        reported: What the environment said of each, (n,) by name; NaN where it said nothing.
        steps: Environment steps spent, over all environments.
        finite: Whether every observation was finite.
    """

    seed_first: int
    returns: np.ndarray
    lengths: np.ndarray
    reported: dict[str, np.ndarray]
    steps: int
    finite: bool


def evaluate(
    policy: ActorCritic | Callable[[Tensor], Tensor],
    env: VectorEnv[Any, Any, Any],
    *,
    episodes: int,
    seed_first: int,
    success_return: float | None = None,
    max_steps: int = 100_000,
) -> Scored:
    """Run exactly one episode for each of the seeds ``seed_first … seed_first + episodes − 1``.

    Args:
        policy: Observations (N, obs_dim) to actions (N, act_dim) in [-1, 1].
        env: Any number of environments; their episodes are thrown away.
        episodes: How many.
        seed_first: The first seed.
        success_return: Where the environment reports no success, an episode with at least this return is one.
        max_steps: Steps after which an episode that never ends is an error.

    Raises:
        IncompatibleError: The policy does not fit the environment's spaces.
        TrainingError: The policy acts with NaN, or an episode does not end.
    """
    ran = run_episodes(policy, env, episodes=episodes, seed_first=seed_first, max_steps=max_steps)
    return score(ran, success_return=success_return)


@flush_denormals()
def run_episodes(
    policy: ActorCritic | Callable[[Tensor], Tensor],
    env: VectorEnv[Any, Any, Any],
    *,
    episodes: int,
    seed_first: int,
    max_steps: int = 100_000,
) -> Episodes:
    """The episodes of `evaluate`, before they are summed up; the arguments and errors are the same."""
    port = TorchEnv(env, policy.device if isinstance(policy, ActorCritic) else "cpu")
    if isinstance(policy, ActorCritic):
        check_sizes(policy, port)
    count = port.num_envs
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, dtype=np.int64)
    reported: dict[str, np.ndarray] = {}
    steps, finite = 0, True
    for first in range(0, episodes, count):
        obs = port.reset(seed_first + first)
        running = torch.arange(count, device=port.device) < episodes - first
        total = torch.zeros(count, dtype=torch.float64, device=port.device)
        for length in range(1, max_steps + 1):
            actions = policy(obs)
            if not bool(torch.isfinite(actions).all()):
                raise TrainingError("the policy's action is not finite", remedy="do not use this policy")
            step = port.step(actions)
            obs = step.obs
            finite = finite and bool(torch.isfinite(obs.sum()))
            steps += count
            total += step.reward
            if not len(step.ended):
                continue
            ended = step.ended[running[step.ended]]
            if not len(ended):
                continue
            at, where = ended.cpu().numpy(), ended.cpu().numpy() + first
            returns[where] = total[ended].cpu().numpy()
            lengths[where] = length
            for name, values in port.final_info(step.infos).items():
                finite = finite and not (name == "diverged" and bool(values[at].any()))
                column = reported.setdefault(name, np.full(episodes, np.nan))
                column[where] = values[at]
            running[ended] = False
            if not bool(running.any()):
                break
        else:
            raise TrainingError(f"an episode did not end within {max_steps} steps")
    return Episodes(
        seed_first=seed_first,
        returns=returns,
        lengths=lengths,
        reported=reported,
        steps=steps,
        finite=finite,
    )


def join(parts: Sequence[Episodes]) -> Episodes:
    """Stretches of seeds, one after the other, as one."""
    names = {name for part in parts for name in part.reported}
    return Episodes(
        seed_first=parts[0].seed_first,
        returns=np.concatenate([part.returns for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        reported={
            name: np.concatenate(
                [part.reported.get(name, np.full(len(part.returns), np.nan)) for part in parts]
            )
            for name in sorted(names)
        },
        steps=sum(part.steps for part in parts),
        finite=all(part.finite for part in parts),
    )


def score(ran: Episodes, *, success_return: float | None = None) -> Scored:
    """The figures of episodes; see `evaluate`."""
    episodes = len(ran.returns)
    successes = _successes(ran.reported, ran.returns, success_return)
    return Scored(
        score=None if successes is None else Score.of(int(successes.sum()), episodes),
        episodes=episodes,
        seed_first=ran.seed_first,
        mean_return=float(ran.returns.mean()),
        mean_length=float(ran.lengths.mean()),
        steps=ran.steps,
        metrics=_metrics(ran.reported),
        returns=tuple(ran.returns.tolist()),
        successes=None if successes is None else tuple(successes.tolist()),
        finite=ran.finite,
    )


def check_sizes(policy: ActorCritic, port: TorchEnv) -> None:
    """Raise IncompatibleError unless the policy's sizes are those of the environment."""
    if (policy.obs_dim, policy.act_dim) != (port.obs_dim, port.act_dim):
        raise IncompatibleError(
            f"the policy maps {policy.obs_dim} numbers to {policy.act_dim}, "
            f"the environment needs {port.obs_dim} to {port.act_dim}"
        )


def _successes(reported: dict[str, np.ndarray], returns: np.ndarray, bar: float | None) -> np.ndarray | None:
    if "success" in reported:
        wins: np.ndarray = reported["success"] == 1.0
        return wins
    return None if bar is None else returns >= bar


def _metrics(reported: dict[str, np.ndarray]) -> dict[str, float]:
    found = {}
    for name, column in reported.items():
        values = column[np.isfinite(column)]
        if name not in _NOT_METRICS and len(values):
            found[f"{name}_median"] = float(np.median(values))
            found[f"{name}_p95"] = float(np.percentile(values, 95))
    return found


def note_of(scored: Scored | None) -> dict[str, Any] | None:
    """Plain JSON types."""
    return None if scored is None else asdict(scored)


def scored_of(note: dict[str, Any] | None) -> Scored | None:
    """What `note_of` was made from."""
    if note is None:
        return None
    score = note["score"]
    fields = {**note, "score": None if score is None else Score(**score), "returns": tuple(note["returns"])}
    fields["successes"] = None if note["successes"] is None else tuple(note["successes"])
    return Scored(**fields)
