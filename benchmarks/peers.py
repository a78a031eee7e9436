"""Learners on HalfCheetah-v5, ours and peers', behind one small face: `iterate`, `steps`, `policy`.

All have an actor and a critic of 256 and 128 units with ELU, rollouts of 4,096 steps, and 5 epochs of 4
minibatches. What else there is to set stays at the value that its own library or recipe gives.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.half_cheetah import HalfCheetah
from neuraverse.sim.vector_env import TaskVectorEnv

HIDDEN = (256, 128)
ROLLOUT, EPOCHS, MINIBATCHES = 4096, 5, 4
NUM_ENVS = 128  # ours and rsl_rl's
SB3_ENVS = 16


class Learner(Protocol):
    """What the benchmarks need to know of a learner."""

    def iterate(self) -> None:
        """One rollout and the learning from it."""

    @property
    def steps(self) -> int:
        """Environment steps so far."""

    def policy(self) -> Callable[[Tensor], Tensor]:
        """The present deterministic policy: observations (N, 17) to actions (N, 6)."""


class Ours:
    """`neuraverse.learn` with the recipe ``half-cheetah``, without validation."""

    def __init__(self, seed: int) -> None:
        from neuraverse.learn import Recipe, Trainer

        self.env = TaskVectorEnv(HalfCheetah(), NUM_ENVS, backend="torch")
        recipe = Recipe.load(
            "half-cheetah",
            [
                "validation.every=0",
                f"ppo.num_envs={NUM_ENVS}",
                f"ppo.steps={ROLLOUT // NUM_ENVS}",
                f"ppo.epochs={EPOCHS}",
                f"ppo.minibatches={MINIBATCHES}",
                f"ppo.hidden={list(HIDDEN)}",
                'ppo.activation="elu"',
            ],
        )
        self._trainer = Trainer(self.env, recipe, seed=seed, device="cpu")

    def iterate(self) -> None:
        self._trainer.fit(self.steps + 10 * ROLLOUT, on_progress=lambda _: False)

    @property
    def steps(self) -> int:
        return self._trainer.env_steps

    def policy(self) -> Callable[[Tensor], Tensor]:
        return self._trainer.policy


class StableBaselines3:
    """stable-baselines3: 16 of gymnasium's environments in a `DummyVecEnv`, under `VecNormalize`."""

    def __init__(self, seed: int) -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

        self.env = VecNormalize(make_vec_env("HalfCheetah-v5", SB3_ENVS, seed=seed))
        shape = {"net_arch": {"pi": list(HIDDEN), "vf": list(HIDDEN)}, "activation_fn": torch.nn.ELU}
        self._model = PPO(
            "MlpPolicy",
            self.env,
            n_steps=ROLLOUT // SB3_ENVS,
            batch_size=ROLLOUT // MINIBATCHES,
            n_epochs=EPOCHS,
            policy_kwargs=shape,
            device="cpu",
            seed=seed,
        )

    def iterate(self) -> None:
        self._model.learn(ROLLOUT, reset_num_timesteps=False)

    @property
    def steps(self) -> int:
        return int(self._model.num_timesteps)

    def policy(self) -> Callable[[Tensor], Tensor]:
        def act(obs: Tensor) -> Tensor:
            actions, _ = self._model.predict(self.env.normalize_obs(obs.numpy()), deterministic=True)
            return torch.from_numpy(actions)

        return act


class RslRl:
    """rsl-rl-lib on the very environment that ours learns in."""

    def __init__(self, seed: int) -> None:
        from rsl_rl.runners import OnPolicyRunner

        torch.manual_seed(seed)
        self.env = TaskVectorEnv(HalfCheetah(), NUM_ENVS, backend="torch")
        self.env.reset(seed=seed)
        model = {
            "class_name": "MLPModel",
            "hidden_dims": list(HIDDEN),
            "activation": "elu",
            "obs_normalization": True,
        }
        gaussian = {"class_name": "GaussianDistribution", "init_std": 0.6, "std_type": "log"}
        settings = {
            "num_steps_per_env": ROLLOUT // NUM_ENVS,
            "save_interval": 10**9,
            "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": {**model, "distribution_cfg": gaussian},
            "critic": dict(model),
            "algorithm": {
                "class_name": "PPO",
                "num_learning_epochs": EPOCHS,
                "num_mini_batches": MINIBATCHES,
                "entropy_coef": 0.0,
            },
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self._runner = OnPolicyRunner(_rsl_env(self.env), settings, log_dir=None, device="cpu")
        self._steps = 0

    def iterate(self) -> None:
        self._runner.learn(1)
        self._steps += ROLLOUT

    @property
    def steps(self) -> int:
        return self._steps

    def policy(self) -> Callable[[Tensor], Tensor]:
        from tensordict import TensorDict

        actor = self._runner.get_inference_policy(device="cpu")
        return lambda obs: actor(TensorDict({"policy": obs}, batch_size=[len(obs)])).clamp(-1.0, 1.0)


def _rsl_env(env: TaskVectorEnv) -> Any:
    """`env` as rsl_rl wants it; time-outs bootstrap from the value before the reset, which is its way."""
    from rsl_rl.env import VecEnv
    from tensordict import TensorDict

    class Adapter(VecEnv):
        num_envs = env.num_envs
        num_actions = int(env.single_action_space.shape[0])
        max_episode_length = env.task.max_steps
        episode_length_buf = torch.zeros(env.num_envs, dtype=torch.long)
        device = "cpu"
        cfg: dict[str, Any] = {}  # noqa: RUF012

        def __init__(self) -> None:
            self._obs = env.reset()[0]

        def get_observations(self) -> TensorDict:
            return TensorDict({"policy": self._obs}, batch_size=[env.num_envs])

        def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Tensor]]:
            self._obs, reward, terminated, truncated, _ = env.step(actions)
            return self.get_observations(), reward, terminated | truncated, {"time_outs": truncated}

    return Adapter()


@contextlib.contextmanager
def opened(kind: Callable[[int], Any], seed: int) -> Iterator[Learner]:
    """A learner whose environments are closed at the end."""
    learner = kind(seed)
    try:
        yield learner
    finally:
        learner.env.close()
