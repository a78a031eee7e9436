"""HalfCheetah as a task is Gymnasium's HalfCheetah-v5."""

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from benchmarks.half_cheetah import HalfCheetah
from neuraverse.sim.vector_env import TaskVectorEnv


@pytest.fixture
def theirs():
    env = gymnasium.make("HalfCheetah-v5").unwrapped
    yield env
    env.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_steps_equal_gymnasium_from_the_same_state(theirs, seed):
    ours = TaskVectorEnv(HalfCheetah(), 3, backend="numpy", threads=1)
    obs, _ = ours.reset(seed=seed)
    rng = np.random.default_rng(seed)
    theirs.reset()
    for _ in range(100):
        state = ours.task.physics.get_state()["state"][1].numpy()
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(theirs.model, theirs.data, state[: mujoco.mj_stateSize(theirs.model, kind)], kind)
        np.testing.assert_allclose(obs[1], theirs._get_obs(), atol=1e-5)
        action = rng.uniform(-1.0, 1.0, (3, 6)).astype(np.float32)
        obs, reward, terminated, truncated, _ = ours.step(action)
        expected, their_reward, _, _, info = theirs.step(action[1])
        np.testing.assert_allclose(obs[1], expected, rtol=1e-5, atol=1e-5)
        assert reward[1] == pytest.approx(their_reward, abs=1e-5)
        assert float(ours.reward_terms["forward"][1]) == pytest.approx(info["reward_forward"], abs=1e-5)
        assert float(ours.reward_terms["ctrl"][1]) == pytest.approx(info["reward_ctrl"], abs=1e-5)
        assert not terminated.any()
        assert not truncated.any()
    ours.close()


def test_resets_follow_gymnasiums_distribution():
    ours = TaskVectorEnv(HalfCheetah(), 4000, backend="torch", threads=1)
    ours.reset(seed=3)
    noise = ours.task.physics.qpos - torch.from_numpy(ours.task.physics.model.qpos0)
    assert noise.abs().max() < 0.1
    torch.testing.assert_close(
        noise.std(0), torch.full((9,), 0.1 / 3**0.5, dtype=noise.dtype), rtol=0.05, atol=0.0
    )
    speed = ours.task.physics.qvel
    torch.testing.assert_close(speed.std(0), torch.full((9,), 0.1, dtype=noise.dtype), rtol=0.05, atol=0.0)
    assert speed.abs().max() > 0.3
    ours.close()


def test_an_episode_is_cut_at_a_thousand_steps_and_never_ends_by_itself():
    ours = TaskVectorEnv(HalfCheetah(), 2, backend="numpy", threads=1)
    ours.reset(seed=0)
    total = np.zeros(2)
    for step in range(1000):
        _, reward, terminated, truncated, infos = ours.step(np.full((2, 6), 0.3, np.float32))
        total += reward
        assert not terminated.any()
        assert truncated.all() == (step == 999)
    np.testing.assert_allclose(infos["final_info"]["episode_return"], total, rtol=1e-4)
    ours.close()
