"""Bootstrapping through a real collection, worked by hand."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from neuraverse.errors import ConfigError, TrainingError
from neuraverse.learn.envs import TorchEnv
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.recipe import PpoSettings
from neuraverse.learn.rollout import Collector


class Script(VectorEnv):
    """Two environments that play back what they are told: observations, rewards, ends, final observations."""

    def __init__(self, steps, as_objects=False) -> None:
        self.num_envs = 2
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = Box(-np.inf, np.inf, (1,), np.float64)
        self.single_action_space = Box(-np.array([2.0]), np.array([6.0]), dtype=np.float64)
        self.steps, self.at, self.as_objects, self.seen = steps, 0, as_objects, []

    def reset(self, *, seed=None, options=None):
        return np.array([[1.0], [1.0]]), {}

    def step(self, actions):
        self.seen.append(np.array(actions))
        obs, reward, terminated, truncated, final = self.steps[self.at]
        self.at += 1
        ended = np.array(terminated) | np.array(truncated)
        infos = {}
        if ended.any():
            rows = np.array([[x] for x in final])
            if self.as_objects:  # as gymnasium's SyncVectorEnv hands them over
                objects = np.full(2, None, dtype=object)
                for i in np.flatnonzero(ended):
                    objects[i] = rows[i]
                rows = objects
            infos = {"final_obs": rows, "_final_obs": ended}
        return (
            np.array([[x] for x in obs]),
            np.array(reward),
            np.array(terminated),
            np.array(truncated),
            infos,
        )


def value_is_observation(**settings) -> ActorCritic:
    """A critic with V(x) = relu(x) − relu(−x) = x, and an actor that answers 0."""
    policy = ActorCritic(1, 1, hidden=(2,), activation="relu")
    policy.critic.weights[0].copy_(torch.tensor([[1.0], [-1.0]]))
    policy.critic.weights[1].copy_(torch.tensor([[1.0, -1.0]]))
    policy.actor.weights[1].zero_()
    return policy


def collect(steps, as_objects=False, **settings):
    env = Script(steps, as_objects)
    policy = value_is_observation()
    chosen = PpoSettings(
        steps=len(steps), gamma=0.5, lam=0.5, normaliser_batches=0, minibatches=1, **settings
    )
    collector = Collector(TorchEnv(env), policy, chosen, torch.Generator().manual_seed(0))
    collector.reset(0)
    return collector, env


STEPS = [
    # next observation, reward, terminated, truncated, final observation
    ([2.0, 2.0], [1.0, 1.0], [False, False], [False, False], [0.0, 0.0]),
    ([3.0, 3.0], [2.0, 2.0], [True, False], [False, True], [7.0, 6.0]),
    ([5.0, 5.0], [3.0, 3.0], [False, False], [False, False], [0.0, 0.0]),
]


@pytest.mark.parametrize("as_objects", [False, True])
def test_time_outs_bootstrap_from_the_final_observation(as_objects):
    # V(x) = x, gamma = lambda = 1/2; observations acted upon: 1, 2, 3; after the last step: 5.
    # Environment 0 terminates in step 1, environment 1 times out there with the final observation 6.
    #   delta_2 = 3 + 5/2 - 3 = 2.5 in both.
    #   delta_1 = 2 + 0 - 2 = 0   and   2 + 6/2 - 2 = 3   (not 2 + 3/2 - 2: the next episode's start)
    #   delta_0 = 1 + 2/2 - 1 = 1;  A_0 = 1 + 0/4 = 1   and   1 + 3/4 = 1.75
    collector, _ = collect(STEPS, as_objects)
    batch = collector.collect()
    assert batch.advantages.view(3, 2).T.tolist() == [[1.0, 0.0, 2.5], [1.75, 3.0, 2.5]]
    assert batch.values.view(3, 2).T.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert batch.observations.view(3, 2).T.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_reward_scale_acts_on_the_learner_alone():
    # Environment 1, rewards halved: delta_1 = 1 + 3 - 2 = 2;  A_0 = 1/2 + 1 - 1 + 2/4 = 1
    collector, _ = collect(STEPS, reward_scale=0.5)
    batch = collector.collect()
    assert batch.advantages.view(3, 2)[:, 1].tolist() == [1.0, 2.0, 1.0]
    assert collector.recent("return") == 3.0, "episodes are reported in the task's own units"


def test_books_of_the_episodes():
    collector, _ = collect(STEPS)
    collector.collect()
    # Both ended in step 1 after rewards 1 and 2; neither said anything of success.
    assert list(collector.window["return"]) == [3.0, 3.0]
    assert list(collector.window["length"]) == [2.0, 2.0]
    assert collector.recent("success") is None


def test_actions_are_scaled_to_the_space_and_clipped():
    collector, env = collect(STEPS)
    collector.policy.log_std.fill_(3.0)  # noise far beyond the range
    batch = collector.collect()
    # The space is [-2, 6]: a = -1 gives -2, a = 1 gives 6.
    sent = np.stack(env.seen)
    drawn = batch.actions.view(3, 2, 1).numpy()
    assert sent.dtype == np.float32
    np.testing.assert_allclose(sent, 2.0 + 4.0 * drawn.clip(-1.0, 1.0), rtol=1e-6)
    assert np.abs(drawn).max() > 1.0, "the log-probability is that of the action as drawn"


def test_normaliser_comes_from_the_first_batch():
    collector, _ = collect([*STEPS, *STEPS])
    collector.ready = False
    collector.settings = PpoSettings(steps=3, normaliser_batches=1)
    assert collector.fit_normaliser() == 6
    # Seen before each of the three steps, in both environments: 1, 2, 3.
    assert collector.policy.normaliser_mean.tolist() == [2.0]
    assert collector.policy.normaliser_std.item() == pytest.approx((2 / 3) ** 0.5)
    assert collector.ready


def test_a_reward_that_is_not_finite_stops_learning():
    broken = [([2.0, 2.0], [float("nan"), 1.0], [False, False], [False, False], [0.0, 0.0])]
    collector, _ = collect(broken)
    with pytest.raises(TrainingError, match="not finite"):
        collector.collect()


def test_an_environment_that_resets_a_step_later_is_refused():
    env = Script(STEPS)
    env.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    with pytest.raises(ConfigError, match="SAME_STEP"):
        TorchEnv(env)
