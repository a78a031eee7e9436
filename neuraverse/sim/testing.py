"""`check_task`: a conformance kit for authors of tasks.

Run it on every task you write, in a test:

    from neuraverse.sim.testing import check_task

    def test_my_task_conforms():
        failed = [c for c in check_task("my_package:my/Task-v0") if not c.passed]
        assert not failed, failed
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import torch
from torch import Tensor

from neuraverse.sim.vector_env import TaskVectorEnv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: what was checked, whether it holds, and what was seen."""

    name: str
    passed: bool
    detail: str


def check_task(env_id: str, *, steps: int = 40, episodes: int = 64, **kwargs: Any) -> list[Check]:
    """Check that a task keeps what its users rely on.

    Args:
        env_id: Gymnasium id, ``module:namespace/Name-v0``.
        steps: Random steps in each check.
        episodes: Episodes of the scripted expert.
        kwargs: Passed to the task, such as ``robot="ur5e"``.

    Returns:
        One `Check` for each property. An exception inside a check counts as not passed.
    """

    def make(num_envs: int) -> TaskVectorEnv:
        env = gymnasium.make_vec(env_id, num_envs=num_envs, backend="torch", **kwargs).unwrapped
        if not isinstance(env, TaskVectorEnv):
            raise TypeError(f"{env_id} is no Task registered with neuraverse.sim.register")
        return env

    checks: list[tuple[str, Callable[[], str]]] = [
        ("interface", lambda: _interface(make)),
        ("shapes and finite values", lambda: _shapes(make, steps)),
        ("named reward terms", lambda: _reward_terms(make, steps)),
        ("observing changes nothing", lambda: _pure_observation(make)),
        ("deterministic under a seed", lambda: _deterministic(make, steps)),
        ("a batch of one equals a row of a batch", lambda: _row_of_a_batch(make, steps)),
        ("resetting some leaves the others untouched", lambda: _partial_reset(make, steps)),
        ("a saved state resumes to the same numbers", lambda: _resume(make, steps)),
        ("success can be reached", lambda: _success(make, episodes)),
    ]
    return list(_run(checks))


def _run(checks: list[tuple[str, Callable[[], str]]]) -> Iterator[Check]:
    for name, check in checks:
        try:
            detail, passed = check(), True
        except Exception as err:  # an author wants all findings, whatever one check trips over
            detail, passed = f"{type(err).__name__}: {err}", False
        yield Check(name=name, passed=passed, detail=detail)


class _PropertyError(AssertionError):
    """A property does not hold."""


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise _PropertyError(message)


def _actions(env: TaskVectorEnv, seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = env.interface.action_size
    while True:
        yield 2.0 * torch.rand(env.num_envs, size, generator=generator) - 1.0


def _interface(make: Callable[[int], TaskVectorEnv]) -> str:
    interface = make(1).interface
    json.dumps(interface.to_dict(), allow_nan=False)
    in_base = [s.name for s in (*interface.observation, *interface.action) if s.frame == "B"]
    _need(not in_base, f"signals in the robot's base frame tie a skill to its body: {', '.join(in_base)}")
    return (
        f"{interface.observation_size} observed, {interface.action_size} commanded, {interface.rate_hz:g} Hz"
    )


def _shapes(make: Callable[[int], TaskVectorEnv], steps: int) -> str:
    env = make(4)
    obs, _ = env.reset(seed=1)
    for _, action in zip(range(steps), _actions(env), strict=False):
        _need(obs.shape == (4, env.interface.observation_size), f"observation has shape {tuple(obs.shape)}")
        _need(obs.dtype == torch.float32, f"observation is {obs.dtype}")
        _need(bool(torch.isfinite(obs).all()), "observation is not finite")
        obs, reward, terminated, truncated, infos = env.step(action)
        _need(
            reward.shape == (4,) and bool(torch.isfinite(reward).all()), "reward is not four finite numbers"
        )
        _need(terminated.dtype == truncated.dtype == torch.bool, "terminated and truncated must be bool")
        if "final_info" in infos:
            _need("success" in infos["final_info"], "the outcome's info has no 'success'")
    return f"{steps} random steps of 4 environments"


def _reward_terms(make: Callable[[int], TaskVectorEnv], steps: int) -> str:
    env = make(4)
    env.reset(seed=2)
    for _, action in zip(range(steps), _actions(env), strict=False):
        _, reward, *_ = env.step(action)
        wrong = [k for k, v in env.reward_terms.items() if v.shape != (4,)]
        _need(not wrong, f"reward terms of a wrong shape: {', '.join(wrong)}")
        total = torch.stack(tuple(env.reward_terms.values())).sum(0)
        _need(torch.allclose(total, reward, atol=1e-5), "the reward is not the sum of its terms")
    return ", ".join(env.reward_terms)


def _pure_observation(make: Callable[[int], TaskVectorEnv]) -> str:
    env = make(2)
    env.reset(seed=3)
    before = env.get_state()
    for _ in range(3):
        env.task.observe(env.observation_views)
    after = env.get_state()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    _need(not changed, f"observe() changed {', '.join(changed)}")
    return "three looks, no change"


def _rollout(env: TaskVectorEnv, actions: list[Tensor]) -> Tensor:
    rows = []
    for action in actions:
        obs, reward, *_ = env.step(action)
        rows.append(torch.cat((obs, reward[:, None]), dim=1))
    return torch.stack(rows)


def _deterministic(make: Callable[[int], TaskVectorEnv], steps: int) -> str:
    runs = []
    for _ in range(2):
        env = make(3)
        env.reset(seed=4)
        runs.append(_rollout(env, [a for _, a in zip(range(steps), _actions(env), strict=False)]))
    _need(torch.equal(*runs), f"two runs differ by {float((runs[0] - runs[1]).abs().max()):g}")
    other = make(3)
    first, _ = other.reset(seed=5)
    again, _ = other.reset(seed=4)
    _need(not torch.equal(first, again), "another seed gives the same first observation")
    return "bit for bit"


def _row_of_a_batch(make: Callable[[int], TaskVectorEnv], steps: int) -> str:
    batch = make(4)
    batch.reset(seed=6)
    actions = [a for _, a in zip(range(steps), _actions(batch), strict=False)]
    rows = _rollout(batch, actions)
    worst = 0.0
    for i in (0, 3):
        one = make(1)
        one.reset(seed=6 + i)
        alone = _rollout(one, [a[i : i + 1] for a in actions])
        worst = max(worst, float((alone[:, 0] - rows[:, i]).abs().max()))
    _need(worst < 1e-4, f"they differ by {worst:g}")
    return f"to {worst:.1e}"


def _partial_reset(make: Callable[[int], TaskVectorEnv], steps: int) -> str:
    runs = []
    for some in (False, True):
        env = make(3)
        env.reset(seed=7)
        actions = [a for _, a in zip(range(steps), _actions(env), strict=False)]
        half = steps // 2
        _rollout(env, actions[:half])
        if some:
            env.reset(options={"reset_mask": torch.tensor([True, False, False])})
        runs.append(_rollout(env, actions[half:]))
    _need(
        torch.equal(runs[0][:, 1:], runs[1][:, 1:]), "the environments that were not reset went another way"
    )
    _need(not torch.equal(runs[0][:, 0], runs[1][:, 0]), "the environment that was reset went on as before")
    return "bit for bit"


def _resume(make: Callable[[int], TaskVectorEnv], steps: int) -> str:
    env = make(3)
    env.reset(seed=8)
    actions = [a for _, a in zip(range(steps), _actions(env), strict=False)]
    half = steps // 2
    _rollout(env, actions[:half])
    state = env.get_state()
    straight = _rollout(env, actions[half:])
    other = make(3)
    other.reset(seed=99)
    other.set_state(state)
    resumed = _rollout(other, actions[half:])
    _need(torch.equal(straight, resumed), f"they differ by {float((straight - resumed).abs().max()):g}")
    return "bit for bit"


def success_rate(
    env: TaskVectorEnv, episodes: int, policy: Callable[[Tensor], Tensor], seed: int = 0
) -> float:
    """Share of successes of `policy` (observations to normalised actions), one episode for each seed."""
    successes = count = 0
    for first in range(0, episodes, env.num_envs):
        obs, _ = env.reset(seed=seed + first)
        open_ = torch.ones(env.num_envs, dtype=torch.bool)
        while bool(open_.any()):
            obs, _, _, _, infos = env.step(policy(obs))
            if "final_info" in infos:
                ended = infos["_final_info"] & open_
                successes += int((infos["final_info"]["success"] & ended).sum())
                open_ &= ~ended
        count += env.num_envs
    return successes / count


def _success(make: Callable[[int], TaskVectorEnv], episodes: int) -> str:
    env = make(episodes)
    scale = torch.from_numpy(env.action_scale)
    actions = _actions(env)
    expert = success_rate(env, episodes, lambda _: env.task.expert() / scale)
    chance = success_rate(env, episodes, lambda _: next(actions))
    _need(expert >= 0.5, f"the expert succeeds in {expert:.0%} of {episodes} episodes")
    _need(chance < 0.5 * expert, f"random actions succeed in {chance:.0%}: there is nothing to learn")
    return f"expert {expert:.1%}, random {chance:.1%} of {episodes} episodes"
