"""The loop: it learns, it resumes to the same numbers, it stops where it should."""

import importlib

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import neuraverse.learn as learn
from neuraverse.errors import ConfigError, IntegrityError
from neuraverse.learn.checkpoint import CHECKPOINT
from neuraverse.learn.denormals import flushed
from neuraverse.learn.envs import make_env
from neuraverse.learn.evaluation import evaluate
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.recipe import Recipe
from neuraverse.learn.trainer import Trainer

ITERATION = 32 * 8  # steps; the first goes into the normaliser


def test_it_learns_to_reach(reach):
    result = Trainer(
        reach.env(32), reach.recipe("ppo.total_steps=20000"), device="cpu", eval_env=reach.env(32)
    ).fit()
    untrained = Trainer(reach.env(32), reach.recipe(), device="cpu").policy
    before = evaluate(untrained, reach.env(32), episodes=64, seed_first=2_000_000_000)
    after = evaluate(result.policy, reach.env(32), episodes=64, seed_first=2_000_000_000)
    assert before.score.rate < 0.3
    assert after.score.rate > 0.9
    assert after.mean_return > before.mean_return
    assert result.validation.score.rate == max(
        row["validation"] for row in result.curve if row["validation"] is not None
    )
    assert result.curve[-1]["env_steps"] == result.env_steps >= 20_000


def numbers(result):
    """Everything of a result but the seconds."""
    curve = [{k: v for k, v in row.items() if k != "seconds"} for row in result.curve]
    return curve, result.env_steps, result.validation


def test_a_resumed_run_gives_the_same_numbers_bit_by_bit(reach, tmp_path):
    recipe = reach.recipe("ppo.checkpoint_every=3", "validation.every=2")

    def fit(folder, steps, seed=5):
        trainer = Trainer(
            reach.env(32), recipe, seed=seed, device="cpu", run_dir=folder, eval_env=reach.env(32)
        )
        return trainer, trainer.fit(total_steps=steps)

    straight, whole = fit(tmp_path / "straight", 7 * ITERATION)
    # The second run is killed after its fourth iteration; the checkpoint of the third is what is left.
    killed = Trainer(
        reach.env(32), recipe, seed=5, device="cpu", run_dir=tmp_path / "cut", eval_env=reach.env(32)
    )

    def kill(progress):
        if progress.iteration == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.fit(total_steps=7 * ITERATION, on_progress=kill)
    resumed, rest = fit(tmp_path / "cut", 7 * ITERATION)
    assert straight.iteration == resumed.iteration == 6
    assert torch.equal(straight.policy.theta, resumed.policy.theta)
    assert torch.equal(whole.policy.theta, rest.policy.theta)
    assert straight.ppo.lr == resumed.ppo.lr
    for name, value in straight.ppo.tensors().items():
        assert torch.equal(value, resumed.ppo.tensors()[name]), name
    assert numbers(whole) == numbers(rest)
    assert rest.wall_s > 0.0
    _, other = fit(None, 7 * ITERATION, seed=6)
    assert not torch.equal(other.policy.theta, whole.policy.theta), "another seed is another run"


def test_a_finished_run_is_not_trained_again(reach, tmp_path):
    for _ in range(2):
        trainer = Trainer(reach.env(32), reach.recipe(), device="cpu", run_dir=tmp_path)
        result = trainer.fit(total_steps=3 * ITERATION)
        assert (trainer.iteration, result.env_steps) == (2, 3 * ITERATION)
    assert trainer.fit(total_steps=5 * ITERATION).env_steps == 5 * ITERATION


def test_another_recipe_does_not_take_over_a_run(reach, tmp_path):
    Trainer(reach.env(32), reach.recipe(), device="cpu", run_dir=tmp_path).fit(total_steps=2 * ITERATION)
    for recipe, seed in ((reach.recipe("ppo.gamma=0.8"), 0), (reach.recipe(), 1)):
        with pytest.raises(ConfigError, match="another recipe, seed or environment"):
            Trainer(reach.env(32), recipe, seed=seed, device="cpu", run_dir=tmp_path).fit()
    Trainer(reach.env(32), reach.recipe("ppo.total_steps=1"), device="cpu", run_dir=tmp_path).fit()
    assert [p.name for p in tmp_path.iterdir() if p.name != "tensorboard"] == [CHECKPOINT]


def test_a_broken_checkpoint_is_named(reach, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(IntegrityError, match="is no checkpoint"):
        Trainer(reach.env(32), reach.recipe(), device="cpu", run_dir=tmp_path).fit()


def test_it_stops_at_its_bar(reach):
    recipe = reach.recipe("validation.every=5", "validation.stop_lower=0.5", "ppo.total_steps=100000")
    result = Trainer(reach.env(32), recipe, device="cpu", eval_env=reach.env(32)).fit()
    assert result.reached
    assert result.env_steps < 50_000
    assert result.validation.score.lower >= 0.5


def test_without_other_environments_the_own_ones_are_put_back(reach):
    """Validation in the training environments must not change the training."""
    apart = Trainer(reach.env(32), reach.recipe("validation.every=2"), device="cpu", eval_env=reach.env(32))
    same = Trainer(reach.env(32), reach.recipe("validation.every=2"), device="cpu")
    one, other = apart.fit(total_steps=6 * ITERATION), same.fit(total_steps=6 * ITERATION)
    assert torch.equal(apart.policy.theta, same.policy.theta)
    assert numbers(one) == numbers(other)
    assert one.validation_steps > 0


def test_callbacks_hear_of_every_iteration_and_may_stop(reach):
    heard = []

    def listen(progress):
        heard.append(progress)
        return len(heard) < 3

    result = Trainer(reach.env(32), reach.recipe(), device="cpu", callbacks=[listen]).fit()
    assert [p.iteration for p in heard] == [1, 2, 3]
    assert result.env_steps == heard[-1].env_steps == 4 * ITERATION
    assert heard[-1].steps_per_s > 0
    assert heard[-1].seconds_left > 0
    assert 0.0 <= heard[-1].success <= 1.0


def test_tensorboard_speaks_the_tags_of_stable_baselines3(reach, tmp_path):
    recipe = reach.recipe("validation.every=2")
    Trainer(reach.env(32), recipe, device="cpu", run_dir=tmp_path).fit(total_steps=5 * ITERATION)
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert tags == {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "rollout/success_rate",
        "time/fps",
        "time/total_timesteps",
        "train/approx_kl",
        "train/clip_fraction",
        "train/entropy_loss",
        "train/explained_variance",
        "train/learning_rate",
        "train/policy_gradient_loss",
        "train/std",
        "train/value_loss",
        "eval/mean_reward",
        "eval/success_rate",
    }
    assert [event.step for event in log.Scalars("train/std")] == [i * ITERATION for i in (2, 3, 4, 5)]


def test_warm_start_first_moves_the_critic_alone(reach):
    initial = ActorCritic(3, 2, hidden=(16, 16), generator=torch.Generator().manual_seed(1))
    initial.freeze_normaliser(torch.randn(50, 3))
    recipe = reach.recipe("fine_tune.warmup=2")
    trainer = Trainer(reach.env(32), recipe, device="cpu", initial=initial)
    half = initial.split
    trainer.fit(total_steps=2 * ITERATION)
    assert torch.equal(trainer.policy.theta[:half], initial.theta[:half])
    assert not torch.equal(trainer.policy.theta[half:], initial.theta[half:])
    trainer.fit(total_steps=3 * ITERATION)
    assert not torch.equal(trainer.policy.theta[:half], initial.theta[:half])
    assert torch.equal(trainer.policy.normaliser_std, initial.normaliser_std), "the parent's normaliser stays"


def test_plain_gymnasium_environments_train_and_resume(tmp_path):
    recipe = Recipe.load(
        "Pendulum-v1",
        [
            "ppo.num_envs=4",
            "ppo.steps=16",
            "ppo.minibatches=2",
            "validation.every=2",
            "validation.episodes=2",
        ],
    )
    env, eval_env = make_env(recipe.env, 4), make_env(recipe.env, 2)
    trainer = Trainer(env, recipe, device="cpu", run_dir=tmp_path, eval_env=eval_env)
    result = trainer.fit(total_steps=5 * 64)
    assert result.validation.score is None
    assert result.validation.mean_return < 0.0
    again = Trainer(env, recipe, device="cpu", run_dir=tmp_path, eval_env=eval_env)
    assert again.fit(total_steps=7 * 64).env_steps == 7 * 64
    env.close()
    eval_env.close()


def test_minibatches_must_divide_the_rollout(reach):
    with pytest.raises(ConfigError, match="31 environments × 8 steps do not divide into 3 minibatches"):
        Trainer(reach.env(31), reach.recipe("ppo.minibatches=3", "ppo.num_envs=3"), device="cpu")


def test_an_absent_device_is_named(reach):
    with pytest.raises(ConfigError, match="the device 'nonsense' cannot be used"):
        Trainer(reach.env(2), reach.recipe(), device="nonsense")


def test_public_names_are_functions_and_classes_not_modules():
    for name in learn.__all__:
        importlib.import_module(f"neuraverse.learn.{learn._HOME[name]}")
        assert callable(getattr(learn, name)), name


def test_training_leaves_the_process_as_it_was(reach):
    threads = torch.get_num_threads()
    Trainer(reach.env(32), reach.recipe(), device="cpu").fit(total_steps=3 * ITERATION)
    assert torch.get_num_threads() == threads
    assert not flushed(), "denormal numbers are still flushed"
