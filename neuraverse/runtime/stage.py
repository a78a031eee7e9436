"""The last check before a policy may move anything: load it and run it dry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from neuraverse.errors import IncompatibleError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from neuraverse.interface import Interface, Signal
    from neuraverse.policy import Policy
    from neuraverse.skill import Skill

_DRY_RUNS = 5


def stage(skill: Skill) -> Policy:
    """Load a skill's policy and run it on an observation of zeros, or the nearest values within the limits.

    Raises:
        WeightsError: It does not load, or answers with something else than finite actions of the right shape.
        IncompatibleError: Even its fastest answer takes longer than a control period on this machine.
        IntegrityError: A file has changed on disk.
    """
    policy = skill.policy()
    observation = rest(skill.interface)
    fastest_s = float("inf")
    for _ in range(_DRY_RUNS):
        begun = time.perf_counter()
        action = policy(observation)
        fastest_s = min(fastest_s, time.perf_counter() - begun)
        _check(action, skill.interface.action, skill.ref)
    period_s = 1.0 / skill.interface.rate_hz
    if fastest_s > period_s:
        raise IncompatibleError(
            f"{skill.ref} takes {fastest_s * 1e3:.3g} ms a tick on this machine; it must act every"
            f" {period_s * 1e3:.3g} ms",
            remedy="use a faster computer or a smaller skill",
        )
    return policy


def rest(interface: Interface) -> dict[str, NDArray[np.float32]]:
    """An observation of zeros, moved into the limits of each signal; one float32 array per signal."""
    import numpy as np

    found = {}
    for signal in interface.observation:
        low = np.array(signal.low or -np.inf)
        high = np.array(signal.high or np.inf)
        flat = np.clip(np.zeros(signal.size), low, high)
        found[signal.name] = flat.reshape(signal.shape).astype(np.float32)
    return found


def _check(action: Mapping[str, NDArray[np.float32]], signals: tuple[Signal, ...], ref: str) -> None:
    import numpy as np

    for signal in signals:
        value = action.get(signal.name)
        if value is None or value.shape != signal.shape or not np.isfinite(value).all():
            raise WeightsError(f"{ref}, run dry, answers no finite {signal.name} of shape {signal.shape}")
