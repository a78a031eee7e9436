"""`check_robot`: is an arm fit to run task-space skills? Drives it and reports what it did.

The arm has the servo, the latency and the tool mass that it has in tasks.

Two drives, both through the `CartesianAdapter` that skills go through: random tool twists about the home
posture, and a straight path at welding speed, followed as a skill would, with feed-forward and proportional
feedback.
"""

from __future__ import annotations

import dataclasses
import math

import mujoco
import torch

from neuraverse.sim.adapter import CartesianAdapter
from neuraverse.sim.physics import Physics
from neuraverse.sim.robot import Robot

RATE_HZ = 20.0
SUBSTEPS = 10
PATH_M, PATH_SPEED_M_S, PATH_GAIN_1_S = 0.3, 0.02, 2.0
PATH_BAR_MM = 2.0
TWIST_M_S, TWIST_RAD_S, TWIST_HOLD = 0.05, 0.3, 20  # steps that a random twist is held for
TOOL_LENGTH_M = 0.25
NOMINAL_TOOL_KG = 1.0  # what gravity compensation is told, as in `neuraverse.sim.arm`
LIMIT_RAD = 0.03  # the adapter holds its targets 0.02 rad short of a joint's end


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobotReport:
    """What the drives showed.

    Attributes:
        robot: Name of the arm.
        path_rms_mm: Distance of tool and moving reference on the straight path, root mean square [mm].
        path_max_mm: The greatest such distance [mm].
        twist_error: RMS of measured minus commanded twist over RMS of commanded, once settled.
        saturation: Share of joint steps at a limit of speed, range or windup, under random twists.
        limit_hits: Share of joint steps within `LIMIT_RAD` of the end of a joint's range.
        finite: Whether all numbers stayed finite.
        passed: Finite, and the path tracked within `PATH_BAR_MM`.
    """

    robot: str
    path_rms_mm: float
    path_max_mm: float
    twist_error: float
    saturation: float
    limit_hits: float
    finite: bool
    passed: bool


class _DelayLine:
    """Twists that arrive `steps` control steps late, a fraction of a step as a mix of two."""

    def __init__(self, num_envs: int, steps: float) -> None:
        self._whole, self._share = int(steps), steps - int(steps)
        self._queue = [torch.zeros(num_envs, 6, dtype=torch.float64) for _ in range(self._whole + 2)]

    def push(self, twist: torch.Tensor) -> torch.Tensor:
        """Put in the newest twist ``(N, 6)``; the one that arrives now."""
        self._queue = [twist, *self._queue[:-1]]
        now, before = self._queue[self._whole], self._queue[self._whole + 1]
        return (1.0 - self._share) * now + self._share * before


class _Drive:
    """An arm with a plain rod for a tool, held at home."""

    def __init__(self, robot: Robot, num_envs: int) -> None:
        spec = robot.spec()
        tool = mujoco.MjSpec()
        body = tool.worldbody.add_body(name="tool")
        body.mass, body.ipos = robot.tool_mass_kg, (0.0, 0.0, TOOL_LENGTH_M / 2.0)
        body.inertia = (robot.tool_mass_kg * TOOL_LENGTH_M**2 / 12.0,) * 2 + (1e-3 * robot.tool_mass_kg,)
        body.explicitinertial = True
        body.gravcomp = NOMINAL_TOOL_KG / robot.tool_mass_kg
        body.add_site(name="tool_tip", pos=(0.0, 0.0, TOOL_LENGTH_M))
        spec.site(robot.flange).attach_body(body, "", "")
        model = spec.compile()
        model.opt.timestep = 1.0 / (RATE_HZ * SUBSTEPS)
        self.robot, self.num_envs = robot, num_envs
        self.physics = Physics(model, num_envs)
        self.tip, self.rotation = self.physics.site_pose("tool_tip")
        self.joints = [int(model.joint(j).qposadr[0]) for j in robot.joints]
        self.adapter = CartesianAdapter(self.physics, robot, "tool_tip")
        ids = torch.arange(num_envs)
        self.physics.reset(ids)
        self.physics.qpos[:, self.joints] = torch.tensor(robot.home, dtype=torch.float64)
        self.physics.forward()
        gains = torch.from_numpy(model.actuator_gainprm[:, 0].copy())
        gains = gains[[int(model.actuator(j).id) for j in robot.joints]]
        self.adapter.reset(ids, gains.expand(num_envs, -1))
        self._delay = _DelayLine(num_envs, robot.latency_s * RATE_HZ)

    def step(self, twist: torch.Tensor) -> torch.Tensor:
        """Command a world twist ``(N, 6)`` for one step; the mean twist measured over it ``(N, 6)``."""
        before, turned = self.tip.clone(), self.rotation.clone()
        self.adapter.apply(self._delay.push(twist), 1.0 / RATE_HZ)
        self.physics.step(SUBSTEPS)
        spin = self.rotation @ turned.transpose(1, 2)
        angular = 0.5 * torch.stack(
            (spin[:, 2, 1] - spin[:, 1, 2], spin[:, 0, 2] - spin[:, 2, 0], spin[:, 1, 0] - spin[:, 0, 1]),
            dim=1,
        )
        return torch.cat((self.tip - before, angular), dim=1) * RATE_HZ


def check_robot(robot: Robot, *, arms: int = 32, twists: int = 12, seed: int = 0) -> RobotReport:
    """Drive `robot` through random twists and along a straight path.

    Args:
        robot: The arm.
        arms: Copies of it driven at once by different twists.
        twists: Random twists for each, held for a second each.
        seed: Of the twists.
    """
    error, saturation, limit_hits, finite = _random_twists(robot, arms, twists, seed)
    distances = _straight_path(robot)
    rms = float(distances.square().mean().sqrt()) * 1e3
    finite = finite and math.isfinite(rms)
    return RobotReport(
        robot=robot.name,
        path_rms_mm=rms,
        path_max_mm=float(distances.max()) * 1e3,
        twist_error=error,
        saturation=saturation,
        limit_hits=limit_hits,
        finite=finite,
        passed=finite and rms <= PATH_BAR_MM,
    )


def _random_twists(robot: Robot, arms: int, twists: int, seed: int) -> tuple[float, float, float, bool]:
    drive = _Drive(robot, arms)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([TWIST_M_S] * 3 + [TWIST_RAD_S] * 3, dtype=torch.float64)
    limits = torch.tensor(robot.position_limits, dtype=torch.float64)
    missed = commanded = saturated = hits = torch.zeros((), dtype=torch.float64)
    steps, finite = 0, True
    for i in range(twists):
        if i % 2 == 0:
            twist = scale * (2.0 * torch.rand(arms, 6, generator=generator, dtype=torch.float64) - 1.0)
        else:
            twist = -twist  # and back, so that the arm stays about home
        for k in range(TWIST_HOLD):
            measured = drive.step(twist)
            q = drive.physics.qpos[:, drive.joints]
            finite = finite and bool(torch.isfinite(measured).all())
            saturated = saturated + drive.adapter.saturated.double().mean()
            hits = hits + ((q - limits[:, 0] < LIMIT_RAD) | (limits[:, 1] - q < LIMIT_RAD)).double().mean()
            steps += 1
            if k >= TWIST_HOLD // 2:
                missed = missed + ((measured - twist) / scale).square().mean()
                commanded = commanded + (twist / scale).square().mean()
    return float((missed / commanded).sqrt()), float(saturated / steps), float(hits / steps), finite


def _straight_path(robot: Robot) -> torch.Tensor:
    """Distances [m] of tool and reference along a path across the arm, at each control step."""
    drive = _Drive(robot, 1)
    centre = drive.tip.clone()
    forward = centre[0, :2] / centre[0, :2].norm().clamp(min=1e-9)
    direction = torch.tensor([[-forward[1], forward[0], 0.0]], dtype=torch.float64)
    steps = round(PATH_M / PATH_SPEED_M_S * RATE_HZ)
    upright = drive.rotation.clone()
    reference = centre.clone()
    distances = []
    # To one end first, unscored, at a gentle pace; then the path itself.
    for speed, count, scored in (
        (-PATH_SPEED_M_S * 2, steps // 4, False),
        (0.0, 20, False),
        (PATH_SPEED_M_S, steps, True),
    ):
        for _ in range(count):
            feed = speed * direction
            reference = reference + feed / RATE_HZ
            tilt = 0.5 * torch.linalg.cross(drive.rotation, upright, dim=1).sum(2)
            twist = torch.cat((feed + PATH_GAIN_1_S * (reference - drive.tip), PATH_GAIN_1_S * tilt), dim=1)
            drive.step(twist)
            if scored:
                distances.append((drive.tip - reference).norm())
    return torch.stack(distances)
