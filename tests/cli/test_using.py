"""Run and robots."""

from __future__ import annotations

import dataclasses

import pytest


def test_run_in_a_simulated_cell(trained, home, as_json, neuraverse):
    said = as_json(
        "run", trained.folder, "--robot", "ur5e", "--rate", "2000", "--episodes", "2", "--seed", "3"
    )
    assert said["where"] == "ur5e"
    assert len(said["episodes"]) == 2
    for episode in said["episodes"]:
        assert {"success", "return", "length", "coverage", "lateral_mm"} <= episode.keys()
    assert said["loop"]["ticks"] == sum(e["length"] for e in said["episodes"])
    words = ["run", trained.folder, "--rate", "2000", "--steps", "5"]
    assert "5 ticks" in neuraverse(*words).stdout


def test_run_is_the_same_policy_as_eval(trained, home, as_json):
    """ONNX from named signals and one cell, against torch in a batch: one episode, the same numbers."""
    seed = 2_000_000_000
    ran = as_json("run", trained.folder, "--rate", "5000", "--seed", seed)["episodes"][0]
    scored = as_json("eval", trained.folder, "--episodes", "1")
    assert ran["return"] == pytest.approx(scored["mean_return"], rel=1e-3)
    assert ran["lateral_mm"] == pytest.approx(scored["metrics"]["lateral_mm_median"], rel=1e-2)


def test_run_dry_needs_no_simulation(tiny_skill, home, as_json):
    said = as_json("run", tiny_skill.path, "--dry", "--steps", "7", "--rate", "1000")
    assert said["loop"]["ticks"] == 7
    assert said["episodes"] == []


def test_run_refuses(tiny_skill, fresh_home, neuraverse, monkeypatch, publisher):
    assert "not trusted" in neuraverse("run", tiny_skill.path, "--dry", code=1).error
    monkeypatch.setenv("NEURAVERSE_HOME", str(publisher.home))
    assert "cannot run on" in neuraverse("run", tiny_skill.path, code=1).error
    assert "a rate of 0.0 Hz" in neuraverse("run", tiny_skill.path, "--dry", "--rate", "0", code=2).error


def test_robots_list(neuraverse, as_json):
    found = {robot["robot"]: robot for robot in as_json("robots", "list")}
    assert {"panda", "ur5e", "iiwa14", "ur5e-slow"} <= found.keys()
    assert (found["panda"]["dof"], found["ur5e"]["dof"]) == (7, 6)
    assert "Universal Robots UR5e" in neuraverse("robots", "list").stdout


def test_robots_check(neuraverse, as_json, monkeypatch):
    from neuraverse.sim import check
    from neuraverse.sim.robot import Robot

    real = check.check_robot
    monkeypatch.setattr(check, "check_robot", lambda robot: real(robot, arms=2, twists=2))
    report = as_json("robots", "check", "ur5e")
    assert report["passed"] is True
    assert report["path_rms_mm"] <= 2.0
    assert "path_rms_mm" in neuraverse("robots", "check", "panda").stdout
    assert (
        "there is no robot named 'pnda' - did you mean panda"
        in neuraverse("robots", "check", "pnda", code=2).error
    )

    bad = dataclasses.replace(real(Robot.load("ur5e"), arms=1, twists=1), path_rms_mm=7.0, passed=False)
    monkeypatch.setattr(check, "check_robot", lambda robot: bad)
    assert "does not track well enough" in neuraverse("robots", "check", "ur5e", code=1).error


def test_robots_view(neuraverse, tmp_path, monkeypatch):
    from neuraverse.errors import NeuraverseError
    from neuraverse.sim.render import Renderer
    from neuraverse.sim.robot import Robot

    try:
        Renderer(Robot.load("ur5e").spec().compile()).close()
    except NeuraverseError as error:
        pytest.skip(error.message)
    picture = tmp_path / "ur5e.png"
    neuraverse("robots", "view", "ur5e", "--out", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "did you mean ur5e" in neuraverse("robots", "view", "ur5", "--out", picture, code=2).error
