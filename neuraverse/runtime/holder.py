"""What acts now: one reference, that a thread of its own replaces while a control loop runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from neuraverse.errors import UsageError

if TYPE_CHECKING:
    from neuraverse.policy import Policy
    from neuraverse.skill import Skill


@dataclass(frozen=True, kw_only=True)
class Running:
    """A skill and its policy, which is loaded."""

    skill: Skill
    policy: Policy


class Holder(ABC):
    """Holds the skill that acts, and follows what is to act next. Use it as a context manager, or `start` it.

    A swap replaces one reference, so that it falls between two ticks; a tick never sees half of it.
    """

    def __init__(self) -> None:
        self._running: Running | None = None
        self._last: Policy | None = None  # the one before: else a tick that still uses it would take it down
        self._left = ""  # why the last skill does not act any more
        self._first = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def skill(self) -> Skill | None:
        """The skill that acts now; None before the first."""
        running = self._running
        return running.skill if running else None

    @property
    def ending(self) -> threading.Event:
        """Set when it is to stop."""
        return self._stop

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        """The action of the skill that acts now.

        A skill that its publisher revoked acts no more, even if there is none to take its place.

        Args:
            observation: One array per signal that the robot offers, by name, in SI units; those that
                the skill does not read are left out.

        Raises:
            UsageError: There is no skill yet.
            ObservationError: A signal is missing, misshapen or not finite.
        """
        running = self._running
        if running is None:
            raise UsageError(
                self._left or "the agent has no skill yet", remedy="wait for one with agent.wait()"
            )
        wanted = (signal.name for signal in running.skill.interface.observation)
        return running.policy({name: observation[name] for name in wanted if name in observation})

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether there is a skill, within `timeout_s` seconds."""
        return self._first.wait(timeout_s)

    def _swap(self, running: Running) -> None:
        before = self._running
        self._running, self._left = running, ""
        self._last = before.policy if before is not None else None
        self._first.set()

    def _leave(self, why: str) -> None:
        self._running, self._left = None, why
        self._first.clear()

    def start(self) -> None:
        """Follow in a thread of its own.

        Raises:
            UsageError: It was started before.
        """
        if self._thread is not None:
            raise UsageError("the agent was started before", remedy="make a new one")
        self._thread = threading.Thread(target=self._follow, name="neuraverse-agent", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Stop following; the skill goes on acting.

        Args:
            timeout_s: How long to wait for what is on its way; without end if None.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _follow(self) -> None:
        """What the thread does until `_stop` is set."""
