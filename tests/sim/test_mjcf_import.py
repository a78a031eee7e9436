"""Foreign MJCF: what is kept, what is dropped, what is refused."""

import importlib.util
from pathlib import Path

import mujoco
import numpy as np
import pytest

from neuraverse.errors import ConfigError, ModelError, NeuraverseError, UnknownNameError
from neuraverse.sim.robot import Robot

# A six-axis arm as other people write them: degrees, default classes, meshes, motors with gears, a gripper
# with coupled fingers, sensors, keyframes, another object in the scene, an offset mount.
ARM = """
<mujoco model="foreign">
  <compiler angle="degree" meshdir="meshes" autolimits="true"/>
  <option timestep="0.002" integrator="RK4"/>
  <default>
    <default class="arm">
      <joint axis="0 1 0" range="-170 170" damping="5" frictionloss="1" armature="0.05"/>
      <geom type="mesh" material="paint" density="0"/>
      <motor ctrllimited="true"/>
    </default>
  </default>
  <asset>
    <texture name="steel" type="2d" file="steel.png"/>
    <material name="paint" texture="steel"/>
    <mesh name="part" file="part.stl"/>
  </asset>
  <worldbody>
    <light pos="0 0 3"/>
    <geom name="ground" type="plane" size="1 1 1"/>
    <body name="box" pos="0.5 0.5 0.1">
      <freejoint/>
      <geom type="box" size="0.02 0.02 0.02" mass="0.1"/>
    </body>
    <body name="mount" pos="0.1 0.2 0.9" childclass="arm">
      <inertial pos="0 0 0" mass="3" diaginertia="0.1 0.1 0.1"/>
      <geom mesh="part"/>
      <body name="b1" pos="0 0 0.1">
        <inertial pos="0 0 0.1" mass="3" diaginertia="0.02 0.02 0.01"/>
        <joint name="j1" axis="0 0 1" {j1}/>
        <geom mesh="part"/>
        <body name="b2" pos="0 0 0.15">
          <inertial pos="0.01 0.02 0.2" mass="4" fullinertia="0.05 0.06 0.012 0.001 0.002 0.003"/>
          <joint name="j2"/>
          <geom mesh="part"/>
          <body name="cable" pos="0 0.1 0.2" euler="10 20 30">
            <inertial pos="0 0 0.02" mass="0.4" diaginertia="0.001 0.001 0.0005"/>
          </body>
          <body name="b3" pos="0 0 0.4">
            <inertial pos="0 0 0.15" mass="2.5" diaginertia="0.03 0.03 0.004"/>
            <joint name="j3"/>
            <body name="b4" pos="0 0 0.2">
              <inertial pos="0 0 0.05" mass="1.2" diaginertia="0.004 0.004 0.002"/>
              <joint name="j4" axis="0 0 1"/>
              <body name="b5" pos="0 0 0.15">
                <inertial pos="0 0 0.02" mass="0.8" diaginertia="0.002 0.002 0.001"/>
                <joint name="j5" {j5}/>
                <body name="b6" pos="0 0 0.08">
                  <inertial pos="0 0 0.01" mass="0.3" diaginertia="0.0005 0.0005 0.0005"/>
                  <joint name="j6" axis="0 0 1"/>
                  <body name="hand" pos="0 0 0.05" euler="0 0 45">
                    <inertial pos="0 0 0.03" mass="0.5" diaginertia="0.001 0.001 0.0006"/>
                    <site name="grip_site" pos="0 0 0.1"/>
                    <body name="left" pos="0 0.03 0.06">
                      <joint name="lj" type="slide" axis="0 1 0" range="0 0.04"/>
                      <geom type="box" size="0.01 0.01 0.02" mass="0.05"/>
                    </body>
                    <body name="right" pos="0 -0.03 0.06">
                      <joint name="rj" type="slide" axis="0 -1 0" range="0 0.04"/>
                      <geom type="box" size="0.01 0.01 0.02" mass="0.05"/>
                    </body>
                  </body>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <tendon>
    <fixed name="split"><joint joint="lj" coef="1"/><joint joint="rj" coef="1"/></fixed>
  </tendon>
  <equality>
    <joint joint1="lj" joint2="rj"/>
    {equality}
  </equality>
  <contact><exclude body1="b1" body2="b3"/></contact>
  <actuator>
    <motor class="arm" name="m1" joint="j1" gear="100" ctrlrange="-2 2"/>
    <motor class="arm" name="m2" joint="j2" gear="100" ctrlrange="-2 2" forcerange="-1.5 1.5"/>
    <position name="p3" joint="j3" kp="100" forcerange="-60 60"/>
    <position name="p4" joint="j4" kp="100"/>
    <general name="fingers" tendon="split" ctrlrange="0 255"/>
  </actuator>
  <sensor><jointpos joint="lj"/><framepos objtype="site" objname="grip_site"/></sensor>
  <keyframe><key name="home" qpos="0 0 0 1 0 0 0 0 0 0 0 0 0 0 0"/></keyframe>
</mujoco>
"""


def arm_text(j1="", j5="", equality=""):
    return ARM.replace("{j1}", j1).replace("{j5}", j5).replace("{equality}", equality)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs its warnings to the working folder

    def write(text):
        path = tmp_path / "arm.xml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "arm.xml"
    path.write_text(arm_text())
    return Robot.from_mjcf(path, tool="grip_site")


@pytest.fixture(scope="module")
def original():
    """The same arm compiled by MuJoCo alone: meshes, fingers' joints and the box taken out by hand."""
    text = arm_text()
    for line in ('<geom mesh="part"/>', '<mesh name="part" file="part.stl"/>', "<freejoint/>"):
        text = text.replace(line, "")
    text = text.replace('<texture name="steel" type="2d" file="steel.png"/>', "").replace(
        ' texture="steel"', ""
    )
    text = text.replace('<joint name="lj" type="slide" axis="0 1 0" range="0 0.04"/>', "")
    text = text.replace('<joint name="rj" type="slide" axis="0 -1 0" range="0 0.04"/>', "")
    head, tail = text.split("<tendon>")
    assert tail
    return mujoco.MjModel.from_xml_string(head + "</mujoco>")


def place(model, q, site):
    data = mujoco.MjData(model)
    data.qpos[:] = q
    mujoco.mj_forward(model, data)
    return data, data.site(site).xpos.copy(), data.site(site).xmat.copy()


def mass_matrix(model, data):
    M = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, M)
    return M


def test_missing_meshes_do_not_matter(imported):
    model = imported.spec().compile()
    assert model.nmesh == 0
    assert model.nu == model.nv == imported.dof == 6
    assert imported.joints == ("j1", "j2", "j3", "j4", "j5", "j6")
    assert not model.geom_contype.any()


def test_kinematics_are_kept(imported, original):
    """Up to the place of the mount: the arm's own root is the new origin."""
    model = imported.spec().compile()
    for q in np.random.default_rng(0).uniform(-2.5, 2.5, (20, 6)):
        _, pos, mat = place(model, q, imported.flange)
        _, pos0, mat0 = place(original, q, "grip_site")
        np.testing.assert_allclose(pos, pos0 - [0.1, 0.2, 0.9], atol=1e-9)
        np.testing.assert_allclose(mat, mat0, atol=1e-9)


def test_dynamics_are_kept(imported, original):
    """The mass matrix is that of the original, cable and gripper lumped in, for every posture."""
    model = imported.spec().compile()
    model.dof_armature[:] = original.dof_armature[:] = 0.0
    for q in np.random.default_rng(1).uniform(-2.5, 2.5, (20, 6)):
        M = mass_matrix(model, place(model, q, imported.flange)[0])
        M0 = mass_matrix(original, place(original, q, "grip_site")[0])
        np.testing.assert_allclose(M, M0, rtol=1e-6, atol=1e-8)
    assert model.body_subtreemass[0] == pytest.approx(3 + 3 + 4 + 0.4 + 2.5 + 1.2 + 0.8 + 0.3 + 0.5 + 0.1)


def test_foreign_damping_and_friction_are_dropped(imported):
    model = imported.spec().compile()
    assert not model.dof_damping.any()
    assert not model.dof_frictionloss.any()
    assert (model.body_gravcomp[1:] == 1.0).all()


def test_limits_and_torques_are_read(imported):
    np.testing.assert_allclose(imported.position_limits, [(-np.pi * 17 / 18, np.pi * 17 / 18)] * 6, atol=1e-9)
    assert imported.torque_limits[:3] == (200.0, 150.0, 60.0)  # gear x ctrl; gear x force; force
    assert min(imported.torque_limits[3:]) > 0.0  # not stated: taken from the inertia


def test_home_points_down_in_front_and_can_work_there(imported):
    model = imported.spec().compile()
    data, pos, mat = place(model, imported.home, imported.flange)
    np.testing.assert_allclose(mat.reshape(3, 3)[:, 2], [0, 0, -1], atol=5e-3)
    assert pos[0] > 0.3
    assert abs(pos[1]) < 0.05
    J = np.zeros((6, 6))
    mujoco.mj_jacSite(model, data, J[:3], J[3:], 0)
    assert np.linalg.svd(J, compute_uv=False)[-1] > 0.05
    assert 0.7 < imported.reach_m <= 0.4 + 0.2 + 0.15 + 0.08 + 0.05 + 0.1


def test_import_is_deterministic(imported, write):
    again = Robot.from_mjcf(write(arm_text()), tool="grip_site")
    assert again.replace(source="") == imported.replace(source="")


@pytest.mark.parametrize("servo_hz", [1.5, 10.0])
def test_servos_settle(imported, servo_hz):
    robot = imported.replace(servo_hz=servo_hz)
    model = robot.spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = robot.home
    data.ctrl[:] = np.array(robot.home) + 0.05
    for _ in range(round(5.0 / servo_hz / 0.005)):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, data.ctrl, atol=2e-3)


def test_a_body_may_be_the_tool_and_the_home_may_be_given(write):
    home = (0.0, 0.3, 1.2, 0.0, 1.0, 0.0)
    robot = Robot.from_mjcf(write(arm_text()), tool="hand", home=home, name="mine", velocity_limit=1.5)
    assert robot.name == "mine"
    assert robot.home == home
    assert robot.velocity_limits == (1.5,) * 6
    model = robot.spec().compile()
    _, pos, _ = place(model, np.zeros(6), robot.flange)
    np.testing.assert_allclose(pos, [0, 0, 0.1 + 0.15 + 0.4 + 0.2 + 0.15 + 0.08 + 0.05], atol=1e-9)


def test_load_takes_a_path(write):
    assert Robot.load(write(arm_text()), tool="hand").dof == 6


def box_obj(x, y, z):
    """A box as Wavefront OBJ, half sizes in m."""
    corners = [(sx * x, sy * y, sz * z) for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)]
    faces = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    lines = [f"v {a} {b} {c}" for a, b, c in corners]
    lines += [f"f {a} {b} {c}\nf {a} {c} {d}" for a, b, c, d in faces]
    return "\n".join(lines) + "\n"


def meshed(text):
    """b3 weighs what its mesh weighs."""
    text = text.replace('<inertial pos="0 0 0.15" mass="2.5" diaginertia="0.03 0.03 0.004"/>', "")
    text = text.replace('<joint name="j3"/>', '<joint name="j3"/><geom mesh="solid" density="1000"/>')
    return text.replace(
        '<mesh name="part" file="part.stl"/>', '<mesh name="solid" file="solid.obj"/>'
    ).replace('<geom mesh="part"/>', "")


def test_inertia_of_a_mesh_survives_without_the_mesh(write, tmp_path):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "solid.obj").write_text(box_obj(0.03, 0.04, 0.1))
    robot = Robot.from_mjcf(write(meshed(arm_text())), tool="hand")
    model = robot.spec().compile()
    assert model.nmesh == 0
    mass = 8 * 0.03 * 0.04 * 0.1 * 1000.0  # 0.96 kg
    link = model.body("link3").id
    assert model.body_mass[link] == pytest.approx(mass, rel=1e-6)
    want = mass / 3.0 * np.array([0.04**2 + 0.1**2, 0.03**2 + 0.1**2, 0.03**2 + 0.04**2])
    np.testing.assert_allclose(sorted(model.body_inertia[link]), sorted(want), rtol=1e-6)


def test_a_mesh_that_is_missing_and_needed_is_named(write):
    with pytest.raises(ModelError, match=r"b3 has a joint and no mass|does not compile.*b3"):
        Robot.from_mjcf(write(meshed(arm_text())), tool="hand")


LOOP = '<connect body1="b1" body2="b4" anchor="0 0 0"/>'
REFUSED = {
    "missing tool": (arm_text(), "hnad", UnknownNameError, "did you mean hand"),
    "no tool named": (arm_text(), None, ConfigError, "which body or site carries the tool.*hand"),
    "loop in the chain": (arm_text(equality=LOOP), "hand", ModelError, "b1 is tied to b4.*closed loop"),
    "chain tied to the world": (
        arm_text(equality='<weld body1="b4"/>'),
        "hand",
        ModelError,
        "b4 is tied to world",
    ),
    "loop by a linkage": (
        arm_text(equality='<connect body1="cable" body2="b3" anchor="0 0 0"/>'),
        "hand",
        ModelError,
        "closed loop",
    ),
    "coupled joints": (
        arm_text(equality='<joint joint1="j2" joint2="j3"/>'),
        "hand",
        ModelError,
        "j2 is coupled to j3",
    ),
    "ball joint": (arm_text(j5='type="ball"'), "hand", ModelError, "j5 of the chain is a ball joint"),
    "slide without range": (
        arm_text(j1='type="slide" range="0 0" limited="false"'),
        "hand",
        ModelError,
        "j1 has no range",
    ),
    "five joints": (arm_text(), "b5", ModelError, "has 5 joints: a full tool twist needs 6"),
    "free base": (
        arm_text().replace('childclass="arm">', 'childclass="arm"><freejoint/>', 1),
        "hand",
        ModelError,
        "free joint",
    ),
    "no joints": (
        "<mujoco><worldbody><body name='hand'><geom size='1'/></body></worldbody></mujoco>",
        "hand",
        ModelError,
        "no joint between",
    ),
    "tool off the arm": (arm_text(), "mount", ModelError, "no joint between"),
    "tool in the world": (
        arm_text().replace("<light", "<site name='mark'/><light"),
        "mark",
        ModelError,
        "no joint between",
    ),
    "not XML": ("these are not the droids", "hand", ModelError, "not MJCF"),
    "empty": ("", "hand", ModelError, "not MJCF"),
    "cut off": (arm_text()[:800], "hand", ModelError, "not MJCF"),
    "other XML": ("<html><body/></html>", "hand", ModelError, "not MJCF"),
    "unknown attribute": (arm_text(j1='colour="red"'), "hand", ModelError, "not MJCF.*colour"),
    "missing include": (
        arm_text().replace("<worldbody>", "<include file='other.xml'/><worldbody>"),
        "hand",
        ModelError,
        "not MJCF.*other.xml",
    ),
    "NaN": (arm_text().replace('mass="4"', 'mass="nan"'), "hand", ModelError, "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(write, case):
    text, tool, error, match = REFUSED[case]
    with pytest.raises(error, match=match) as caught:
        Robot.from_mjcf(write(text), tool=tool)
    assert "\n" not in str(caught.value)
    assert "arm.xml" in str(caught.value)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "arm.xml"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ModelError, match="not MJCF"):
        Robot.from_mjcf(path, tool="hand")


def test_fingers_tied_to_each_other_are_no_loop(write):
    tie = '<weld body1="left" body2="right"/>'
    assert Robot.from_mjcf(write(arm_text(equality=tie)), tool="hand").dof == 6


def test_a_mocap_handle_is_no_loop(write):
    text = arm_text(equality='<weld body1="handle" body2="hand"/>')
    text = text.replace("<light", '<body name="handle" mocap="true"/><light')
    assert Robot.from_mjcf(write(text), tool="hand").dof == 6


def test_a_tool_that_cannot_point_down_is_said(write):
    stiff = arm_text().replace('range="-170 170"', 'range="-5 5"')
    with pytest.raises(ModelError, match="no posture was found"):
        Robot.from_mjcf(write(stiff), tool="hand")


ROBOSUITE = importlib.util.find_spec("robosuite")
ARMS = ("baxter", "iiwa", "jaco", "kinova3", "panda", "sawyer", "spot_arm", "tiago", "ur5e", "xarm7")


@pytest.mark.skipif(ROBOSUITE is None, reason="robosuite is not installed")
@pytest.mark.parametrize("arm", ARMS)
def test_arms_of_robosuite(arm):
    folder = Path(ROBOSUITE.submodule_search_locations[0]) / "models" / "assets" / "robots" / arm
    try:
        robot = Robot.from_mjcf(folder / "robot.xml", tool="right_hand", name=arm)
    except NeuraverseError as error:
        pytest.fail(str(error))
    model = robot.spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = robot.home
    data.ctrl[:] = np.array(robot.home) + 0.02
    for _ in range(300):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, data.ctrl, atol=1e-3)
