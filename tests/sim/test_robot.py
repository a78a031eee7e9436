"""Robot: files, servos, offers."""

import pickle

import mujoco
import numpy as np
import pytest
import torch

from neuraverse.errors import ConfigError, ModelError, UnknownNameError
from neuraverse.interface import Signal
from neuraverse.sim.robot import Robot, register_robots, robot_names, servo_gains

NAMES = ("panda", "ur5e", "iiwa14", "ur5e-slow")


def step_response(robot, size, seconds):
    """All joints stepped at once by `size` rad from home, shape (steps, dof), as a share of the step."""
    model = robot.spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = robot.home
    data.ctrl[:] = np.array(robot.home) + size
    trace = []
    for _ in range(round(seconds / model.opt.timestep)):
        mujoco.mj_step(model, data)
        trace.append((data.qpos - robot.home) / size)
    return np.array(trace)


def test_gains_by_hand():
    # M = 2 kg m^2 at 1 Hz: kp = 2 (2 pi)^2 = 78.957, kv = 2 * 2 * 2 pi = 25.133
    kp, kv = servo_gains(np.array([2.0]), 1.0)
    assert kp[0] == pytest.approx(78.957, abs=1e-3)
    assert kv[0] == pytest.approx(25.133, abs=1e-3)


def test_gains_are_batched():
    kp, kv = servo_gains(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0], [2.0]]))
    assert kp.shape == kv.shape == (2, 3)
    assert torch.allclose(kp[1], 4.0 * kp[0])
    assert torch.allclose(kv[1], 2.0 * kv[0])


@pytest.mark.parametrize("name", NAMES)
def test_arm_holds_home_against_gravity(name):
    robot = Robot.load(name)
    model = robot.spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = data.ctrl[:] = robot.home
    for _ in range(200):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, robot.home, atol=1e-6)


@pytest.mark.parametrize("servo_hz", [1.5, 5.0, 10.0])
@pytest.mark.parametrize("name", ["panda", "ur5e", "iiwa14"])
def test_step_settles_without_ringing(name, servo_hz):
    """Critically damped, w = 2 pi f: within 2 % after 5.83 / w. Coupling between joints may double that."""
    robot = Robot.load(name).replace(servo_hz=servo_hz)
    trace = step_response(robot, 0.01, 4.0 / servo_hz)
    settled = 2.0 * 5.83 / (2.0 * np.pi * servo_hz)
    late = trace[round(settled / 0.005) :]
    assert np.abs(late - 1.0).max() < 0.02
    assert trace.max() < 1.15


@pytest.mark.parametrize("name", ["panda", "ur5e", "iiwa14"])
def test_bandwidth_is_the_one_asked_for(name):
    """One joint at a time follows the step of a critically damped system, 1 - (1 + wt) exp(-wt)."""
    robot = Robot.load(name).replace(servo_hz=3.0, tool_mass_kg=0.0)
    model = robot.spec().compile()
    model.opt.timestep = 0.001
    t = 0.001 * np.arange(1, 201)
    w = 2.0 * np.pi * 3.0
    want = 1.0 - (1.0 + w * t) * np.exp(-w * t)
    for joint in range(robot.dof):
        data = mujoco.MjData(model)
        data.qpos[:] = data.ctrl[:] = robot.home
        data.ctrl[joint] += 0.005
        trace = []
        for _ in t:
            mujoco.mj_step(model, data)
            trace.append((data.qpos[joint] - robot.home[joint]) / 0.005)
        assert np.abs(np.array(trace) - want).max() < 0.2, joint


@pytest.mark.parametrize("name", NAMES)
def test_stable_at_ten_hertz_over_the_workspace(name):
    """Gains are of the home posture; other postures and hard steps must not blow up."""
    robot = Robot.load(name).replace(servo_hz=10.0)
    model = robot.spec().compile()
    low, high = np.array(robot.position_limits).T
    random = np.random.default_rng(0)
    for _ in range(5):
        data = mujoco.MjData(model)
        data.qpos[:] = np.clip(robot.home + random.uniform(-0.8, 0.8, robot.dof), low, high)
        target = np.clip(data.qpos + random.uniform(-0.5, 0.5, robot.dof), low + 0.05, high - 0.05)
        data.ctrl[:] = target
        for _ in range(600):
            mujoco.mj_step(model, data)
        assert np.isfinite(data.qpos).all()
        np.testing.assert_allclose(data.qpos, target, atol=0.01)


def test_a_tool_counts_in_the_servo_gains():
    light, heavy = Robot.load("ur5e"), Robot.load("ur5e").replace(tool_mass_kg=5.0)
    assert (heavy.inertia_diag[:5] > light.inertia_diag[:5]).all()


def test_spec_is_fresh_each_time():
    robot = Robot.load("panda")
    robot.spec().worldbody.add_body(name="table")
    assert robot.spec().body("table") is None


def test_survives_a_process_border():
    robot = Robot.load("iiwa14")
    _ = robot.inertia_diag  # cached values must not get in the way
    assert pickle.loads(pickle.dumps(robot)) == robot


def test_offer_and_body():
    robot = Robot.load("ur5e-slow")
    signal = Signal(name="e_pos", shape=(3,), unit="m", frame="W")
    offer = robot.offer(observation=(signal,))
    assert offer.robot == "ur5e-slow"
    assert offer.observation == (signal,)
    assert offer.reach_m == 0.85
    assert 0.2 < offer.linear_speed_m_s < 3.0
    assert robot.body() == {
        "robot": "ur5e-slow",
        "dof": 6,
        "servo_hz": 1.0,
        "latency_s": 0.06,
        "tool_mass_kg": 2.5,
    }


def test_tool_speed_is_reached_in_every_direction():
    robot = Robot.load("panda")
    model = robot.spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = robot.home
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    J = np.zeros((6, 7))
    mujoco.mj_jacSite(model, data, J[:3], J[3:], model.site(robot.flange).id)
    linear, _ = robot.tool_speed
    for direction in np.eye(3):
        dq = np.linalg.pinv(J) @ np.concatenate((linear * direction, np.zeros(3)))
        assert (np.abs(dq) <= np.array(robot.velocity_limits) * 1.001).all()


def test_an_unknown_base_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("neuraverse.sim.robot._robots", {**_known()})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "robot.toml").write_text("base = 'ur5'\n")
    register_robots(tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean ur5e"):
        Robot.load("mine")


def test_a_name_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "panda").write_text("no MJCF")
    assert Robot.load("panda").name == "panda"


def test_unknown_name_lists_the_near_ones():
    with pytest.raises(UnknownNameError, match="did you mean panda"):
        Robot.load("pandaa")


def test_a_missing_file_is_said():
    with pytest.raises(ModelError, match="no such file"):
        Robot.load("nowhere/arm.xml", tool="hand")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"servo_hz": 0.0}, "servo_hz"),
        ({"servo_hz": float("nan")}, "servo_hz"),
        ({"latency_s": -0.1}, "latency_s"),
        ({"home": (0.0,)}, "home has 1"),
        ({"home": (9.0,) * 7}, "outside"),
    ],
)
def test_figures_that_contradict_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        Robot.load("panda").replace(**change)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("base = 'ur5e'\nservo_hertz = 1", "servo_hertz"),
        ("base = 'ur5e'\nservo_hz = 'fast'", "servo_hz"),
        ("base = 'ur5e'\nservo_hz = -1", "servo_hz"),
        ("base = 'ur5e'\nlatency_s = nan", "latency_s"),
        ("base = 'ur5e'\nmjcf = 'arm.xml'", "exclude each other"),
        ("mjcf = 'arm.xml'\nflange = 'flange'", "home is missing"),
        (
            "mjcf = 'x.xml'\nflange = 'f'\nhome = []\nvelocity_limits = []\nreach_m = 1.0",
            "x.xml cannot be read",
        ),
        ("base = ", "not TOML"),
        ("base = 'mine'", "leads back to itself"),
    ],
)
def test_a_wrong_robot_file_names_its_field(tmp_path, monkeypatch, text, match):
    names = dict.fromkeys(robot_names())
    assert "mine" not in names
    monkeypatch.setattr("neuraverse.sim.robot._robots", {**_known()})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "robot.toml").write_text(text)
    register_robots(tmp_path)
    with pytest.raises(ConfigError, match=match):
        Robot.load("mine")


def test_a_folder_of_robots_can_be_registered(tmp_path, monkeypatch):
    monkeypatch.setattr("neuraverse.sim.robot._robots", {**_known()})
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / "robot.toml").write_text("base = 'panda'\nservo_hz = 2.0\n")
    register_robots(tmp_path)
    register_robots(tmp_path)  # again is harmless
    assert Robot.load("soft").servo_hz == 2.0
    assert Robot.load("soft").name == "soft"
    (tmp_path / "other" / "panda").mkdir(parents=True)
    (tmp_path / "other" / "panda" / "robot.toml").write_text("base = 'ur5e'\n")
    with pytest.raises(ConfigError, match="registered twice"):
        register_robots(tmp_path / "other")


def _known():
    robot_names()
    from neuraverse.sim import robot

    return robot._robots
