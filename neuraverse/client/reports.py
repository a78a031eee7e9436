"""What a robot tells a registry: which version it runs, and how a version does in the field.

Both need the token of a robot. A report holds sums and no raw data: how many episodes, how many succeeded or
were aborted, and of each physical error how many were measured, their mean and the greatest.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from neuraverse.client.refs import printable
from neuraverse.errors import UsageError
from neuraverse.interface import UNITS

if TYPE_CHECKING:
    from neuraverse.client.transport import Transport
    from neuraverse.interface import Offer

State = Literal["running", "refused", "left", "rolled-back", "stopped"]
MAX_EPISODES = 10_000  # in one report
MAX_ERRORS = 20
MAX_MEASURED = 1e12  # of any unit
_PACKAGES = ("neuraverse", "numpy", "onnxruntime")
_KEY = "[0-9A-Za-z_-]{0,64}"
_NAME = "[a-z][a-z0-9_]{0,63}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The magnitude of one physical error over many episodes.

    Attributes:
        unit: SI, one of `neuraverse.interface.UNITS`.
        n: How often it was measured.
        mean: Of its magnitude.
        max: The greatest magnitude.
    """

    unit: str
    n: int
    mean: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float], unit: str) -> Self:
        """Sum up measured values, of either sign.

        Raises:
            UsageError: There is none.
        """
        sizes = [abs(float(value)) for value in values]
        if not sizes:
            raise UsageError("an error that was not measured has no mean", remedy="leave it out")
        return cls(unit=unit, n=len(sizes), mean=math.fsum(sizes) / len(sizes), max=max(sizes))


def software() -> dict[str, str]:
    """Versions of what decides how a skill runs here."""
    import importlib.metadata  # takes 20 ms

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def report(
    transport: Transport,
    digest: str,
    offer: Offer,
    *,
    episodes: int,
    successes: int,
    aborts: int,
    errors: Mapping[str, Measured],
    key: str,
) -> None:
    """Tell how a version did; see `Client.report`."""
    _check_counts(episodes, successes, aborts)
    if len(errors) > MAX_ERRORS:
        raise UsageError(f"{len(errors)} errors are too many", remedy=f"report the {MAX_ERRORS} that matter")
    body = {
        "digest": digest,
        "episodes": episodes,
        "successes": successes,
        "aborts": aborts,
        "errors": {name: _plain(name, error) for name, error in errors.items()},
        "body": offer.digest(),
        "software": software(),
    }
    if not re.fullmatch(_KEY, key):
        raise UsageError(f"{key[:100]!r} is no key of a report", remedy="use uuid.uuid4().hex")
    headers = {"Idempotency-Key": key} if key else None
    with transport.stream("POST", "/v1/fleet/reports", json=body, headers=headers, ok=(201,)):
        pass


def installed(
    transport: Transport, follows: str, state: State, version: str, digest: str, reason: str
) -> None:
    """Tell what a robot runs; see `Client.installed`."""
    body = {
        "follows": follows,
        "version": version or None,
        "digest": digest or None,
        "state": state,
        "reason": printable(reason),
    }
    with transport.stream("PUT", "/v1/fleet/installs", json=body, ok=(204,)):
        pass


def is_robot(transport: Transport) -> bool:
    """Whether the registry takes the token for a robot's; see `Client.is_robot`."""
    return bool(transport.token) and transport.json("GET", "/v1/whoami").get("kind") == "robot"


def _check_counts(episodes: int, successes: int, aborts: int) -> None:
    counts = {"episodes": episodes, "successes": successes, "aborts": aborts}
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise UsageError(f"{name} is {count!r}", remedy="count whole episodes")
    if not 1 <= episodes <= MAX_EPISODES:
        raise UsageError(
            f"a report of {episodes} episodes cannot be sent",
            remedy=f"report after 1 to {MAX_EPISODES} of them",
        )
    if successes + aborts > episodes:
        raise UsageError(
            f"{successes} successes and {aborts} aborts are more than {episodes} episodes",
            remedy="an episode that was aborted is no success; count each once",
        )


def _plain(name: str, error: Measured) -> dict[str, Any]:
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            f"{name[:100]!r} is no name of an error",
            remedy="use up to 64 lower-case letters, digits and underscores",
        )
    if error.unit not in UNITS:
        raise UsageError(
            f"error {name}: unknown unit {error.unit[:100]!r}", remedy=f"use SI: {', '.join(sorted(UNITS))}"
        )
    if type(error.n) is not int or not 1 <= error.n <= MAX_MEASURED:
        raise UsageError(f"error {name}: n is {error.n!r}", remedy="leave out what was not measured")
    if not 0.0 <= error.mean <= error.max * (1.0 + 1e-9) or not error.max <= MAX_MEASURED:
        raise UsageError(
            f"error {name}: mean {error.mean!r} and max {error.max!r} cannot be",
            remedy="give finite magnitudes, of which the mean is not above the greatest",
        )
    return asdict(error)
