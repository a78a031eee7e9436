"""What a search asks for, as parameters of a registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from neuraverse.interface import Offer, Signal

PAGE = 100  # skills that a registry gives at once


class Facets(TypedDict, total=False):
    """What must hold of a skill besides its words; what is empty or missing lets everything pass.

    Attributes:
        task: Environment id.
        interface: Digest of the interface, ``sha256:<hex>``.
        robot: Name of the body that it was trained on.
        tags: All of which it has.
        license: SPDX expression.
        org: Organisation.
        parent: Digest of a skill that it descends from directly.
        success: Least bound of its success, 0 to 1.
    """

    task: str
    interface: str
    robot: str
    tags: Sequence[str]
    license: str
    org: str
    parent: str
    success: float


def parameters(facets: Facets) -> dict[str, Any]:
    """Parameters of a request.

    Raises:
        TypeError: There is no such facet.
    """
    unknown = sorted(facets.keys() - Facets.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no facet {unknown[0]!r}; there are {', '.join(Facets.__annotations__)}")
    return {"tag" if name == "tags" else name: value for name, value in facets.items() if value}


def plain_offer(offer: Offer) -> dict[str, Any]:
    """An offer as JSON: of its signals, what decides whether a skill fits."""

    def plain(signals: Sequence[Signal]) -> list[dict[str, Any]]:
        return [{"name": s.name, "shape": list(s.shape), "unit": s.unit, "frame": s.frame} for s in signals]

    return {
        "robot": offer.robot,
        "max_rate_hz": offer.max_rate_hz,
        "reach_m": offer.reach_m,
        "linear_speed_m_s": offer.linear_speed_m_s,
        "angular_speed_rad_s": offer.angular_speed_rad_s,
        "wrench_sensor": offer.wrench_sensor,
        "grip_stroke_m": offer.grip_stroke_m,
        "observation": plain(offer.observation),
        "action": plain(offer.action),
    }
