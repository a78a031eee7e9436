"""Train, resume, fine-tune, eval, recipes and envs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from neuraverse.cli.display import training
from neuraverse.fleet import connect
from neuraverse.skill import Skill
from neuraverse.trust import verify

PENDULUM = [
    *("Pendulum-v1", "ppo.num_envs=2", "ppo.steps=8", "ppo.minibatches=1", "ppo.checkpoint_every=2"),
    *("ppo.normaliser_batches=0", "validation.every=0", "eval.episodes=1", "ppo.epochs=1"),
]


def test_train_seals_a_signed_skill(trained, home):
    said = trained.said
    skill = Skill.open(trained.folder)
    assert (said["skill"], said["digest"]) == ("neuraverse/weld-seam@1.0.0", skill.digest)
    assert said["path"] == str(trained.folder)
    assert said["env_steps"] == skill.manifest.training.env_steps >= 64
    assert said["success"].keys() == {"rate", "lower", "n"}
    assert said["bar"] == {"success": 0.9, "reached": False}
    assert skill.manifest.training.recipe["ppo"]["num_envs"] == 4
    verify(trained.folder)


def test_training_again_finds_it_done(trained, home, neuraverse):
    again = neuraverse(*trained.words, "--json", "-")
    assert json.loads(again.stdout) == trained.said
    assert "is there already" in again.stderr
    error = neuraverse(*trained.words, "ppo.gamma=0.9", code=2).error
    assert "holds the skill of another run" in error
    error = neuraverse(*trained.words, "ppo.gamma=0.9", "--out", trained.folder.with_name("b"), code=2).error
    assert "holds a run of another recipe, seed or environment" in error
    error = neuraverse(*trained.words, "--out", trained.folder.parent, code=2).error
    assert "exists and is no skill" in error


def test_one_seed_stays_in_this_process(trained):
    assert "Ray" not in trained.stderr


def test_several_seeds_train_in_ray_actors(neuraverse, fresh_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = neuraverse("train", *PENDULUM, "ppo.total_steps=32", "--seeds", "2", "--json", "out.json")
    assert "made your first key, 'default'" in done.stderr
    said = json.loads(Path("out.json").read_text())
    assert said["path"] == "runs/pendulum-seeds0-1/skill"
    assert said["seeds"] == [0, 1]
    assert said["env_steps"] == 64
    assert said["success"] is None
    assert "neuraverse publish runs/pendulum-seeds0-1/skill" in done.stdout
    assert "starting Ray" in done.stderr
    for seed in (0, 1):
        assert f"local/pendulum seed {seed}: 100%" in done.stderr
        [curve] = Path(f"runs/pendulum-seeds0-1/seed-{seed}/tensorboard").iterdir()
        assert curve.name.split(".")[-2] != str(os.getpid())
    assert not ray.is_initialized()
    assert (fresh_home / "keys" / "default").is_dir()
    assert sorted(p.name for p in Path("runs/pendulum-seeds0-1").iterdir()) == ["seed-0", "seed-1", "skill"]


def test_ctrl_c_leaves_a_run_that_goes_on(process, neuraverse, home, tmp_path):
    run = tmp_path / "run"
    words = ["train", *PENDULUM, "--run-dir", run]
    child = process(*words, "ppo.total_steps=1e9")
    assert "steps/s" in child.stderr.readline()
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "Traceback" not in said
    assert {p.name for p in run.iterdir()} <= {"checkpoint.safetensors", "tensorboard"}
    from neuraverse.learn import checkpoint

    before = checkpoint.load(run)[1]["env_steps"]
    assert before > 0
    neuraverse(*words, f"ppo.total_steps={before + 64}")
    training = Skill.open(run / "skill").manifest.training
    assert before + 64 <= training.env_steps < before + 64 + 32


def test_ctrl_c_asks_every_seed_to_stop(capsys):
    at = SimpleNamespace(
        env_steps=8, total_steps=16, steps_per_s=1.0, success=0.5, ep_return=None, seconds_left=8.0
    )

    def interrupted():
        with training({3: "seed 3", 4: "seed 4"}) as tell:
            assert tell(3, at)
            os.kill(os.getpid(), signal.SIGINT)
            assert [tell(3, at), tell(4, at)] == [False, False]

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    said = capsys.readouterr().err
    assert all(f"{title}: 50%, 1 steps/s" in said for title in ("seed 3", "seed 4"))
    assert "stopping after this iteration" in said


def test_a_terminal_sees_it_live(process, home, tmp_path):
    screen, terminal = os.openpty()
    os.set_blocking(screen, False)
    words = ["train", *PENDULUM, "ppo.total_steps=1e9", "--run-dir", tmp_path / "run"]
    child = process(*words, stderr=terminal)
    os.close(terminal)
    shown, asked, deadline = "", False, time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(BlockingIOError, OSError):
            shown += os.read(screen, 65536).decode(errors="replace")
        if not asked and "steps/s" in shown:
            child.send_signal(signal.SIGINT)
            asked = True
    with contextlib.suppress(OSError):
        shown += os.read(screen, 65536).decode(errors="replace")
    os.close(screen)
    assert child.returncode == 130
    for word in ("local/pendulum seed 0", "━", "steps/s", "left", "interrupted; run the same command again"):
        assert word in shown


def test_a_full_disk_in_training_keeps_the_last_checkpoint(neuraverse, home, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = ["train", *PENDULUM, "--run-dir", run]
    real, calls = os.fsync, []

    def fsync(handle):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{handle}"):
            calls.append(handle)
            if len(calls) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        error = neuraverse(*words, "ppo.total_steps=1e6", code=1).error
    assert "No space left on device - free some space" in error
    assert not list(run.rglob("*.tmp"))
    from neuraverse.learn import checkpoint

    assert checkpoint.load(run)[1]["env_steps"] == 64
    neuraverse(*words, "ppo.total_steps=96")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["weld-sem"], "there is no recipe named 'weld-sem' - did you mean weld-seam?"),
        (["HalfCheeta-v5"], "there is no environment named 'HalfCheeta-v5' - did you mean HalfCheetah-v5"),
        (["WeldSeem-v0"], "did you mean neuraverse/WeldSeam-v0"),
        (["no_such_package:a/B-v0"], "there is no environment module named 'no_such_package'"),
        (["weld-seam", "ppo.lrr=1"], "ppo.lrr is not a field - did you mean lr?"),
        (["weld-seam", "ppo.lr=fast"], 'ppo.lr = "fast": input should be a valid number'),
        (["weld-seam", "ppo.lr=-1"], "ppo.lr = -1: input should be greater than 0"),
        (["weld-seam", "ppo.lr"], "is not of the form section.field=value - such as ppo.lr=3e-4"),
        (["weld-seam", "env.robot=pandas"], "there is no robot named 'pandas' - did you mean panda"),
        (["weld-seam", "env.randomise.servo=[1,2]"], "there is no randomised quantity named 'servo'"),
        (["weld-seam", "--device", "tpu"], "the device 'tpu' cannot be used"),
        (["weld-seam", "--key", "mine"], "there is no key named 'mine'"),
        (["weld-seam", "--seed", "-1"], "the seed -1 is not between"),
        (["nowhere/skill.toml"], "the recipe nowhere/skill.toml cannot be read"),
        (["CliffWalking-v1"], "learning needs a Box"),
    ],
)
def test_a_wrong_start_ends_in_one_sentence(neuraverse, home, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in neuraverse("train", *words, code=2).error
    assert not Path("runs").exists()


def test_eval_repeats_the_published_score(trained, home, as_json):
    said = as_json("eval", trained.folder)
    assert said["success"] == said["published"] == trained.said["success"]
    assert said["metrics"].items() <= trained.said["metrics"].items()
    assert (said["robot"], said["outside"], said["problems"]) == ("panda", [], [])


def test_eval_on_another_robot(trained, home, neuraverse, tmp_path):
    scores = tmp_path / "scores.json"
    done = neuraverse("eval", trained.folder, "--robot", "ur5e-slow", "--episodes", "3", "--json", scores)
    said = json.loads(scores.read_text())
    assert (said["robot"], said["episodes"], said["success"]["n"]) == ("ur5e-slow", 3, 3)
    assert any(sentence.startswith("latency: ur5e-slow has 0.06 s") for sentence in said["outside"])
    assert "outside what it was trained over: latency" in done.stderr
    assert "of 3 episodes" in done.stdout


def test_eval_on_an_arm_from_a_file(trained, home, as_json, tmp_path):
    from neuraverse.sim.robot import Robot

    arm = tmp_path / "arm.xml"
    robot = Robot.load("iiwa14")
    arm.write_text(robot.mjcf)
    said = as_json("eval", trained.folder, "--robot", arm, "--tool", robot.flange, "--episodes", "2")
    assert (said["robot"], said["episodes"]) == (str(arm), 2)


def test_eval_refuses(trained, tiny_skill, home, neuraverse, tmp_path):
    error = neuraverse("eval", tiny_skill.path, "--episodes", "2", code=1).error
    assert "acme/weld-seam@1.0.0 cannot run on" in error
    assert "observation signals are" in error
    assert "did you mean ur5e" in neuraverse("eval", trained.folder, "--robot", "ur5", code=2).error
    arm = tmp_path / "arm.xml"
    arm.write_text("<mujoco><worldbody><body name='hand'/></worldbody></mujoco>")
    error = neuraverse("eval", trained.folder, "--robot", arm, "--tool", "hand", code=1).error
    assert "arm.xml" in error
    assert "hand" in neuraverse("eval", trained.folder, "--robot", arm, "--tool", "hnd", code=2).error
    assert "--robot FILE" in neuraverse("eval", trained.folder, "--tool", "hand", code=2).error


def test_a_skill_may_not_choose_what_is_imported(neuraverse, home, tmp_path, make_skill):
    recipe = {"skill": {"name": "acme/x"}, "env": {"id": "antigravity:acme/X-v0"}}
    from neuraverse.manifest import Training

    training = Training(
        algorithm="ppo", recipe=recipe, seeds=(0,), env_steps=1, wall_s=1.0, cpu_s=1.0, device="cpu"
    )
    skill = make_skill(tmp_path / "x", training=training)
    for command in ("eval", "run", "fine-tune"):
        assert "a skill may not choose what is imported" in neuraverse(command, skill.path, code=2).error


def test_fine_tune_seals_a_child(trained, home, neuraverse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fine-tune", trained.folder, "--robot", "ur5e-slow", "fine_tune.total_steps=64"]
    words += ["fine_tune.probe_episodes=2"]
    done = neuraverse(*words, "--json", "out.json")
    said = json.loads(Path("out.json").read_text())
    assert said["skill"] == "local/weld-seam-ur5e-slow@1.0.0"
    assert said["parents"] == [trained.said["digest"]]
    assert said["source"]["n"] == said["success"]["n"] == 2
    assert said["path"] == "runs/weld-seam-ur5e-slow-seed0/skill"
    assert "as it is: " in done.stderr
    manifest = Skill.open(said["path"]).manifest
    assert manifest.body.robot == "ur5e-slow"
    assert manifest.training.algorithm == "ppo, fine-tuned"
    verify(said["path"])
    assert "is there already" in neuraverse(*words).stderr


def test_with_a_ray_address_the_work_is_done_there(
    trained, tiny_skill, home, as_json, neuraverse, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with connect(num_cpus=2):
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        begun = []
        watch(monkeypatch, begun)
        said = as_json("eval", trained.folder)
        assert said["success"] == said["published"] == trained.said["success"]
        assert begun == ["evaluate"]
        assert "cannot run on" in neuraverse("eval", tiny_skill.path, "--episodes", "2", code=1).error
        words = ["fine-tune", trained.folder, "--robot", "ur5e-slow", "fine_tune.total_steps=64"]
        done = neuraverse(*words, "fine_tune.probe_episodes=2", "--json", "out.json")
        assert begun == ["evaluate", "evaluate", "fine_tune", "evaluate", "evaluate"]
        assert "local/weld-seam-ur5e-slow seed 0: 100%" in done.stderr
        assert json.loads(Path("out.json").read_text())["parents"] == [trained.said["digest"]]
        verify("runs/weld-seam-ur5e-slow-seed0/skill")


def watch(monkeypatch, begun):
    """Note the method of each job that the fleet runs."""
    from neuraverse.fleet import jobs

    real = jobs.run

    def run(work, **kwargs):
        begun.extend(job.method for job in work)
        return real(work, **kwargs)

    monkeypatch.setattr(jobs, "run", run)


def test_fine_tune_refuses_what_does_not_fit(tiny_skill, home, neuraverse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "cannot be fine-tuned here" in neuraverse("fine-tune", tiny_skill.path, code=1).error
    assert not Path("runs").exists()


def test_recipes(neuraverse, as_json):
    assert "neuraverse_envs:neuraverse/WeldSeam-v0" in neuraverse("recipes").stdout
    assert {"weld-seam", "half-cheetah"} <= {r["recipe"] for r in as_json("recipes")}
    assert as_json("recipes", "weld-seam", "ppo.lr=3e-4")["ppo"]["lr"] == 3e-4
    assert 'env.id         "HalfCheetah-v5"' in neuraverse("recipes", "half-cheetah").stdout
    assert "did you mean weld-seam" in neuraverse("recipes", "weld", code=2).error


def test_envs(neuraverse, as_json):
    env_id = "neuraverse_envs:neuraverse/WeldSeam-v0"
    assert env_id in neuraverse("envs", "list").stdout
    assert env_id in {env["env"] for env in as_json("envs", "list")}
    assert "is no task made with neuraverse.sim" in neuraverse("envs", "check", "Pendulum-v1", code=2).error
    assert "did you mean neuraverse/WeldSeam-v0" in neuraverse("envs", "check", "WeldSeem-v0", code=2).error


def test_envs_check_exits_1_for_a_task_that_fails(neuraverse, as_json, monkeypatch):
    from neuraverse.sim import testing

    env_id = "neuraverse_envs:neuraverse/WeldSeam-v0"
    good = testing.Check(name="interface", passed=True, detail="24 observed")
    bad = testing.Check(name="finite", passed=False, detail="observation is\nnot finite")
    asked = []

    def check(env_id, **kwargs):
        asked.append((env_id, kwargs))
        return [good, bad]

    monkeypatch.setattr(testing, "check_task", check)
    done = neuraverse("envs", "check", env_id, "--robot", "ur5e", code=1)
    assert "fails 1 of 2 checks" in done.error
    assert "FAILED  finite     observation is not finite" in done.stdout
    assert asked == [(env_id, {"robot": "ur5e"})]
    monkeypatch.setattr(testing, "check_task", lambda env_id: [good])
    assert as_json("envs", "check", env_id)["passed"] is True
