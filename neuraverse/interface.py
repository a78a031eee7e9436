"""The contract of a skill: named, ordered signals with shape, unit, frame and limits, at a rate.

A `Signal` is one quantity. An `Interface` is what a skill reads and commands. An `Offer` is what one
robot in its cell can supply. `Interface.problems(offer)` says, before any weight is loaded, why a skill
cannot run there; an empty answer means that it can.

Frames: ``W`` workpiece or fixture, ``T`` tool tip (z = approach), ``B`` robot base, ``-`` none.
Units are SI; a signal of mixed units lists one unit per element, separated by commas, as ``twist`` does:
``m/s,m/s,m/s,rad/s,rad/s,rad/s`` (the order of ROS ``geometry_msgs/Twist``: linear, then angular).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from neuraverse.errors import ConfigError

_Number = TypeVar("_Number", int, float)

SCHEMA = "neuraverse.skill/1"
FRAMES = frozenset({"W", "T", "B", "-"})
UNITS = frozenset(
    {
        "1",
        "m",
        "rad",
        "m/s",
        "rad/s",
        "m/s^2",
        "rad/s^2",
        "N",
        "N*m",
        "s",
        "kg",
        "Hz",
        "K",
        "A",
        "V",
        "J",
        "W",
        "Pa",
    }
)
FIGURES = (
    ("control rate", "Hz"),
    ("reach", "m"),
    ("tool speed", "m/s"),
    ("tool rotation", "rad/s"),
    ("grip stroke", "m"),
)
"""What a skill needs enough of, and the unit."""
# A robot within this share of a required figure is taken to meet it: figures in data sheets are rounded.
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One named quantity.

    Attributes:
        name: Identifier, unique within its list.
        shape: Shape of one sample, without the batch axis.
        unit: One SI unit for all elements, or one per element separated by commas.
        frame: ``W``, ``T``, ``B`` or ``-``.
        low: Least value of each element, flattened in C order; empty if unbounded.
        high: Greatest value of each element; empty if unbounded.
        description: One line for people.

    Raises:
        ConfigError: A field is malformed.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    name: str
    shape: tuple[int, ...]
    unit: str
    frame: str = "-"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.isidentifier() and len(self.name) <= 64):
            raise ConfigError(f"signal name {self.name[:99]!r} is not an identifier of at most 64 characters")
        _settle(self, shape=_each(operator.index, self.shape, f"signal {self.name}: shape"))
        if len(self.shape) > 8 or any(n < 1 for n in self.shape) or self.size > 4096:
            raise ConfigError(
                f"signal {self.name}: shape {self.shape} must be positive and hold at most 4096 numbers"
            )
        if self.frame not in FRAMES:
            raise ConfigError(
                f"signal {self.name}: frame {self.frame!r} is none of {', '.join(sorted(FRAMES))}"
            )
        units = self.unit.split(",")
        unknown = [u for u in units if u not in UNITS]
        if unknown:
            raise ConfigError(
                f"signal {self.name}: unknown unit {unknown[0]!r}",
                remedy=f"use SI: {', '.join(sorted(UNITS))}",
            )
        if len(units) not in (1, self.size):
            raise ConfigError(f"signal {self.name}: {len(units)} units for {self.size} elements")
        if len(set(units)) == 1:
            _settle(self, unit=units[0])
        if not self.description.isprintable() or len(self.description) > 300:
            raise ConfigError(
                f"signal {self.name}: the description must be one line of at most 300 characters"
            )
        for limit in ("low", "high"):
            values = _each(float, getattr(self, limit), f"signal {self.name}: {limit}")
            _settle(self, **{limit: values})
            if len(values) not in (0, self.size):
                raise ConfigError(
                    f"signal {self.name}: {limit} has {len(values)} values for {self.size} elements"
                )
            if not all(math.isfinite(v) for v in values):
                raise ConfigError(f"signal {self.name}: {limit} is not finite")
        if any(lo > hi for lo, hi in zip(self.low, self.high, strict=False)):
            raise ConfigError(f"signal {self.name}: low is above high")

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return math.prod(self.shape)

    @property
    def kind(self) -> tuple[str, tuple[int, ...], str, str]:
        """What a skill and a robot must agree on: name, shape, unit, frame."""
        return self.name, self.shape, self.unit, self.frame


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What training cannot mend. Zero means "not needed".

    Raises:
        ConfigError: A figure is negative or not finite.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    reach_m: float = 0.0
    linear_speed_m_s: float = 0.0
    angular_speed_rad_s: float = 0.0
    wrench_sensor: bool = False
    grip_stroke_m: float = 0.0

    def __post_init__(self) -> None:
        for field in ("reach_m", "linear_speed_m_s", "angular_speed_rad_s", "grip_stroke_m"):
            (value,) = _each(float, (getattr(self, field),), f"requirement {field}")
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"requirement {field} is {value}; it must be finite and not negative")
            _settle(self, **{field: value})


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one robot in its cell can supply.

    Attributes:
        robot: Name of the robot.
        max_rate_hz: Fastest control rate it keeps up.
        reach_m: Largest distance of the tool tip from the base.
        linear_speed_m_s: Tool speed that it reaches in its working area.
        angular_speed_rad_s: Tool rotation that it reaches there.
        wrench_sensor: Whether a 6-axis wrench is measured at the tool.
        grip_stroke_m: Stroke of the gripper; 0 without one.
        observation: Signals that the cell measures.
        action: Signals that the robot accepts.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    robot: str
    max_rate_hz: float
    reach_m: float
    linear_speed_m_s: float
    angular_speed_rad_s: float
    wrench_sensor: bool = False
    grip_stroke_m: float = 0.0
    observation: tuple[Signal, ...] = ()
    action: tuple[Signal, ...] = ()

    @property
    def figures(self) -> tuple[float, ...]:
        """What the robot has of each of `FIGURES`."""
        return (
            *(self.max_rate_hz, self.reach_m, self.linear_speed_m_s, self.angular_speed_rad_s),
            self.grip_stroke_m,
        )

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read the JSON of an offer: the attributes by name, each signal with its own.

        Raises:
            ConfigError: It is none; the message names the field.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise ConfigError(f"this is no offer of a robot: {where}: {first['msg']}") from error

    def digest(self) -> str:
        """SHA-256 over all of it (descriptions left out), as ``sha256:<hex>``: which body it is."""
        return _digest(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Ordered observation and action signals, the control rate, and what is required of a body.

    Raises:
        ConfigError: The rate is not positive, a list is empty, or a name occurs twice.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    observation: tuple[Signal, ...]
    action: tuple[Signal, ...]
    rate_hz: float
    requires: Requirements = dataclasses.field(default_factory=Requirements)
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(
                f"interface schema {self.schema!r} is not {SCHEMA!r}", remedy="update neuraverse"
            )
        _settle(self, rate_hz=_each(float, (self.rate_hz,), "interface rate")[0])
        if not 0.0 < self.rate_hz <= 10_000.0:
            raise ConfigError(f"interface rate {self.rate_hz} Hz is not between 0 and 10000")
        for kind, signals in (("observation", self.observation), ("action", self.action)):
            _settle(self, **{kind: tuple(signals)})
            names = [s.name for s in signals]
            if not names:
                raise ConfigError(f"the interface has no {kind} signals")
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ConfigError(f"{kind} signal {twice[0]!r} occurs twice")

    @property
    def observation_size(self) -> int:
        """Elements of one flattened observation."""
        return sum(s.size for s in self.observation)

    @property
    def action_size(self) -> int:
        """Elements of one flattened action."""
        return sum(s.size for s in self.action)

    @property
    def figures(self) -> tuple[float, ...]:
        """What the skill needs of each of `FIGURES`."""
        needs = self.requires
        return (
            *(self.rate_hz, needs.reach_m, needs.linear_speed_m_s, needs.angular_speed_rad_s),
            needs.grip_stroke_m,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types, in declaration order."""
        return dataclasses.asdict(self)

    def digest(self) -> str:
        """SHA-256 over what two bodies must agree on (descriptions left out), as ``sha256:<hex>``."""
        return _digest(self.to_dict())

    def problems(self, offer: Offer) -> list[str]:
        """Why a robot that offers `offer` cannot run a skill with this interface; empty if it can."""
        found = _signal_problems("observation", self.observation, offer.observation, offer.robot)
        found += _signal_problems("action", self.action, offer.action, offer.robot)
        for (what, unit), need, has in zip(FIGURES, self.figures, offer.figures, strict=True):
            if not has >= least(need):  # a NaN is no offer
                found.append(f"{what}: the skill needs {need:g} {unit}, {offer.robot} has {has:g} {unit}")
        if self.requires.wrench_sensor and not offer.wrench_sensor:
            found.append(f"wrench sensor: the skill needs one, {offer.robot} has none")
        return found


def _digest(plain: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of an interface or an offer, without the descriptions of signals."""
    for kind in ("observation", "action"):
        for signal in plain[kind]:
            signal.pop("description")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def least(need: Any) -> Any:
    """The least figure that meets a need; a number or an array."""
    return need * (1.0 - _TOLERANCE)


def _signal_problems(kind: str, wanted: Iterable[Signal], offered: Iterable[Signal], robot: str) -> list[str]:
    by_name = {s.name: s for s in offered}
    found = []
    for want in wanted:
        have = by_name.get(want.name)
        if have is None:
            found.append(f"{kind} {want.name}: {robot} does not have it")
            continue
        for field in ("shape", "unit", "frame"):
            w, h = getattr(want, field), getattr(have, field)
            if w != h:
                found.append(f"{kind} {want.name}: {field} is {w} in the skill and {h} on {robot}")
    return found


def _each(kind: Callable[[Any], _Number], values: Iterable[Any], what: str) -> tuple[_Number, ...]:
    """Plain Python numbers, so that 20, 20.0 and numpy.float32(20) give one digest."""
    try:
        return tuple(kind(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{what} is not made of numbers: {error}") from error


def _settle(frozen: object, **fields: object) -> None:
    for field, value in fields.items():
        object.__setattr__(frozen, field, value)
