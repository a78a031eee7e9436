"""Rotations against MuJoCo's own."""

import mujoco
import numpy as np
import pytest
import torch

from neuraverse.sim.rotations import align, matrix_to_quaternion, rotation_about, third_axis


def _quaternions(n: int = 200) -> torch.Tensor:
    q = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = torch.cat((q, torch.eye(4, dtype=torch.float64)))  # the half turns, where one formula divides by zero
    q = q / q.norm(dim=1, keepdim=True)
    return torch.where(q[:, :1] < 0, -q, q)


def _matrices(q: torch.Tensor) -> torch.Tensor:
    out = np.zeros((len(q), 9))
    for row, quat in zip(out, q.numpy(), strict=True):
        mujoco.mju_quat2Mat(row, quat)
    return torch.from_numpy(out.reshape(-1, 3, 3))


def test_matrix_to_quaternion_inverts_mujoco():
    q = _quaternions()
    found = matrix_to_quaternion(_matrices(q))
    same = torch.minimum((found - q).abs().amax(1), (found + q).abs().amax(1))  # a half turn has two signs
    assert float(same.max()) < 1e-9


def test_third_axis_is_the_third_column():
    q = _quaternions()
    assert torch.allclose(third_axis(q), _matrices(q)[:, :, 2], atol=1e-12)


def test_rotation_about_z_by_a_quarter_turn():
    R = rotation_about(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([np.pi / 2]))
    assert torch.allclose(R[0] @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.3, 3.0])
def test_align_turns_one_axis_onto_the_other(angle):
    a = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[np.cos(angle), np.sin(angle), 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0, angle]], dtype=torch.float64)
    assert torch.allclose(align(a, b), expected, atol=1e-9)
