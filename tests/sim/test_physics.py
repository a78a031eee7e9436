"""The batch against plain MuJoCo, one simulation at a time."""

import mujoco
import numpy as np
import pytest
import torch

from neuraverse.errors import UnknownNameError
from neuraverse.sim.physics import Physics

XML = """
<mujoco>
  <option timestep="0.004" integrator="implicitfast"/>
  <worldbody>
    <body name="m" mocap="true"/>
    <body pos="0 0 1">
      <joint name="a" axis="0 1 0" damping="0.1"/><geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.02"/>
      <body pos="0.4 0 0">
        <joint name="b" axis="0 1 0" damping="0.1"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02"/>
        <site name="tip" pos="0.3 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="a"/><motor joint="b"/></actuator>
  <sensor>
    <framepos name="tip_in_m" objtype="site" objname="tip" reftype="body" refname="m"/>
    <jointpos name="b_angle" joint="b"/>
  </sensor>
</mujoco>
"""


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(XML)


def test_stepping_equals_mujoco(model):
    physics = Physics(model, 3, threads=2)
    ctrl = torch.tensor([[0.5, -0.2], [1.0, 0.3], [0.0, 0.0]], dtype=torch.float64)
    physics.ctrl.copy_(ctrl)
    for _ in range(5):
        physics.step(4)
    for i in range(3):
        data = mujoco.MjData(model)
        data.ctrl[:] = ctrl[i].numpy()
        for _ in range(20):
            mujoco.mj_step(model, data)
        mujoco.mj_forward(model, data)
        np.testing.assert_array_equal(physics.qpos[i].numpy(), data.qpos)
        assert physics.time[i] == pytest.approx(0.08)
        # Sensors are up to date, not one substep behind.
        np.testing.assert_allclose(physics.sensor("b_angle")[i].numpy(), data.qpos[1:], rtol=1e-6)
        np.testing.assert_allclose(physics.sensor("tip_in_m")[i].numpy(), data.site_xpos[0], atol=1e-6)


def test_sensors_follow_the_mocap_frame(model):
    physics = Physics(model, 2)
    before = physics.sensor("tip_in_m").clone()
    physics.mocap_pos[1, 0] = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    physics.forward(torch.tensor([1]))
    moved = physics.sensor("tip_in_m") - before
    assert torch.equal(moved[0], torch.zeros(3))
    assert torch.allclose(moved[1], torch.tensor([-0.1, -0.2, -0.3]), atol=1e-6)


def test_reset_touches_only_its_rows_and_takes_any_posture(model):
    physics = Physics(model, 3)
    physics.ctrl.fill_(1.0)
    physics.step(50)
    others = physics.qpos[[0, 2]].clone()
    for angle in (0.7, 0.7, 0.0):  # the same posture twice, and the model's own
        physics.reset(torch.tensor([1]))
        physics.qpos[1] = angle
        physics.forward(torch.tensor([1]))
        physics.ctrl[1] = 0.0
        assert physics.qpos[1].tolist() == [angle, angle]
        assert float(physics.sensor("b_angle")[1]) == pytest.approx(angle)
    assert torch.equal(physics.qpos[[0, 2]], others)
    assert float(physics.time[1]) == 0.0


def test_jacobian_equals_mujoco(model):
    physics = Physics(model, 2)
    physics.qpos[:] = torch.tensor([[0.3, -0.4], [1.0, 0.5]], dtype=torch.float64)
    physics.forward()
    point, _ = physics.site_pose("tip")
    body = torch.full((2,), int(model.site_bodyid[0]), dtype=torch.int32)
    jac = physics.jacobian(body, point.contiguous(), torch.zeros(2, 2, 3, 2, dtype=torch.float64))
    for i in range(2):
        data = mujoco.MjData(model)
        data.qpos[:] = physics.qpos[i].numpy()
        mujoco.mj_forward(model, data)
        expected = np.zeros((2, 3, 2))
        mujoco.mj_jacSite(model, data, expected[0], expected[1], 0)
        np.testing.assert_allclose(jac[:, i].numpy(), expected, atol=1e-9)


def test_model_parameters_are_per_simulation(model):
    physics = Physics(model, 2)
    physics.expand("body_mass")[1] *= 3.0
    physics.ctrl[:] = 1.0
    physics.step(20)
    assert not torch.allclose(physics.qpos[0], physics.qpos[1])


def test_static_load_holds_a_posture_at_rest(model):
    physics = Physics(model, 1)
    physics.qpos[:] = 0.4
    physics.forward()
    physics.ctrl.copy_(physics.static_load())
    physics.step(100)
    assert float((physics.qpos - 0.4).abs().max()) < 1e-6


def test_unknown_sensor_lists_the_near_names(model):
    with pytest.raises(UnknownNameError, match="tip_in_m"):
        Physics(model, 1).sensor("tip_in_n")
