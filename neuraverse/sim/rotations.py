"""Rotations, batched: quaternions are w first (as in MuJoCo), matrices act on column vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_to_quaternion(R: Tensor) -> Tensor:
    """Unit quaternions ``(N, 4)``, w first and not negative, of rotation matrices ``(N, 3, 3)``.

    Of the four equivalent formulas, each row uses the one with the largest divisor (Shepperd, "Quaternion
    from rotation matrix", J. Guidance and Control 1978).
    """
    d = R.diagonal(dim1=1, dim2=2)
    trace = d.sum(1, keepdim=True)
    # Row k of `outer` is 4 q_k q: pick the row with the largest diagonal entry and normalise it.
    w = torch.cat((1.0 + trace, _skew(R)), dim=1)
    xyz = R + R.transpose(1, 2)
    xyz = xyz - torch.diag_embed(xyz.diagonal(dim1=1, dim2=2)) + torch.diag_embed(1.0 + 2.0 * d - trace)
    outer = torch.cat((w[:, None], torch.cat((_skew(R)[:, :, None], xyz), dim=2)), dim=1)
    best = outer.diagonal(dim1=1, dim2=2).argmax(1)
    q = outer[torch.arange(len(R), device=R.device), best]
    q = q / q.norm(dim=1, keepdim=True)
    return torch.where(q[:, :1] < 0.0, -q, q)


def _skew(R: Tensor) -> Tensor:
    return torch.stack((R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]), dim=1)


def rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations ``(N, 3, 3)`` about unit axes ``(N, 3)`` by angles ``(N,)`` [rad] (Rodrigues' formula)."""
    zero = torch.zeros_like(angle)
    x, y, z = axis.unbind(1)
    K = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=1).reshape(-1, 3, 3)
    s, c = angle.sin()[:, None, None], angle.cos()[:, None, None]
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return eye + s * K + (1.0 - c) * (K @ K)


def align(a: Tensor, b: Tensor) -> Tensor:
    """Smallest rotation vectors [rad] ``(N, 3)`` that turn unit vectors `a` onto `b`; both ``(N, 3)``."""
    cross: Tensor = torch.linalg.cross(a, b)
    sine = cross.norm(dim=1, keepdim=True)
    angle = torch.atan2(sine, (a * b).sum(1, keepdim=True))
    growth = torch.where(sine > 1e-6, angle / sine.clamp(min=1e-6), 1.0)
    return cross * growth


def third_axis(quat: Tensor) -> Tensor:
    """The rotated z axis ``(N, 3)`` of unit quaternions ``(N, 4)``, w first."""
    w, x, y, z = quat.unbind(1)
    return torch.stack((2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)), dim=1)
