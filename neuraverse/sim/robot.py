"""An embodiment: the kinematics, limits and servos of one serial arm, as a mesh-free MuJoCo model.

`Robot.load("panda")` gives a built-in arm and `Robot.from_mjcf(path, tool=...)` any other. Either way it is
the same small thing: an XML text of bodies, joints, inertials and one site at the mounting flange (z points
out of it), and the figures that MJCF does not hold. `Robot.spec()` turns it into a MuJoCo spec with position
servos whose gains follow the arm's own inertia, so that one bandwidth means the same on every arm.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neuraverse.errors import ConfigError, ModelError, UnknownNameError
from neuraverse.interface import Offer, Signal

Array = npt.NDArray[np.float64]

TIMESTEP_S = 0.005
TOOL_COM_M = 0.1  # the nominal tool is a point mass this far out of the flange
BUILTIN = (
    "neuraverse_envs.robots"  # imported by name when a robot is looked up: sim never imports envs by itself
)
_robots: dict[str, Path] = {}  # name -> its robot.toml


@dataclass(frozen=True, kw_only=True)
class Robot:
    """One serial arm with its servos.

    Attributes:
        name: Name that people and manifests use.
        mjcf: XML text of the bare arm: bodies, joints (with range), inertials, pictures, and the flange site.
        joints: Joint names of the chain, base to flange; hinges or slides, at least six.
        flange: Site at the mounting flange; z points out of it.
        home: Joint positions with the flange z pointing down in front of the base [rad, or m for slides].
        position_limits: (low, high) of each joint [rad | m].
        velocity_limits: Greatest speed of each joint [rad/s | m/s].
        torque_limits: Greatest torque of each joint [N*m | N].
        reach_m: Largest distance of the flange from the axis of the first joint [m].
        servo_hz: Natural frequency of the joint servos, critically damped [Hz].
        latency_s: From a command to its effect [s].
        tool_mass_kg: Nominal mass at the flange, which the servo gains allow for [kg].
        max_rate_hz: Fastest rate of commands [Hz].
        title: Name in full, for people.
        source: Where the figures come from.

    Raises:
        ConfigError: The figures contradict each other.
    """

    name: str
    mjcf: str = dataclasses.field(repr=False)
    joints: tuple[str, ...]
    flange: str
    home: tuple[float, ...]
    position_limits: tuple[tuple[float, float], ...]
    velocity_limits: tuple[float, ...]
    torque_limits: tuple[float, ...]
    reach_m: float
    servo_hz: float = 5.0
    latency_s: float = 0.01
    tool_mass_kg: float = 1.0
    max_rate_hz: float = 1000.0
    title: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        n = len(self.joints)
        for field in ("home", "position_limits", "velocity_limits", "torque_limits"):
            if len(getattr(self, field)) != n:
                raise ConfigError(
                    f"robot {self.name}: {field} has {len(getattr(self, field))} values for {n} joints"
                )
        for field in ("servo_hz", "max_rate_hz", "reach_m"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) > 0.0):
                raise ConfigError(f"robot {self.name}: {field} = {getattr(self, field)} is not positive")
        for field in ("latency_s", "tool_mass_kg"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) >= 0.0):
                raise ConfigError(f"robot {self.name}: {field} = {getattr(self, field)} is negative")
        for field in ("velocity_limits", "torque_limits"):
            for joint, value in zip(self.joints, getattr(self, field), strict=True):
                if not value > 0.0:
                    raise ConfigError(f"robot {self.name}: {field} of {joint} is {value:g}, not positive")
        for joint, q, (low, high) in zip(self.joints, self.home, self.position_limits, strict=True):
            if not low <= q <= high:
                raise ConfigError(f"robot {self.name}: home of {joint} is {q:g}, outside {low:g} to {high:g}")

    @staticmethod
    def load(name_or_path: str | Path, tool: str | None = None) -> Robot:
        """A built-in or registered robot by name, or any arm from an MJCF file.

        Args:
            name_or_path: Such as ``"panda"`` or ``"arm.xml"``.
            tool: For a file: the body or site that carries the tool. See `from_mjcf`.

        Raises:
            UnknownNameError: No such robot; lists the near names.
            ConfigError: A robot.toml has a wrong field, or a file was given without `tool`.
            ModelError: The file is no usable arm.
        """
        name = str(name_or_path)
        if name in robot_names():
            return _load(_robots[name])
        if name.endswith((".xml", ".mjcf", ".urdf")) or "/" in name:
            return Robot.from_mjcf(name, tool=tool)
        raise UnknownNameError("robot", name, robot_names())

    @staticmethod
    def from_mjcf(
        path: str | Path,
        *,
        tool: str | None,
        name: str | None = None,
        home: Sequence[float] | None = None,
        velocity_limit: float = 2.0,
        servo_hz: float = 5.0,
        latency_s: float = 0.01,
        tool_mass_kg: float = 1.0,
        max_rate_hz: float = 500.0,
    ) -> Robot:
        """Any serial arm of six or more joints from its MJCF.

        Meshes, contacts, foreign actuators and whatever hangs off the chain are dropped; their mass stays,
        lumped into the link that carries them. The servos are tuned and a home posture is found anew, the
        same at every call.

        Args:
            path: The MJCF file. Meshes that it names may be missing if its bodies state their inertia.
            tool: Body or site that carries the tool; its z axis becomes the flange's, pointing out.
            name: Name of the robot; the file's stem by default.
            home: Joint positions with the tool pointing down; searched for by default.
            velocity_limit: Of every joint, which MJCF does not tell [rad/s | m/s].
            servo_hz: See `Robot`.
            latency_s: See `Robot`.
            tool_mass_kg: See `Robot`.
            max_rate_hz: See `Robot`.

        Raises:
            UnknownNameError: There is no such body or site; lists the near names.
            ModelError: The file is not MJCF, or holds no serial arm of at least six hinges or slides.
        """
        from neuraverse.sim.mjcf import import_arm  # here, because it needs Robot

        return import_arm(
            Path(path),
            tool=tool,
            name=name,
            home=home,
            velocity_limit=velocity_limit,
            servo_hz=servo_hz,
            latency_s=latency_s,
            tool_mass_kg=tool_mass_kg,
            max_rate_hz=max_rate_hz,
        )

    def replace(self, **changes: Any) -> Robot:
        """The same robot with some figures changed."""
        return dataclasses.replace(self, **changes)

    @property
    def dof(self) -> int:
        """Number of joints."""
        return len(self.joints)

    @functools.cached_property
    def inertia_diag(self) -> Array:
        """Diagonal of the joint-space inertia at home with the nominal tool, shape (dof,) [kg*m^2 | kg]."""
        spec = _parse(self.mjcf, self.name)
        flange = spec.site(self.flange)
        if self.tool_mass_kg > 0.0:
            z = np.zeros(3)
            mujoco.mju_rotVecQuat(z, np.array([0.0, 0.0, 1.0]), flange.quat)
            tool = flange.parent.add_body(pos=flange.pos + TOOL_COM_M * z)
            tool.mass, tool.inertia, tool.explicitinertial = self.tool_mass_kg, [1e-6] * 3, True
        model, data = _compiled(spec, self)
        mujoco.mj_crb(model, data)
        mass = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, mass)
        return mass.diagonal().copy()

    def servo_gains(self, servo_hz: float | None = None) -> tuple[Array, Array]:
        """Gains (kp, kv) of this arm's servos, each of shape (dof,). See the function `servo_gains`."""
        return servo_gains(self.inertia_diag, servo_hz or self.servo_hz)

    def spec(self) -> mujoco.MjSpec:
        """A fresh spec of the arm with one position servo per joint, named as the joint.

        Gravity is compensated, nothing collides, and the step is 5 ms with the implicitfast integrator.
        Tools and scenes are added to it: ``spec.site(robot.flange)`` is where the tool goes.
        """
        spec = _parse(self.mjcf, self.name)
        spec.modelname = self.name
        spec.option.timestep = TIMESTEP_S
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        _add_studio(spec)
        kp, kv = self.servo_gains()
        for i, joint in enumerate(self.joints):
            servo = spec.add_actuator(
                name=joint,
                target=joint,
                trntype=mujoco.mjtTrn.mjTRN_JOINT,
                ctrllimited=True,
                ctrlrange=self.position_limits[i],
                forcelimited=True,
                forcerange=(-self.torque_limits[i], self.torque_limits[i]),
            )
            servo.set_to_position(kp=kp[i], kv=kv[i])
        return spec

    @functools.cached_property
    def tool_speed(self) -> tuple[float, float]:
        """Speed [m/s] and rotation [rad/s] that the flange reaches at home in every direction."""
        model, data = _compiled(_parse(self.mjcf, self.name), self)
        J = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, data, J[:3], J[3:], model.site(self.flange).id)
        directions = np.random.default_rng(0).normal(size=(512, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        inverse = np.linalg.pinv(J)
        speeds = []
        for part in (inverse[:, :3], inverse[:, 3:]):
            used = np.abs(directions @ part.T) / np.array(
                self.velocity_limits
            )  # share of each joint's speed per unit of tool's
            speeds.append(float(1.0 / used.max(axis=1).max()))
        return speeds[0], speeds[1]

    def offer(self, observation: tuple[Signal, ...] = (), action: tuple[Signal, ...] = ()) -> Offer:
        """What this robot supplies in a cell that measures `observation` and accepts `action`."""
        linear, angular = self.tool_speed
        return Offer(
            robot=self.name,
            max_rate_hz=self.max_rate_hz,
            reach_m=self.reach_m,
            linear_speed_m_s=linear,
            angular_speed_rad_s=angular,
            observation=observation,
            action=action,
        )

    def body(self) -> dict[str, str | int | float]:
        """The figures of a manifest's body."""
        return {
            "robot": self.name,
            "dof": self.dof,
            "servo_hz": self.servo_hz,
            "latency_s": self.latency_s,
            "tool_mass_kg": self.tool_mass_kg,
        }


def servo_gains(inertia_diag: Any, servo_hz: Any) -> tuple[Any, Any]:
    """Gains of critically damped position servos, kp = M_ii w^2 and kv = 2 M_ii w with w = 2 pi servo_hz.

    Args:
        inertia_diag: Diagonal of the joint-space inertia, shape (..., nv) [kg*m^2 | kg]; NumPy or torch.
        servo_hz: Natural frequency, a number or shape (..., 1) [Hz].

    Returns:
        kp and kv, each of shape (..., nv).
    """
    w = 2.0 * math.pi * servo_hz
    return inertia_diag * w**2, inertia_diag * (2.0 * w)


def register_robots(folder: Path) -> None:
    """Make the robots of a folder known to `Robot.load`: each subfolder with a robot.toml, by its name.

    Raises:
        ConfigError: A name is taken by a robot of another folder.
    """
    for path in sorted(folder.glob("*/robot.toml")):
        name = path.parent.name
        if _robots.setdefault(name, path) != path:
            raise ConfigError(f"robot {name} is registered twice: {_robots[name]} and {path}")


def robot_names() -> list[str]:
    """Names of all built-in and registered robots, sorted."""
    importlib.import_module(BUILTIN)
    return sorted(_robots)


class _File(BaseModel):
    """robot.toml: an arm of its own (mjcf and its figures), or changes to another (base)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    title: str = ""
    source: str = ""
    base: str | None = None
    mjcf: str | None = None
    flange: str | None = None
    home: tuple[float, ...] | None = None
    velocity_limits: tuple[float, ...] | None = None
    reach_m: float | None = Field(default=None, gt=0.0)
    servo_hz: float | None = Field(default=None, gt=0.0, le=50.0)
    latency_s: float | None = Field(default=None, ge=0.0, le=2.0)
    tool_mass_kg: float | None = Field(default=None, ge=0.0, le=100.0)
    max_rate_hz: float | None = Field(default=None, gt=0.0, le=10_000.0)


def _load(path: Path, above: tuple[Path, ...] = ()) -> Robot:
    """The robot of a robot.toml; `above` are the files whose base it is."""
    name = path.parent.name
    try:
        file = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    given = file.model_dump(exclude_unset=True, exclude={"base", "mjcf"})
    if file.base is not None:
        if file.mjcf is not None:
            raise ConfigError(f"{path}: base and mjcf exclude each other")
        if file.base not in robot_names():
            raise UnknownNameError(f"robot (base in {path})", file.base, robot_names())
        base = _robots[file.base]
        if base in (path, *above):
            raise ConfigError(f"{path}: base = {file.base!r} leads back to itself")
        return _load(base, (path, *above)).replace(name=name, **given)
    missing = [
        f for f in ("mjcf", "flange", "home", "velocity_limits", "reach_m") if getattr(file, f) is None
    ]
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is missing")
    try:
        text = (path.parent / str(file.mjcf)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: mjcf: {file.mjcf} cannot be read: {error}") from None
    try:
        model = _parse(text, name).compile()
    except ValueError as error:
        raise ModelError(f"robot {name}: its MJCF does not compile: {error}") from None
    if file.flange not in [model.site(i).name for i in range(model.nsite)]:
        raise ConfigError(f"{path}: flange = {file.flange!r} is no site in {file.mjcf}")
    return Robot(
        name=name,
        mjcf=text,
        joints=tuple(model.joint(i).name for i in range(model.njnt)),
        position_limits=tuple((float(low), float(high)) for low, high in model.jnt_range),
        torque_limits=tuple(float(high) for high in model.jnt_actfrcrange[:, 1]),
        **given,
    )


def _parse(text: str, name: str) -> mujoco.MjSpec:
    try:
        return mujoco.MjSpec.from_string(text)
    except ValueError as error:
        raise ModelError(f"robot {name}: its MJCF cannot be read: {error}") from None


def _add_studio(spec: mujoco.MjSpec) -> None:
    """A sky, a floor and a light, for pictures only."""
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.4, 0.4, 0.4]
    spec.visual.map.znear = 0.01
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.83, 0.9],
        rgb2=[0.96, 0.97, 0.98],
        width=32,
        height=192,
    )
    spec.worldbody.add_light(pos=[0.6, -0.8, 2.0], dir=[-0.2, 0.35, -1.0], diffuse=[0.5, 0.5, 0.5])
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[1.5, 1.5, 0.1],
        contype=0,
        conaffinity=0,
        rgba=[0.82, 0.84, 0.86, 1.0],
    )


def _compiled(spec: mujoco.MjSpec, robot: Robot) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Model, and data at home with positions computed."""
    model = spec.compile()
    data = mujoco.MjData(model)
    for joint, q in zip(robot.joints, robot.home, strict=True):
        data.qpos[model.joint(joint).qposadr[0]] = q
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return model, data
