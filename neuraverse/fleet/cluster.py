"""Joining or starting Ray, and what an actor may ask of it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from neuraverse.errors import ConfigError, NetworkError, NeuraverseError, TrainingError, UsageError

_OBJECT_STORE_BYTES = 256 * 2**20  # results are small: weights and curves
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_KNOCK_S = 5.0


@contextlib.contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """A Ray cluster for the time of a ``with`` block.

    The cluster at `address` or ``$RAY_ADDRESS`` is joined; without either, Ray is started on this machine and
    shut down at the end. Where the process has joined one before, that is used and left as it is.

    Args:
        address: Such as ``"10.0.0.1:6379"``, or ``"auto"`` for the one that runs on this machine.
        num_cpus: CPUs to offer where Ray is started here; all of them if not given.

    Raises:
        NetworkError: No cluster answers there.
        UsageError: It cannot be joined, such as one of another version of Ray.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted:
        _join(wanted)
    else:
        _start(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _start(num_cpus: int | None) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **_QUIET,
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise UsageError(
            f"Ray cannot be started here: {_first_line(error)}", remedy="look at its logs in /tmp/ray"
        ) from error


def _join(address: str) -> None:
    try:
        _knock(address)
        with _one_attempt():
            ray.init(address=address, **_QUIET)
    except (OSError, OverflowError, RayError) as error:  # refused, a port that is none, silent
        raise NetworkError(
            f"no Ray cluster answers at {address}: {_first_line(error)}",
            remedy="start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine alone",
        ) from error
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the Ray cluster at {address} cannot be joined: {_first_line(error)}") from error


def _knock(address: str) -> None:
    """Ray itself would wait for minutes where nothing listens."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


@contextlib.contextmanager
def _one_attempt() -> Iterator[None]:
    """Let Ray try once to reach a cluster, not twenty times, each of which takes a quarter of a minute."""
    name = "RAY_gcs_server_port_wait_time_s"
    before = os.environ.get(name)
    os.environ[name] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker occupies. Ray starts it where that is free.

    Attributes:
        cpus: CPUs; as many threads are used, at least one.
        gpus: GPUs; 0.5 lets two workers share one. With 0 a worker sees none.
        custom: Resources that the operator gave to nodes, such as ``{"lab": 1.0}``.

    Raises:
        ConfigError: A figure is negative, not finite, or a fraction of several GPUs.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {"cpus": self.cpus, "gpus": self.gpus, **self.custom}.items():
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"a worker cannot have {name} = {value}", remedy="choose 0 or more")
        if self.gpus > 1.0 and not float(self.gpus).is_integer():
            raise ConfigError(
                f"a worker cannot have gpus = {self.gpus:g}", remedy="choose a share of one, or whole ones"
            )

    @classmethod
    def share(cls, workers: int, device: str | None = None) -> Self:
        """One CPU each, and the GPUs of the cluster shared evenly, none if the CPU is asked for."""
        gpus = 0.0 if device == "cpu" else offered().get("GPU", 0.0)
        return cls(gpus=min(1.0, math.floor(1e4 * gpus / workers) / 1e4))

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, int(self.cpus))

    def options(self) -> dict[str, Any]:
        """Keyword arguments of an actor's ``options``."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom)}

    def check(self) -> None:
        """Raise ConfigError if no node of the cluster has so much: such a worker would wait for ever."""
        offered()
        wanted = {k: v for k, v in {"CPU": self.cpus, "GPU": self.gpus, **self.custom}.items() if v > 0.0}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(have.get(k, 0.0) >= v for k, v in wanted.items()) for have in nodes):
            return
        asked = ", ".join(f"{v:g} {k}" for k, v in wanted.items())
        most = {k: max((have.get(k, 0.0) for have in nodes), default=0.0) for k in wanted}
        there = ", ".join(f"{v:g} {k}" for k, v in most.items())
        raise ConfigError(
            f"no node of the Ray cluster has {asked} for a worker; the most there is: {there}",
            remedy="ask for less, or add a node",
        )


def offered() -> dict[str, float]:
    """All resources of the cluster.

    Raises:
        UsageError: None was joined or started.
    """
    if not ray.is_initialized():
        raise UsageError("there is no Ray cluster yet", remedy="work in `with neuraverse.fleet.connect():`")
    return dict(ray.cluster_resources())


def get(ref: Any, *, check: Callable[[], object] | None = None) -> Any:
    """What a call to an actor returned.

    Args:
        ref: The call.
        check: Called about every second while waiting; what it raises ends the wait.

    Raises:
        NeuraverseError: The error that the actor raised, as it was.
        TrainingError: The actor died, or failed otherwise.
    """
    try:
        while check is not None and not ray.wait([ref], timeout=1.0)[0]:
            check()
        return ray.get(ref)
    except RayTaskError as error:
        raise cause_of(error) from None
    except RayError as error:
        raise TrainingError(f"a worker died: {_first_line(error)}") from error


def cause_of(error: RayTaskError) -> NeuraverseError:
    """What went wrong in an actor, as an error of ours."""
    cause = error.cause
    if isinstance(cause, NeuraverseError):
        return cause
    return TrainingError(f"a worker failed with {type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
