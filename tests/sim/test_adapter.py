"""The adapter: it follows twists, keeps limits, and survives singular postures and nonsense."""

import math

import pytest
import torch

from neuraverse.sim.check import PATH_BAR_MM, _Drive, check_robot
from neuraverse.sim.robot import Robot

ARMS = ("panda", "ur5e", "iiwa14")


@pytest.mark.parametrize("name", ARMS)
def test_each_arm_tracks_a_path_at_weld_speed(name):
    report = check_robot(Robot.load(name))
    assert report.passed
    assert report.path_rms_mm < PATH_BAR_MM
    assert report.twist_error < 0.1
    assert report.limit_hits == 0.0


def test_a_limp_servo_fails_the_check():
    report = check_robot(Robot.load("ur5e").replace(servo_hz=0.2))
    assert not report.passed
    assert report.path_rms_mm > PATH_BAR_MM


@pytest.mark.parametrize("name", ARMS)
def test_driving_into_the_ends_of_the_joints_stays_within_them(name):
    drive = _Drive(Robot.load(name), 8)
    twist = torch.zeros(8, 6, dtype=torch.float64)
    twist[:, 0] = torch.linspace(-0.4, 0.4, 8)
    twist[:, 2] = 0.2
    limits = torch.tensor(drive.robot.position_limits)
    for _ in range(200):  # 80 mm a step at most, far out of reach
        measured = drive.step(twist)
        assert bool(torch.isfinite(measured).all())
    q = drive.physics.qpos[:, drive.joints]
    assert bool((q > limits[:, 0] - 0.01).all())
    assert bool((q < limits[:, 1] + 0.01).all())
    assert bool((measured[:, :3].norm(dim=1) < 0.5 * twist[:, :3].norm(dim=1)).all()), (
        "nothing held them back"
    )
    lead = (drive.adapter.target - q).abs().max()
    assert float(lead) <= 0.15 + 1e-3, "the desired joints ran away from the measured ones"


def test_a_stretched_arm_is_damped_not_thrown():
    robot = Robot.load("ur5e")
    drive = _Drive(robot, 1)
    straight = torch.tensor([[0.0, -math.pi / 2, 0.0, -math.pi / 2, 0.0, 0.0]], dtype=torch.float64)
    drive.physics.qpos[:, drive.joints] = straight  # fully stretched: the elbow is singular
    drive.physics.forward()
    drive.adapter.target.copy_(straight)
    twist = torch.tensor([[0.0, 0.0, -0.05, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for _ in range(40):
        before = drive.adapter.target.clone()
        drive.step(twist)
        assert float((drive.adapter.target - before).abs().max()) <= max(robot.velocity_limits) / 20.0 + 1e-9


def test_spare_motion_returns_a_redundant_arm_home_without_moving_the_tool():
    robot = Robot.load("iiwa14")
    drive = _Drive(robot, 1)
    still = torch.zeros(1, 6, dtype=torch.float64)
    moved = torch.tensor(robot.home, dtype=torch.float64).clone()
    # Turn the elbow: the tool stays, by motion in the Jacobian's nullspace.
    for _ in range(60):
        J = drive.adapter.jacobian()[0]
        spare = torch.linalg.svd(J)[2][-1]
        moved = moved + 0.01 * spare * torch.sign(spare[0])
        drive.physics.qpos[0, drive.joints] = moved
        drive.physics.forward()
    drive.adapter.target[0] = moved
    away = float((moved - torch.tensor(robot.home)).norm())
    tip = drive.tip.clone()
    for _ in range(200):
        drive.step(still)
    q = drive.physics.qpos[0, drive.joints]
    assert float((q - torch.tensor(robot.home)).norm()) < 0.5 * away
    assert float((drive.tip - tip).norm()) < 5e-3
