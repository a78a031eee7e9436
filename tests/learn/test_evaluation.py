"""Evaluation: one episode per seed, whatever the number of environments."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from neuraverse.errors import ConfigError, IncompatibleError, TrainingError, UnknownNameError
from neuraverse.learn.envs import interface_of, make_env
from neuraverse.learn.evaluation import evaluate, note_of, scored_of
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.recipe import EnvSettings
from neuraverse.manifest import wilson_lower


def homing(obs: torch.Tensor) -> torch.Tensor:
    """Walks straight to the goal with steps of at most 0.4."""
    return (-obs[:, :2] / 0.4).clamp(-1.0, 1.0)


def timid(obs: torch.Tensor) -> torch.Tensor:
    """Too slow for starts that are far away."""
    return (-obs[:, :2]).clamp(-0.09, 0.09)


def test_every_seed_runs_once_whatever_the_batch(reach):
    together = evaluate(timid, reach.env(20), episodes=20, seed_first=2_000_000_000)
    for count in (1, 7, 32):
        other = evaluate(timid, reach.env(count), episodes=20, seed_first=2_000_000_000)
        assert other.returns == together.returns
        assert other.successes == together.successes
        assert other.score == together.score
        assert other.metrics == together.metrics
    tail = evaluate(timid, reach.env(4), episodes=5, seed_first=2_000_000_015)
    assert tail.returns == together.returns[15:]
    assert 0 < sum(together.successes) < 20


def test_score_and_metrics(reach):
    scored = evaluate(timid, reach.env(8), episodes=40, seed_first=5)
    wins = sum(scored.successes)
    assert scored.score.rate == wins / 40
    assert scored.score.lower == wilson_lower(wins, 40)
    assert scored.metrics["distance_median"] <= scored.metrics["distance_p95"]
    assert scored.mean_return == pytest.approx(np.mean(scored.returns))
    manifest = scored.for_manifest(source=scored.score)
    assert (manifest.successes, manifest.episodes, manifest.seed_first) == (wins, 40, 5)
    assert manifest.source == scored.score
    assert scored_of(note_of(scored)) == scored


def test_a_perfect_policy_scores_one(reach):
    scored = evaluate(homing, reach.env(16), episodes=50, seed_first=0)
    assert scored.score.rate == 1.0
    assert scored.rank > evaluate(timid, reach.env(16), episodes=50, seed_first=0).rank


def test_a_policy_of_other_sizes_is_refused(reach):
    with pytest.raises(IncompatibleError, match="maps 4 numbers to 2, the environment needs 3 to 2"):
        evaluate(ActorCritic(4, 2), reach.env(2), episodes=2, seed_first=0)


def test_a_policy_that_answers_nan_is_refused(reach):
    with pytest.raises(TrainingError, match="action is not finite"):
        evaluate(lambda obs: obs[:, :2] * float("nan"), reach.env(2), episodes=2, seed_first=0)


def test_an_episode_without_end_is_an_error(reach):
    with pytest.raises(TrainingError, match="did not end within 3 steps"):
        evaluate(timid, reach.env(2), episodes=2, seed_first=0, max_steps=3)


def test_a_plain_gymnasium_environment_reports_its_return():
    env = make_env(EnvSettings(id="Pendulum-v1"), 3)
    policy = ActorCritic(3, 1, generator=torch.Generator().manual_seed(0))
    scored = evaluate(policy, env, episodes=4, seed_first=7)
    assert scored.score is None
    # The same episode with gymnasium's own single environment.
    single = gymnasium.make("Pendulum-v1")
    obs, _ = single.reset(seed=10)
    total, over = 0.0, False
    while not over:
        action = 2.0 * policy(torch.from_numpy(obs)[None])[0].numpy()
        obs, reward, terminated, truncated, _ = single.step(action)
        total, over = total + float(reward), terminated or truncated
    assert scored.returns[3] == pytest.approx(total, rel=1e-4)
    assert scored.for_manifest().successes == 0
    barred = evaluate(policy, env, episodes=4, seed_first=7, success_return=total - 1.0)
    assert barred.successes[3]
    env.close()


def test_interface_of_a_plain_environment():
    env = make_env(EnvSettings(id="Pendulum-v1"), 2)
    interface = interface_of(env)
    assert [s.shape for s in interface.observation] == [(3,)]
    assert interface.action[0].low == (-2.0,)
    assert interface.action[0].high == (2.0,)
    env.close()


def test_wrong_environments_are_named():
    with pytest.raises(UnknownNameError, match="did you mean Pendulum-v1"):
        make_env(EnvSettings(id="Pendulumm-v1"), 2)
    with pytest.raises(UnknownNameError, match="no environment module named 'no_such_module'"):
        make_env(EnvSettings(id="no_such_module:x/Y-v0"), 2)
    with pytest.raises(ConfigError, match="refuses its arguments"):
        make_env(EnvSettings(id="Pendulum-v1", robot="panda"), 2)
    discrete = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    with pytest.raises(ConfigError, match="the action space is Discrete"):
        interface_of(discrete)
    discrete.close()
