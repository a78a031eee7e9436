"""The built-in arms against their makers' tables."""

import mujoco
import numpy as np
import pytest

from neuraverse.sim.robot import Robot, robot_names

OWN = ("panda", "ur5e", "iiwa14")
DEGREES = np.pi / 180.0

# Denavit-Hartenberg tables: (a [m], d [m], alpha [degree]) of each joint, typed from the makers' documents,
# not read from the models. Craig: a and alpha come before the joint; Paul: after it.
PANDA_CRAIG = [
    (0, 0.333, 0),
    (0, 0, -90),
    (0, 0.316, 90),
    (0.0825, 0, 90),
    (-0.0825, 0.384, -90),
    (0, 0, 90),
    (0.088, 0, 90),
]
PANDA_FLANGE = 0.107
UR5E_PAUL = [
    (0, 0.1625, 90),
    (-0.425, 0, 0),
    (-0.3922, 0, 0),
    (0, 0.1333, 90),
    (0, 0.0997, -90),
    (0, 0.0996, 0),
]


def _rot_x(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]])


def _rot_y(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1.0]])


def _rot_z(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def _move(x, z):
    T = np.eye(4)
    T[0, 3], T[2, 3] = x, z
    return T


def panda(q):
    T = np.eye(4)
    for (a, d, alpha), angle in zip(PANDA_CRAIG, q, strict=True):
        T = T @ _rot_x(alpha * DEGREES) @ _move(a, 0) @ _rot_z(angle) @ _move(0, d)
    return T @ _move(0, PANDA_FLANGE)


def ur5e(q):
    T = _rot_z(np.pi)  # ROS base_link: the front is +x
    for (a, d, alpha), angle in zip(UR5E_PAUL, q, strict=True):
        T = T @ _rot_z(angle) @ _move(a, d) @ _rot_x(alpha * DEGREES)
    return T


def iiwa14(q):
    """Lengths 360, 420, 400, 126 mm upright; A2 and A6 turn about +y, A4 about -y, the rest about +z."""
    return (
        _rot_z(q[0])
        @ _move(0, 0.36)
        @ _rot_y(q[1])
        @ _rot_z(q[2])
        @ _move(0, 0.42)
        @ _rot_y(-q[3])
        @ _rot_z(q[4])
        @ _move(0, 0.40)
        @ _rot_y(q[5])
        @ _rot_z(q[6])
        @ _move(0, 0.126)
    )


FORWARD = {"panda": panda, "ur5e": ur5e, "iiwa14": iiwa14}
LIMITS = {
    "panda": {
        "low": [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973],
        "high": [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973],
        "speed": [2.175] * 4 + [2.61] * 3,
        "torque": [87] * 4 + [12] * 3,
    },
    "ur5e": {
        "low": np.array([-360, -360, -180, -360, -360, -360]) * DEGREES,
        "high": np.array([360, 360, 180, 360, 360, 360]) * DEGREES,
        "speed": np.array([180] * 6) * DEGREES,
        "torque": [150] * 3 + [28] * 3,
    },
    "iiwa14": {
        "low": -np.array([170, 120, 170, 120, 170, 120, 175]) * DEGREES,
        "high": np.array([170, 120, 170, 120, 170, 120, 175]) * DEGREES,
        "speed": np.array([85, 85, 100, 75, 130, 135, 135]) * DEGREES,
        "torque": [320, 320, 176, 176, 110, 40, 40],
    },
}
# Sum of the published link masses; the makers' whole-arm figures are 18, 20.6 and 29.9 kg.
MASS_KG = {"panda": 16.692, "ur5e": 21.7, "iiwa14": 30.61}


@pytest.fixture(params=OWN)
def robot(request):
    return Robot.load(request.param)


def _place(model, robot, q):
    data = mujoco.MjData(model)
    data.qpos[:] = q
    mujoco.mj_kinematics(model, data)
    T = np.eye(4)
    T[:3, :3] = data.site(robot.flange).xmat.reshape(3, 3)
    T[:3, 3] = data.site(robot.flange).xpos
    return T


def test_the_four_are_there():
    assert {"panda", "ur5e", "iiwa14", "ur5e-slow"} <= set(robot_names())


def test_compiles_without_meshes_or_contacts(robot):
    model = robot.spec().compile()
    assert model.nmesh == 0
    assert model.nq == model.nv == model.nu == robot.dof
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT
    assert [model.actuator(i).name for i in range(model.nu)] == list(robot.joints)


def test_kinematics_follow_the_makers_tables(robot):
    model = robot.spec().compile()
    low, high = np.array(robot.position_limits).T
    for q in np.random.default_rng(1).uniform(low, high, (50, robot.dof)):
        np.testing.assert_allclose(_place(model, robot, q), FORWARD[robot.name](q), atol=1e-6)


def test_limits_are_the_makers(robot):
    want = LIMITS[robot.name]
    low, high = np.array(robot.position_limits).T
    np.testing.assert_allclose(low, want["low"], atol=1e-9)
    np.testing.assert_allclose(high, want["high"], atol=1e-9)
    np.testing.assert_allclose(robot.velocity_limits, want["speed"], atol=1e-9)
    np.testing.assert_allclose(robot.torque_limits, want["torque"], atol=1e-9)
    assert robot.source


def test_masses_sum_to_the_published(robot):
    model = robot.spec().compile()
    assert model.body_subtreemass[0] == pytest.approx(MASS_KG[robot.name], abs=1e-3)


def test_ur5e_centres_of_mass_follow_the_makers_table():
    """The table gives them in the DH frame after each link; joint angles zero."""
    table = [
        (3.761, (0, -0.02561, 0.00193)),
        (8.058, (0.2125, 0, 0.11336)),
        (2.846, (0.15, 0, 0.0265)),
        (1.37, (0, -0.0018, 0.01634)),
        (1.3, (0, 0.0018, 0.01634)),
        (0.365, (0, 0, -0.001159)),
    ]
    robot = Robot.load("ur5e")
    model = robot.spec().compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    T = _rot_z(np.pi)
    for number, ((a, d, alpha), (mass, centre)) in enumerate(zip(UR5E_PAUL, table, strict=True)):
        T = T @ _move(a, d) @ _rot_x(alpha * DEGREES)
        body = model.body("base").id + 1 + number
        assert model.body_mass[body] == mass
        np.testing.assert_allclose(data.xipos[body], (T @ [*centre, 1.0])[:3], atol=1e-6)


def test_home_points_the_tool_down_in_front(robot):
    """Nearly the same place for all three, so that a task can be laid out once."""
    T = _place(robot.spec().compile(), robot, robot.home)
    np.testing.assert_allclose(T[:3, 3], [0.55, 0.0, 0.5], atol=0.06)
    np.testing.assert_allclose(T[:3, 2], [0.0, 0.0, -1.0], atol=2e-3)


def test_home_is_well_inside_the_limits(robot):
    low, high = np.array(robot.position_limits).T
    home = np.array(robot.home)
    assert np.minimum(home - low, high - home).min() > 0.4


def test_slow_ur5e_differs_in_its_servo_alone():
    fast, slow = Robot.load("ur5e"), Robot.load("ur5e-slow")
    assert (slow.servo_hz, slow.latency_s, slow.tool_mass_kg) == (1.0, 0.06, 2.5)
    same = (
        "mjcf",
        "joints",
        "home",
        "position_limits",
        "velocity_limits",
        "torque_limits",
        "reach_m",
        "source",
    )
    assert all(getattr(fast, field) == getattr(slow, field) for field in same)
