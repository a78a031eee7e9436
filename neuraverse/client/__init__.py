"""What a robot, a script or a trainer does with a registry: search, pull, publish, watch.

One synchronous client over HTTP. Importing it costs little; httpx, pydantic and the signing library are
loaded when they are first needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse.client.client import Client
from neuraverse.client.download import Progress
from neuraverse.client.keeping import Kept
from neuraverse.client.refs import Event, Ref, Resolved, Summary
from neuraverse.client.reports import Measured

if TYPE_CHECKING:
    from neuraverse.interface import Offer
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

__all__ = [
    "Client",
    "Event",
    "Kept",
    "Measured",
    "Progress",
    "Ref",
    "Resolved",
    "Summary",
    "publish",
    "pull",
    "watch",
]


def pull(
    ref: str,
    *,
    offer: Offer | None = None,
    trust: KeyStore | None = None,
    registry: str | None = None,
    progress: Progress | None = None,
) -> Skill:
    """Download, verify and check a skill; see `Client.pull`.

    Args:
        ref: ``org/skill``, ``org/skill@1.0.0``, ``org/skill@^1.2``, ``org/skill@alias``, ``sha256:<hex>``,
            or a local folder.
        offer: What the robot can supply; a skill that does not fit is refused before its weights are read.
        trust: Keys to accept; those of ``$NEURAVERSE_HOME`` if not given.
        registry: URL; ``$NEURAVERSE_REGISTRY`` or http://127.0.0.1:8420 if not given.
        progress: Called with bytes done and bytes in total.
    """
    with Client(registry) as client:
        return client.pull(ref, offer=offer, trust=trust, progress=progress)


def publish(
    path: Path | str,
    *,
    key: str = "default",
    registry: str | None = None,
    progress: Progress | None = None,
) -> Resolved:
    """Upload a skill directory and make it visible; see `Client.publish`."""
    with Client(registry) as client:
        return client.publish(path, key=key, progress=progress)


def watch(
    name: str | None = None,
    *,
    after: str | None = None,
    registry: str | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """What happens in a registry from now on, for ever; see `Client.watch`."""
    client = Client(registry)
    try:
        events = client.watch(after, name, stop)
    except BaseException:
        client.close()
        raise

    def closing() -> Iterator[Event]:
        with client:
            yield from events

    return closing()
