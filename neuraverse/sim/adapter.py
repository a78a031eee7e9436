"""`CartesianAdapter`: tool twists to joint position targets, batched, the same for every arm.

Inverse differential kinematics by damped least squares (Wampler, "Manipulator inverse kinematic solutions
based on vector formulations and damped least-squares methods", IEEE SMC 1986):

    dq = Jᵀ (J Jᵀ + λ² I)⁻¹ v dt  +  (I − J⁺ J) g dt

with λ² raised near singular postures (Nakamura and Hanafusa, ASME JDSMC 1986) and g drawing the arm's spare
motion toward its home posture. Targets are integrated on the *desired* joints (integrating on the measured
ones would lose what the servo lags behind), and clamped so that they never run away from the measured ones.
"""

from __future__ import annotations

import dataclasses

import mujoco
import torch
from torch import Tensor

from neuraverse.sim.physics import Physics
from neuraverse.sim.robot import Robot


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterGains:
    """Constants of the adapter, the same for all arms.

    Attributes:
        damping: λ² far from singularities; mixed units, small beside the eigenvalues of J Jᵀ (0.05 to 1).
        singular_damping: λ² added as the manipulability falls to zero.
        manipulability: √det(J Jᵀ) as a share of its value at home, below which damping rises.
        windup_rad: Greatest distance of the desired from the measured joints.
        nullspace_hz: Rate at which spare motion approaches the home posture.
        margin_rad: Distance that targets keep from the ends of a joint's range.
    """

    damping: float = 1e-4
    singular_damping: float = 2e-2
    manipulability: float = 0.15
    windup_rad: float = 0.15
    nullspace_hz: float = 0.25
    margin_rad: float = 0.02


class CartesianAdapter:
    """Follows tool twists with joint position servos.

    Args:
        physics: The simulations.
        robot: The arm; its joints must be in the model under their own names.
        tool_site: Site at the tool tip.
        gains: Constants.

    Attributes:
        target: Desired joint positions [rad], float64 ``(N, dof)``.
        saturated: Joints at a limit of speed, position or windup in the last step, bool ``(N, dof)``.
    """

    def __init__(
        self, physics: Physics, robot: Robot, tool_site: str, gains: AdapterGains | None = None
    ) -> None:
        model = physics.model
        self._physics = physics
        self._gains = gains or AdapterGains()
        qpos = [int(model.joint(name).qposadr[0]) for name in robot.joints]
        dofs = [int(model.joint(name).dofadr[0]) for name in robot.joints]
        ctrl = [int(model.actuator(name).id) for name in robot.joints]
        self._qpos, self._dofs, self._ctrl = _columns(qpos), _columns(dofs), _columns(ctrl)
        self._point, _ = physics.site_pose(tool_site)
        site = int(model.site(tool_site).id)
        body = int(model.site_bodyid[site])
        n, dof = physics.num_envs, len(robot.joints)
        self._body = torch.full((n,), body, dtype=torch.int32)
        self._jac = torch.zeros(2, n, 3, model.nv, dtype=torch.float64)
        self._eye = torch.eye(6, dtype=torch.float64)
        self._home = torch.tensor(robot.home, dtype=torch.float64)
        limits = torch.tensor(robot.position_limits, dtype=torch.float64)
        margin = self._gains.margin_rad
        self._low, self._high = limits[:, 0] + margin, limits[:, 1] - margin
        self._speed = torch.tensor(robot.velocity_limits, dtype=torch.float64)
        self.target = torch.zeros(n, dof, dtype=torch.float64)
        self.saturated = torch.zeros(n, dof, dtype=torch.bool)
        self._manipulability_home = _manipulability_at(model, qpos, dofs, robot.home, site, body)

    def reset(self, ids: Tensor, stiffness: Tensor) -> None:
        """Hold the present posture of `ids`, at rest.

        Args:
            ids: Environments.
            stiffness: Position gains of their servos [N·m/rad], ``(len(ids), dof)``: a target this much above
                the joints carries the weight that gravity compensation does not know of.
        """
        load = self._physics.static_load()[ids][:, self._dofs]
        self.target[ids] = self._physics.qpos[:, self._qpos][ids] + load / stiffness
        self._physics.ctrl[:, self._ctrl] = self.target

    def jacobian(self) -> Tensor:
        """Tool Jacobian in the world frame, float64 ``(N, 6, dof)``: linear rows, then angular."""
        blocks = self._physics.jacobian(self._body, self._point.contiguous(), self._jac)
        return torch.cat((blocks[0], blocks[1]), dim=1)[:, :, self._dofs]

    def apply(self, twist: Tensor, dt_s: float) -> None:
        """Move the joint targets by one control step.

        Args:
            twist: Tool twist in the world frame, ``(N, 6)``: m/s, then rad/s.
            dt_s: Length of the step [s].
        """
        g = self._gains
        q = self._physics.qpos[:, self._qpos]
        J = self.jacobian()
        # Only with more than six joints is there spare motion; what it does to the tool is taken back below.
        drift = g.nullspace_hz * (self._home - self.target) if self.target.shape[1] > 6 else None
        rate = self._solve(J, twist, drift)
        stuck = ((self.target >= self._high) & (rate > 0.0)) | ((self.target <= self._low) & (rate < 0.0))
        if bool(stuck.any()):  # the other joints take over what a joint at its limit cannot do
            rate = self._solve(J.masked_fill(stuck[:, None], 0.0), twist, drift).masked_fill(stuck, 0.0)

        # A joint that is too fast slows the whole tool: the path is kept, its speed is not.
        excess = (rate.abs() / self._speed).amax(1, keepdim=True).clamp_(min=1.0)
        free = self.target + rate * (dt_s / excess)
        held = free.maximum(q - g.windup_rad).minimum(q + g.windup_rad).maximum(self._low).minimum(self._high)
        self.saturated = stuck | (held != free) | (excess > 1.0)
        self.target.copy_(held)
        self._physics.ctrl[:, self._ctrl] = held

    def _solve(self, J: Tensor, twist: Tensor, drift: Tensor | None) -> Tensor:
        """Joint rates [rad/s] ``(N, dof)`` for a twist ``(N, 6)`` and a wish for the spare motion."""
        g = self._gains
        Jt = J.transpose(1, 2)
        gram = J @ Jt
        # √det(J Jᵀ), the manipulability, comes out of the factorisation that solves the system.
        factor = torch.linalg.cholesky_ex(gram + g.damping * self._eye)[0]
        measure = factor.diagonal(dim1=1, dim2=2).prod(1)
        short = (1.0 - measure / (g.manipulability * self._manipulability_home)).clamp_(min=0.0)
        if bool((short > 0.0).any()):
            damping = g.damping + g.singular_damping * short.square()
            factor = torch.linalg.cholesky_ex(gram + damping[:, None, None] * self._eye)[0]
        wanted = twist.to(torch.float64)[:, :, None]
        if drift is None:
            return (Jt @ torch.cholesky_solve(wanted, factor)).squeeze(2)
        wanted = wanted - J @ drift[:, :, None]
        return (Jt @ torch.cholesky_solve(wanted, factor)).squeeze(2) + drift


def _columns(indices: list[int]) -> slice | Tensor:
    """A slice where the indices follow each other, which is a view and costs nothing."""
    first, count = indices[0], len(indices)
    if indices == list(range(first, first + count)):
        return slice(first, first + count)
    return torch.tensor(indices)


def _manipulability_at(
    model: mujoco.MjModel, qpos: list[int], dofs: list[int], home: tuple[float, ...], site: int, body: int
) -> float:
    data = mujoco.MjData(model)
    data.qpos[qpos] = home
    mujoco.mj_forward(model, data)
    jac = torch.zeros(6, model.nv, dtype=torch.float64)
    mujoco.mj_jac(model, data, jac[:3].numpy(), jac[3:].numpy(), data.site_xpos[site], body)
    J = jac[:, dofs]
    return float(torch.linalg.det(J @ J.T).clamp(min=1e-12).sqrt())
