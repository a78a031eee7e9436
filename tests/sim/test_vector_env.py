"""The vector API: autoreset within the step, the layout of infos, backends, seeds, bad input."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from neuraverse.errors import ConfigError
from neuraverse.sim.registration import register
from neuraverse.sim.vector_env import TaskVectorEnv
from neuraverse_envs.weld_seam.task import WeldSeam

ID = "neuraverse_envs:neuraverse/WeldSeam-v0"


def _torch_env(n: int, **kwargs) -> TaskVectorEnv:
    return TaskVectorEnv(WeldSeam(), n, backend="torch", threads=1, **kwargs)


def _run_to_an_end(env):
    env.reset(seed=0)
    scale = torch.from_numpy(env.action_scale)
    while True:
        obs, _, terminated, truncated, infos = env.step(env.task.expert() / scale)
        if "final_info" in infos:
            return obs, terminated, truncated, infos


def test_an_ended_episode_starts_anew_within_the_step():
    env = _torch_env(4)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    obs, terminated, truncated, infos = _run_to_an_end(env)
    done = terminated | truncated
    assert torch.equal(infos["_final_obs"], done)
    assert torch.equal(infos["final_info"]["_success"], done)
    assert bool(infos["final_info"]["success"][done].all())
    i = int(done.nonzero()[0])
    assert not torch.allclose(obs[i], infos["final_obs"][i])
    assert float(env.task.s[i]) < 0.0, "the new episode is on its lead-in"
    assert int(infos["final_info"]["episode_length"][i]) > 20


def test_truncation_is_not_termination():
    env = _torch_env(2)
    env.reset(seed=0)
    for _ in range(env.task.max_steps):  # nothing is commanded: nothing ends but the time
        _, _, terminated, truncated, infos = env.step(torch.zeros(2, 6))
    assert bool(truncated.all())
    assert not bool(terminated.any())
    assert not bool(infos["final_info"]["success"].any())
    assert infos["final_info"]["episode_length"].tolist() == [env.task.max_steps] * 2


def test_a_broken_simulation_is_a_failure_and_poisons_nothing():
    env = _torch_env(3)
    env.reset(seed=0)
    env.task.command[:] = 0.0
    original = env.task.observe

    def broken(out):
        original(out)
        if broken.armed:
            out["e_pos"][1] = float("nan")

    broken.armed = True
    env.task.observe = broken
    _, reward, terminated, _, infos = env.step(torch.zeros(3, 6))
    assert terminated.tolist() == [False, True, False]
    assert bool(torch.isfinite(reward).all())
    assert bool(torch.isfinite(infos["final_obs"]).all())
    assert not bool(infos["final_info"]["success"][1])


def test_numpy_and_torch_give_the_same_numbers():
    a = TaskVectorEnv(WeldSeam(), 3, backend="numpy", threads=1)
    b = _torch_env(3)
    oa, _ = a.reset(seed=4)
    ob, _ = b.reset(seed=4)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 6)).astype(np.float32)
    ra, rb = a.step(actions), b.step(torch.from_numpy(actions))
    assert isinstance(oa, np.ndarray)
    np.testing.assert_array_equal(oa, ob.numpy())
    np.testing.assert_array_equal(ra[0], rb[0].numpy())
    np.testing.assert_array_equal(ra[1], rb[1].numpy())


def test_what_is_returned_is_not_overwritten_later():
    env = _torch_env(2)
    obs, _ = env.reset(seed=1)
    kept = obs.clone()
    env.step(torch.ones(2, 6))
    assert torch.equal(obs, kept)


def test_a_single_environment_reports_its_results_at_the_end():
    env = gymnasium.make(ID)
    env.reset(seed=0)
    scale = env.unwrapped.action_scale
    for _ in range(400):
        action = env.unwrapped.task.expert()[0].numpy() / scale
        _, reward, terminated, truncated, info = env.step(action)
        assert isinstance(reward, float)
        if terminated or truncated:
            break
    assert info["success"] is True
    assert info["coverage"] > 0.95
    assert info["lateral_mm"] < 1.0


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"num_envs": 0}, "at least one"),
        ({"num_envs": 1, "backend": "jax"}, "numpy"),
        ({"num_envs": 1, "render_mode": "human"}, "rgb_array"),
    ],
)
def test_wrong_arguments_are_named(kwargs, says):
    with pytest.raises(ConfigError, match=says):
        TaskVectorEnv(WeldSeam(), **kwargs)


def test_a_duplicate_id_is_an_error():
    with pytest.raises(ConfigError, match="registered already"):
        register("neuraverse/WeldSeam-v0", WeldSeam)


def test_a_malformed_id_is_an_error():
    with pytest.raises(ConfigError, match="no environment id"):
        register("weld seam!", WeldSeam)


def test_a_simulation_that_blows_up_says_so_and_starts_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file where it runs
    env = _torch_env(3)
    env.reset(seed=0)
    env.step(torch.zeros(3, 6))
    env.task.physics.qvel[1] = float("nan")  # MuJoCo alone would put it back to its start without a word
    obs, _, terminated, _, infos = env.step(torch.zeros(3, 6))
    assert terminated.tolist() == [False, True, False]
    assert infos["final_info"]["diverged"].tolist() == [False, True, False]
    assert bool(torch.isfinite(obs).all())
    for _ in range(5):
        obs, _, terminated, _, _ = env.step(torch.zeros(3, 6))
    assert bool(torch.isfinite(obs).all())
    assert not bool(terminated.any())
