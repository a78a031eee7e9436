"""Weld a seam: lead the torch along it at the right place, distance, angles and speed, on the first pass.

The seam is a circular arc (or a straight line) in the xy plane of W, of 60 to 120 mm. It starts at the origin
of W along x; the robot comes in along its backward extension, from a start that is off in position and angle,
so that the torch is at speed when the seam begins. The seam is scored as the arc first passes: an element of
its length counts when *all five* quantities are in tolerance there. At each point of the seam:

    t, n, b        tangent, normal of the base plate (z of W), and b = n × t, the side of the torch
    z              torch axis, from contact tip to seam
    c              the seam point under the arc, arc length s from the start
    lateral        (c − tip) along t × z: how far the wire misses the seam               ±1.0 mm
    distance       (c − tip) along z: contact tip to work                                15 ± 2 mm
    work angle     of −z about t, from n toward b                                        45 ± 5°
    travel angle   of z against the plane across the seam, positive when pushing         10 ± 5°
    speed          ds/dt over one control period, against the ordered one                ±25 %

Sources of the figures: travel angle 5 to 15°, unstable past 20° (Xcel-Arc Viper manual); work angle 45° for a
fillet (BOC Smootharc 250C manual). The other thresholds are this project's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuraverse.interface import Requirements, Signal
from neuraverse.sim.arm import ArmTask, twist_signal
from neuraverse.sim.rotations import align, rotation_about, third_axis
from neuraverse.sim.task import Outcome

LATERAL_M = 1.0e-3
DISTANCE_M, DISTANCE_TOLERANCE_M = 15e-3, 2e-3
WORK_RAD, TRAVEL_RAD, ANGLE_TOLERANCE_RAD = math.radians(45.0), math.radians(10.0), math.radians(5.0)
SPEED_TOLERANCE = 0.25
COVERAGE = 0.95

LENGTH_M = (0.06, 0.12)
CURVATURE_1_M = (-4.0, 4.0)  # radius of 0.25 m and more
STRAIGHT_SHARE = 0.25
SPEED_M_S = (0.015, 0.025)
LEAD_IN_M = (0.010, 0.015)
START_OFFSET_M = 0.004
START_ANGLE_RAD = math.radians(6.0)
SPIN_RAD = math.radians(30.0)
LOOK_AHEAD_S = 0.25
STRAY_M, STRAY_RAD = 0.02, math.radians(35.0)


class WeldSeam(ArmTask):
    """Weld a straight or curved seam; see the module for its geometry and tolerances.

    Args:
        kwargs: As for `ArmTask`: ``robot``, ``tool``, ``randomise``.

    Attributes:
        tolerances: Of lateral and distance [m], work and travel angle [rad], and speed (as a share).
    """

    scene_file = Path(__file__).parent / "scene.xml"
    tolerances = (LATERAL_M, DISTANCE_TOLERANCE_M, ANGLE_TOLERANCE_RAD, ANGLE_TOLERANCE_RAD, SPEED_TOLERANCE)
    rate_hz = 20.0
    substeps = 10
    max_steps = 240
    success = (
        "at least 95 % of the seam's length in tolerance on the first pass: lateral ±1.0 mm, "
        "contact-tip distance 15 ± 2 mm, work angle 45 ± 5°, travel angle 10 ± 5°, speed within ±25 %"
    )
    requires = Requirements(reach_m=0.6, linear_speed_m_s=0.05, angular_speed_rad_s=0.4)
    observation = (
        Signal(name="e_pos", shape=(3,), unit="m", frame="W", description="tool tip to where it should be"),
        Signal(
            name="e_rot",
            shape=(3,),
            unit="rad",
            frame="W",
            description="rotation of the torch axis still to do",
        ),
        twist_signal("twist", description="measured tool twist"),
        Signal(
            name="feed", shape=(3,), unit="m/s", frame="W", description="ordered speed along the seam, here"
        ),
        Signal(
            name="feed_ahead",
            shape=(3,),
            unit="m/s",
            frame="W",
            description="the same, where the arc is in 0.25 s",
        ),
        twist_signal("prev_action", description="the last commanded twist"),
    )
    action = (twist_signal("twist", 0.05, 0.4, "tool twist to command"),)

    def setup(self) -> None:
        """Make the buffers of the seam and of the pass along it."""
        super().setup()
        self._tolerances = torch.tensor(self.tolerances)
        self.length = self.buffer("length")
        self.curvature = self.buffer("curvature")
        self.speed = self.buffer("speed")
        self.s = self.buffer("s")  # arc length under the arc; negative on the way in
        self.s_max = self.buffer("s_max")
        self.good = self.buffer("good")  # length welded in tolerance
        self.last_command = self.buffer("last_command", 6)
        self.noise = self.buffer("noise", 6)
        self.squares = self.buffer("squares", 5)  # sums of squares of the five errors over the seam
        self.samples = self.buffer("samples")

    def reset(self, ids: Tensor) -> None:
        """Draw a seam, a start beside its lead-in, and place the workpiece under the torch accordingly."""
        super().reset(ids)
        n = len(ids)
        u = self.random.uniform(12, ids)
        draw = _between(u[:, 0], LENGTH_M)
        self.length[ids] = draw.to(torch.float32)
        straight = u[:, 1] < STRAIGHT_SHARE
        self.curvature[ids] = torch.where(straight, 0.0, _between(u[:, 2], CURVATURE_1_M)).to(torch.float32)
        self.speed[ids] = _between(u[:, 3], SPEED_M_S).to(torch.float32)
        start = -_between(u[:, 4], LEAD_IN_M)
        self.s[ids] = start.to(torch.float32)
        self.s_max[ids] = self.s[ids]
        for buffer in (self.good, self.last_command, self.squares, self.samples):
            buffer[ids] = 0.0
        self.noise[ids] = self.random.normal(6, ids).to(torch.float32)

        tangent, point = _seam(self.curvature[ids].double(), start)
        z = _torch_axis(tangent)
        x = tangent - (tangent * z).sum(1, keepdim=True) * z
        x = x / x.norm(dim=1, keepdim=True)
        R = torch.stack((x, torch.linalg.cross(z, x), z), dim=2)
        v = 2.0 * u[:, 5:] - 1.0
        tilt_axis = torch.nn.functional.normalize(v[:, :3] + 1e-9, dim=1)
        R = rotation_about(tilt_axis, START_ANGLE_RAD * v[:, 3]) @ rotation_about(z, SPIN_RAD * v[:, 4]) @ R
        offset = START_OFFSET_M * torch.stack((torch.zeros(n, dtype=v.dtype), v[:, 5], v[:, 6]), dim=1)
        self.place_workpiece(ids, point - DISTANCE_M * z + offset, R)

    def outcome(self) -> Outcome:
        """Score the stretch of seam that the arc passed in this step."""
        tip, axis = self.tool_pos, third_axis(self.tool_quat)
        # The arc is where the wire's line meets the seam's cross-section: one Newton step on the arc length
        # per control period, exact on a straight seam and within (Δs κ)² elsewhere.
        tangent, point = _seam(self.curvature, self.s)
        step = ((tip + DISTANCE_M * axis - point) * tangent).sum(1)
        self.s += step
        tangent, point = _seam(self.curvature, self.s)
        to_seam = point - tip
        across = torch.nn.functional.normalize(torch.linalg.cross(tangent, axis), dim=1)
        lateral = (to_seam * across).sum(1)
        distance = (to_seam * axis).sum(1) - DISTANCE_M
        work = torch.atan2(-(axis * _side(tangent)).sum(1), -axis[:, 2]) - WORK_RAD
        travel = torch.asin((axis * tangent).sum(1).clamp(-1.0, 1.0)) - TRAVEL_RAD
        speed = step * self.rate_hz / self.speed - 1.0
        errors = torch.stack((lateral, distance, work, travel, speed), dim=1)
        share = errors.abs() / self._tolerances
        in_tolerance = (share <= 1.0).all(1)

        before = self.s_max.clone()
        torch.maximum(self.s_max, self.s, out=self.s_max)
        welded = self.s_max.minimum(self.length).clamp(min=0.0) - before.minimum(self.length).clamp(min=0.0)
        self.good += welded * in_tolerance
        on_seam = welded > 0.0
        self.squares += errors.square() * on_seam[:, None]
        self.samples += on_seam
        finished = self.s_max >= self.length
        coverage = self.good / self.length
        success = finished & (coverage >= COVERAGE)
        strayed = (errors.abs() > _STRAY).any(1) & ~finished

        # Progress is paid by how well it is made; standing still earns nothing, finishing well pays at once.
        quality = (1.0 / (1.0 + share.square())).prod(1)
        pace = (self.s_max - before) * self.rate_hz / self.speed
        change = (self.command - self.last_command) / _ACTION_SCALE
        self.last_command.copy_(self.command)
        # Root mean squares over the seam; of an episode that never reached it, the errors where it stands.
        squares = torch.where(self.samples[:, None] > 0.0, self.squares, errors.square())
        rms = (squares / self.samples.clamp(min=1.0)[:, None]).sqrt()
        self.noise.copy_(self.random.normal(6))
        return Outcome(
            reward={
                "progress": pace.clamp(0.0, 1.25) * quality,
                "in_tolerance": 0.5 * pace.clamp(0.0, 1.25) * in_tolerance,
                "off_path": -0.05 * share[:, :4].clamp(max=10.0).sum(1),
                "smoothness": -0.05 * change.square().sum(1),
                "success": 10.0 * success,
                "strayed": -10.0 * strayed,
            },
            terminated=finished | strayed,
            info={
                "success": success,
                "coverage": coverage,
                "lateral_mm": rms[:, 0] * 1e3,
                "distance_mm": rms[:, 1] * 1e3,
                "work_deg": rms[:, 2].rad2deg(),
                "travel_deg": rms[:, 3].rad2deg(),
                "speed_mm_s": rms[:, 4] * self.speed * 1e3,
            },
        )

    def observe(self, out: Mapping[str, Tensor]) -> None:
        """Write the signals; e_pos and e_rot carry the sensor's noise."""
        e_pos, e_rot, feed, ahead = self._reference()
        torch.add(e_pos, self.noise[:, :3] * self.noise_pos[:, None], out=out["e_pos"])
        torch.add(e_rot, self.noise[:, 3:] * self.noise_rot[:, None], out=out["e_rot"])
        out["twist"][:, :3] = self.tool_linvel
        out["twist"][:, 3:] = self.tool_angvel
        out["feed"].copy_(feed)
        out["feed_ahead"].copy_(ahead)
        out["prev_action"].copy_(self.command)

    def expert(self) -> Tensor:
        """Feed forward along the seam, with feedback as stiff as servo and latency allow."""
        e_pos, e_rot, feed, ahead = self._reference()
        # A critically damped servo of bandwidth f lags a ramp by 2 / (2πf).
        lag_s = 1.0 / (math.pi * self.robot.servo_hz) + self.robot.latency_s + 1.0 / self.rate_hz
        gain, damping = min(6.0, 2.6 / lag_s), 5.0 * lag_s
        turn = torch.zeros_like(e_rot)
        turn[:, 2] = self.curvature * self.speed
        wanted = torch.cat((feed + (ahead - feed) * (lag_s / LOOK_AHEAD_S), turn), dim=1)
        measured = torch.cat((self.tool_linvel, self.tool_angvel), dim=1)
        return wanted + gain * torch.cat((e_pos, 0.4 * e_rot), dim=1) + damping * (wanted - measured)

    def _reference(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tangent, point = _seam(self.curvature, self.s)
        wanted = _torch_axis(tangent)
        e_pos = point - DISTANCE_M * wanted - self.tool_pos
        e_rot = align(third_axis(self.tool_quat), wanted)
        later = _tangent(self.curvature * (self.s + LOOK_AHEAD_S * self.speed))
        return e_pos, e_rot, self.speed[:, None] * tangent, self.speed[:, None] * later


_STRAY = torch.tensor([STRAY_M, STRAY_M, STRAY_RAD, STRAY_RAD, math.inf])
_ACTION_SCALE = torch.tensor(WeldSeam.action[0].high)


def _between(u: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u


def _seam(curvature: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Tangent and point of the seam at arc length `s` [m], each ``(N, 3)`` in W.

    The chord of an arc from its start is ``s sinc(κs/2π)`` long at half the heading, for κ = 0 too.
    """
    heading = curvature * s
    half = 0.5 * heading
    chord = s * torch.sinc(half / math.pi)
    return _tangent(heading), chord[:, None] * _tangent(half)


def _tangent(heading: Tensor) -> Tensor:
    """The direction ``(N, 3)`` at an angle [rad] from x in the xy plane of W."""
    return torch.stack((heading.cos(), heading.sin(), torch.zeros_like(heading)), dim=1)


def _side(tangent: Tensor) -> Tensor:
    """The side ``b = n × t``, ``(N, 3)``."""
    x, y, zero = tangent.unbind(1)
    return torch.stack((-y, x, zero), dim=1)


def _torch_axis(tangent: Tensor) -> Tensor:
    """The wanted torch axis ``(N, 3)``: pushed by the travel angle, at the work angle over the base plate."""
    across = -math.sin(WORK_RAD) * _side(tangent)
    across[:, 2] -= math.cos(WORK_RAD)
    return math.sin(TRAVEL_RAD) * tangent + math.cos(TRAVEL_RAD) * across


__all__: list[Any] = ["WeldSeam"]
