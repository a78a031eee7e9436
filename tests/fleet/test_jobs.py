"""Training and evaluation in workers: deaths, interrupts, errors, and the same numbers as without."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

import pytest

from neuraverse.errors import ConfigError, IncompatibleError, TrainingError, UnknownNameError
from neuraverse.fleet import Job, Resources, best_of, evaluate, run, train, train_job
from neuraverse.learn import ActorCritic, Scored
from neuraverse.learn import evaluate as evaluate_here
from neuraverse.learn.checkpoint import CHECKPOINT
from neuraverse.learn.envs import make_env
from neuraverse.manifest import Score

pytestmark = pytest.mark.usefixtures("fleet")
SEED = 2_000_000_000


@pytest.fixture(scope="module")
def uninterrupted(weld):
    return weld.train(weld.recipe())


def test_two_seeds_run_side_by_side_and_learn_what_they_learn_alone(weld, uninterrupted, tmp_path):
    seen, workers, both = {0: [], 1: []}, {}, []

    def on_progress(seed, progress):
        seen[seed].append(progress.iteration)
        if all(seen.values()):
            both.append(seed)

    results = train(
        weld.recipe(), (0, 1), run_dir=tmp_path, on_progress=on_progress, on_worker=workers.__setitem__
    )
    assert [r.seed for r in results] == [0, 1]
    assert weld.same(results[0], uninterrupted)
    assert not weld.same(results[1], uninterrupted)
    assert seen[0] == seen[1] == list(range(1, len(uninterrupted.curve) + 1))
    assert {0, 1} <= set(both), "one waited for the other"
    assert workers[0].pid != workers[1].pid
    assert all((w.resources["CPU"], w.device) == (1.0, "cpu") for w in workers.values())
    assert all((tmp_path / f"seed-{seed}" / CHECKPOINT).is_file() for seed in (0, 1))
    assert all(weld.gone(w.pid) for w in workers.values())


def test_a_worker_killed_in_mid_training_costs_at_most_one_checkpoint_interval(weld, uninterrupted, tmp_path):
    recipe, workers, seen = weld.recipe(), [], []

    def on_progress(_, progress):
        seen.append((len(workers), progress.iteration))
        if len(workers) == 1 and progress.iteration >= 8:
            os.kill(workers[0].pid, signal.SIGKILL)

    [result] = train(
        recipe,
        (0,),
        run_dir=tmp_path,
        on_progress=on_progress,
        on_worker=lambda _, where: workers.append(where),
    )
    assert len(workers) == 2
    assert workers[0].pid != workers[1].pid
    reached = max(iteration for life, iteration in seen if life == 1)
    resumed = min(iteration for life, iteration in seen if life == 2)
    assert 8 <= reached < len(uninterrupted.curve), "the worker was not killed in mid-training"
    assert resumed > 1, "it began anew"
    assert resumed > reached - recipe.ppo.checkpoint_every
    assert weld.same(result, uninterrupted)
    assert result.env_steps == uninterrupted.env_steps


def test_workers_that_keep_dying_end_the_run_with_a_reason(weld, tmp_path):
    workers = []

    def on_worker(_, where):
        workers.append(where)
        os.kill(where.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"seed-3 died 2 times.*checkpoints are kept"):
        train(weld.recipe(), (3,), run_dir=tmp_path, on_worker=on_worker, max_restarts=1)
    assert len(workers) == 2


def test_ctrl_c_leaves_no_worker_and_a_rerun_goes_on(weld, uninterrupted, tmp_path):
    workers, again = [], []

    def interrupt_soon(_, progress):
        if progress.iteration == 7:  # while the driver waits, not while it is in this function
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        train(
            weld.recipe("ppo.total_steps=1_000_000"),
            (0,),
            run_dir=tmp_path,
            on_progress=interrupt_soon,
            on_worker=lambda _, where: workers.append(where),
        )
    assert all(weld.gone(where.pid) for where in workers)
    assert (tmp_path / "seed-0" / CHECKPOINT).is_file()
    [result] = train(
        weld.recipe(), (0,), run_dir=tmp_path, on_progress=lambda _, p: again.append(p.iteration)
    )
    assert again == [] or again[0] > 3
    assert weld.numbers(result)[: len(uninterrupted.curve)] == weld.numbers(uninterrupted)


def test_a_listener_ends_a_run_by_returning_false(weld, tmp_path):
    job = train_job(weld.recipe("ppo.total_steps=10_000_000"), run_dir=tmp_path)
    [result] = run([job], on_progress=lambda _, progress: progress.iteration < 3)
    assert 3 <= len(result.curve) < 1000


def test_an_error_in_a_worker_arrives_as_it_was_raised(weld, tmp_path):
    with pytest.raises(UnknownNameError, match=r"no robot named 'pandda' - did you mean panda"):
        train(weld.recipe('env.robot="pandda"'), (0,), run_dir=tmp_path)
    weld.train(weld.recipe("ppo.total_steps=512"), run_dir=tmp_path / "seed-0")
    with pytest.raises(ConfigError, match="holds a run of another recipe") as caught:
        train(weld.recipe("ppo.lr=1e-4"), (0,), run_dir=tmp_path)
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_fails_otherwise_says_so_in_a_sentence(weld):
    arguments = {"recipe": None, "seed": 0, "run_dir": None, "total_steps": None, "device": None}
    with pytest.raises(TrainingError, match="a worker failed with AttributeError") as caught:
        run([Job(name="odd", method="train", arguments=arguments)])
    assert "\n" not in str(caught.value)


def test_resources_that_no_node_has_are_refused_at_once(weld, tmp_path):
    for wanted, what in ((Resources(gpus=0.5), "0.5 GPU"), (Resources(cpus=64.0), "64 CPU")):
        with pytest.raises(ConfigError, match=f"no node of the Ray cluster has.*{what}"):
            train(weld.recipe(), (0,), run_dir=tmp_path, resources=wanted)


@pytest.mark.parametrize("fields", [{"cpus": -1.0}, {"gpus": 1.5}, {"custom": {"lab": float("nan")}}])
def test_resources_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError):
        Resources(**fields)


def test_a_seed_named_twice_is_refused(weld, tmp_path):
    with pytest.raises(ConfigError, match="same name"):
        train(weld.recipe(), (1, 1), run_dir=tmp_path)


def test_shared_evaluation_gives_the_figures_of_one_process(weld, uninterrupted):
    env = weld.recipe().env
    here = evaluate_here(uninterrupted.policy, make_env(env, 8, threads=1), episodes=20, seed_first=SEED)
    assert here.metrics
    assert len(set(here.returns)) == 20
    assert evaluate(uninterrupted.policy, env, 20, SEED, num_envs=8, workers=2) == here


def test_an_evaluation_refuses_what_does_not_fit(weld):
    with pytest.raises(IncompatibleError, match="the policy maps 3 numbers to 1"):
        evaluate(ActorCritic(3, 1), weld.recipe().env, 4, SEED)
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(ActorCritic(3, 1), weld.recipe().env, 0, SEED)


def test_the_best_is_chosen_by_validation(uninterrupted):
    def result(seed, wins, mean_return, env_steps=100):
        scored = Scored(
            score=Score.of(wins, 10),
            episodes=10,
            seed_first=0,
            mean_return=mean_return,
            mean_length=1.0,
            steps=10,
        )
        return dataclasses.replace(uninterrupted, seed=seed, validation=scored, env_steps=env_steps)

    results = [uninterrupted, result(1, 5, 9.0), result(2, 8, 1.0, 200), result(3, 8, 1.0), result(4, 8, 0.5)]
    assert best_of(results).seed == 3
    assert best_of(results[:1]) is uninterrupted
    with pytest.raises(ConfigError, match="no runs"):
        best_of([])


def test_without_validation_the_best_is_chosen_by_the_return_in_training(uninterrupted):
    def result(seed, ep_return):
        curve = (*uninterrupted.curve[:-1], {**uninterrupted.curve[-1], "ep_return": ep_return})
        return dataclasses.replace(uninterrupted, seed=seed, curve=curve)

    assert best_of([result(0, None), result(1, -5.0), result(2, -2.0), result(3, -9.0)]).seed == 2
