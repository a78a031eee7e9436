"""`ArmTask`: tasks in which an arm moves a tool over a workpiece by tool twists in the workpiece frame W.

It brings what such tasks share: the scene (any `Robot`, the task's tool at its flange, the workpiece as a
mocap body), tool pose and twist in W from named sensors, the `CartesianAdapter`, the latency between command
and servo, and the spread of bodies: servo bandwidth, latency, tool mass and sensor noise, drawn anew for
every episode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import mujoco
import torch
from torch import Tensor

from neuraverse.errors import ConfigError, UnknownNameError
from neuraverse.interface import Signal
from neuraverse.sim.adapter import CartesianAdapter
from neuraverse.sim.robot import Robot
from neuraverse.sim.rotations import matrix_to_quaternion
from neuraverse.sim.task import Task

TWIST_UNIT = "m/s,m/s,m/s,rad/s,rad/s,rad/s"
# What may be spread, and the bounds within which a spread makes sense.
SPREADS = {
    "servo_hz": (0.2, 20.0),
    "latency_s": (0.0, 0.5),
    "tool_mass_kg": (0.05, 20.0),
    "noise_pos_m": (0.0, 0.05),
    "noise_rot_rad": (0.0, 0.5),
    "posture_rad": (0.0, 0.5),
}
_OF_ALL_CELLS = {"noise_pos_m": 1e-4, "noise_rot_rad": 2e-3, "posture_rad": 0.1}


def twist_signal(
    name: str, linear_m_s: float = 0.0, angular_rad_s: float = 0.0, description: str = ""
) -> Signal:
    """A tool twist in W, ``(6,)``: linear then angular; bounded by the two magnitudes if there are any."""
    high = (linear_m_s,) * 3 + (angular_rad_s,) * 3 if linear_m_s else ()
    low = tuple(-h for h in high)
    return Signal(
        name=name, shape=(6,), unit=TWIST_UNIT, frame="W", low=low, high=high, description=description
    )


class ArmTask(Task):
    """An arm, a tool and a workpiece.

    Args:
        robot: A built-in name, a path to an MJCF, or a `Robot`.
        tool: Body or site of the flange, when `robot` is a path.
        randomise: Ranges ``{name: (low, high)}`` drawn from uniformly for every episode, by the names of
            `SPREADS`. What is not named stays at the robot's own figure, give or take a tenth.

    Attributes:
        ranges: The ranges in force.
        tool_pos: Tool tip in W [m], ``(N, 3)``.
        tool_quat: Tool orientation in W, w first, ``(N, 4)``.
        tool_linvel: Tool velocity in W [m/s], ``(N, 3)``.
        tool_angvel: Tool rotation in W [rad/s], ``(N, 3)``.
        command: The last commanded twist in W, ``(N, 6)``.

    Raises:
        UnknownNameError: No such robot or spread.
        ConfigError: A spread, or a figure of the robot that is not spread, is out of bounds.
    """

    scene_file: Path
    nominal_tool_mass_kg: float = 1.0  # what the arms' gravity compensation is told
    longest_latency_s: float = 0.5

    def __init__(
        self,
        robot: str | Path | Robot = "panda",
        *,
        tool: str | None = None,
        randomise: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.robot = robot if isinstance(robot, Robot) else Robot.load(robot, tool=tool)
        given = {name: _checked_range(name, value) for name, value in (randomise or {}).items()}
        self.ranges: dict[str, tuple[float, float]] = {
            name: given[name] if name in given else _usual_range(self.robot, name) for name in SPREADS
        }

    def scene(self) -> mujoco.MjModel:
        """The arm with the task's ``tool`` body at its flange and its ``workpiece`` as a mocap body."""
        spec = self.robot.spec()
        scene = mujoco.MjSpec.from_file(str(self.scene_file))
        scene.modelname = "task"
        spec.site(self.robot.flange).attach_body(scene.body("tool"), "", "")
        spec.worldbody.add_frame().attach_body(scene.body("workpiece"), "", "")
        for name, kind in (
            ("tool_pos", mujoco.mjtSensor.mjSENS_FRAMEPOS),
            ("tool_quat", mujoco.mjtSensor.mjSENS_FRAMEQUAT),
            ("tool_linvel", mujoco.mjtSensor.mjSENS_FRAMELINVEL),
            ("tool_angvel", mujoco.mjtSensor.mjSENS_FRAMEANGVEL),
        ):
            spec.add_sensor(
                name=name,
                type=kind,
                objtype=mujoco.mjtObj.mjOBJ_SITE,
                objname="tool_tip",
                reftype=mujoco.mjtObj.mjOBJ_BODY,
                refname="workpiece",
            )
        return spec.compile()

    def setup(self) -> None:
        """Bind the sensors and the adapter; make the buffers that all arm tasks need."""
        physics = self.physics
        self.tool_pos = physics.sensor("tool_pos")
        self.tool_quat = physics.sensor("tool_quat")
        self.tool_linvel = physics.sensor("tool_linvel")
        self.tool_angvel = physics.sensor("tool_angvel")
        self._tip_pos, self._tip_mat = physics.site_pose("tool_tip")
        self.adapter = CartesianAdapter(physics, self.robot, "tool_tip")
        self._buffers["adapter.target"] = self.adapter.target
        self.command = self.buffer("command", 6)
        self._rotation = self.buffer("rotation", 3, 3)  # of W in the world
        self._dt = 1.0 / self.rate_hz
        self._delay_steps = math.ceil(self.longest_latency_s * self.rate_hz) + 1
        self._queue = self.buffer("queue", self._delay_steps + 1, 6)
        self._latency = self.buffer("latency")  # in control steps
        self.noise_pos = self.buffer("noise_pos")
        self.noise_rot = self.buffer("noise_rot")
        model = physics.model
        self._joint_qpos = torch.tensor([int(model.joint(j).qposadr[0]) for j in self.robot.joints])
        self._actuators = torch.tensor([int(model.actuator(j).id) for j in self.robot.joints])
        self._tool_body = int(model.body("tool").id)
        self._home = torch.tensor(self.robot.home, dtype=torch.float64)
        self._limits = torch.tensor(self.robot.position_limits, dtype=torch.float64)
        # kp = M ω² at the model's own bandwidth, so M follows and holds for any other.
        omega = 2.0 * math.pi * self.robot.servo_hz
        kp = torch.from_numpy(model.actuator_gainprm[:, 0].copy())[self._actuators]
        self._inertia = kp / omega**2
        self._gain, self._bias = physics.expand("actuator_gainprm"), physics.expand("actuator_biasprm")
        self._mass, self._gravcomp = physics.expand("body_mass"), physics.expand("body_gravcomp")
        self._body_inertia = physics.expand("body_inertia")
        self._unit_inertia = torch.from_numpy(model.body_inertia[self._tool_body].copy())
        self._unit_inertia /= float(model.body_mass[self._tool_body])

    def reset(self, ids: Tensor) -> None:
        """Draw a body and a posture for each of `ids` and put the arm there, at rest."""
        dof = len(self.robot.joints)
        u = self.random.uniform(len(SPREADS) + dof, ids)
        draw = {name: _between(u[:, k], self.ranges[name]) for k, name in enumerate(SPREADS)}
        omega = 2.0 * math.pi * draw["servo_hz"][:, None]
        at = (ids[:, None], self._actuators[None])
        kp, kv = self._inertia * omega**2, 2.0 * self._inertia * omega
        self._gain[(*at, torch.zeros_like(at[1]))] = kp
        self._bias[(*at, torch.full_like(at[1], 1))] = -kp
        self._bias[(*at, torch.full_like(at[1], 2))] = -kv
        mass = draw["tool_mass_kg"]
        self._mass[ids, self._tool_body] = mass
        self._body_inertia[ids, self._tool_body] = mass[:, None] * self._unit_inertia
        self._gravcomp[ids, self._tool_body] = self.nominal_tool_mass_kg / mass
        self._latency[ids] = (draw["latency_s"] * self.rate_hz).to(torch.float32)
        self.noise_pos[ids] = draw["noise_pos_m"].to(torch.float32)
        self.noise_rot[ids] = draw["noise_rot_rad"].to(torch.float32)

        spread = draw["posture_rad"][:, None] * (2.0 * u[:, len(SPREADS) :] - 1.0)
        posture = (self._home + spread).maximum(self._limits[:, 0] + 0.05).minimum(self._limits[:, 1] - 0.05)
        self.physics.reset(ids)
        self.physics.qpos[ids[:, None], self._joint_qpos[None]] = posture
        self.physics.forward(ids)
        self.adapter.reset(ids, kp)
        self.command[ids] = 0.0
        self._queue[ids] = 0.0

    def place_workpiece(self, ids: Tensor, position: Tensor, rotation: Tensor) -> None:
        """Put the workpieces where their tools have a wanted pose.

        Args:
            ids: Environments.
            position: Wanted tool tip in W [m], float64 ``(len(ids), 3)``.
            rotation: Wanted tool orientation in W, float64 ``(len(ids), 3, 3)``.
        """
        R = self._tip_mat[ids] @ rotation.transpose(1, 2)
        self.physics.mocap_pos[ids, 0] = self._tip_pos[ids] - (R @ position[:, :, None]).squeeze(2)
        self.physics.mocap_quat[ids, 0] = matrix_to_quaternion(R)
        self._rotation[ids] = R.to(torch.float32)
        self.physics.forward(ids)

    def apply(self, action: Tensor) -> None:
        """Queue the commanded twist; hand the servos the one that the latency has let through by now.

        A latency between two control steps is the time-weighted mix of the two commands, which moves the
        integrated joint targets by exactly as much as switching between them within the step.
        """
        self.command.copy_(action[:, :6])
        self._queue[:, 1:] = self._queue[:, :-1].clone()
        self._queue[:, 0] = self.command
        whole = self._latency.floor()
        index = whole.to(torch.int64)
        rows = torch.arange(self.num_envs)
        share = (self._latency - whole)[:, None]
        twist = (1.0 - share) * self._queue[rows, index] + share * self._queue[rows, index + 1]
        world = (self._rotation[:, None] @ twist.reshape(-1, 2, 3, 1)).reshape(-1, 6)
        self.adapter.apply(world, self._dt)


def _between(u: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u


def _usual_range(robot: Robot, name: str) -> tuple[float, float]:
    """The robot's own figure, give or take a tenth; or what holds in all cells."""
    if name in _OF_ALL_CELLS:
        return _OF_ALL_CELLS[name], _OF_ALL_CELLS[name]
    own, (least, most) = float(getattr(robot, name)), SPREADS[name]
    if not least <= own <= most:
        raise ConfigError(
            f"robot {robot.name}: {name} = {own:g}", remedy=f"arm tasks simulate {least} to {most}"
        )
    return max(least, 0.9 * own), min(most, 1.1 * own)


def _checked_range(name: str, value: tuple[float, float]) -> tuple[float, float]:
    if name not in SPREADS:
        raise UnknownNameError("randomised quantity", name, SPREADS)
    least, most = SPREADS[name]
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        raise ConfigError(f"randomise.{name} is {value!r}", remedy="give two numbers, [low, high]") from None
    if not least <= low <= high <= most:
        raise ConfigError(
            f"randomise.{name} is [{low}, {high}]", remedy=f"low <= high, both within {least} to {most}"
        )
    return low, high
