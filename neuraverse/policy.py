"""A trained policy in onnxruntime: named observations in, named actions out, no torch.

Convention of the graph: one float32 input ``(N, *shape)`` per observation signal, of its name, and one
float32 output ``(N, *shape)`` per action signal, named ``action.<name>``, because a signal such as ``twist``
may be both measured and commanded. The normaliser, the clipping and the scaling to SI units are inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from neuraverse.errors import ObservationError, WeightsError
from neuraverse.graph import MAX_GRAPH_BYTES, check_graph
from neuraverse.interface import Interface
from neuraverse.storage import read_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Policy:
    """A loaded policy. Calls are independent of each other; one object may be shared by threads.

    Attributes:
        interface: What it reads and commands.
    """

    def __init__(self, session: Any, interface: Interface) -> None:
        import numpy as np

        self.interface = interface
        self._run = session.run
        self._commands = [(signal.name, signal.shape) for signal in interface.action]
        self._outputs = [output_name(signal.name) for signal in interface.action]
        self._inputs = [(signal.name, signal.shape) for signal in interface.observation]
        self._known = frozenset(signal.name for signal in interface.observation)
        self._limits = [
            (
                np.asarray(signal.low, np.float32).reshape(signal.shape) if signal.low else None,
                np.asarray(signal.high, np.float32).reshape(signal.shape) if signal.high else None,
            )
            for signal in interface.action
        ]

    @classmethod
    def load(cls, source: Path | str | bytes, interface: Interface) -> Self:
        """Check and load an ONNX graph; one thread, on the CPU.

        Args:
            source: The file, or its bytes.
            interface: The signals that its inputs and outputs must equal.

        Raises:
            WeightsError: The graph is malformed, too large, not finite, refers to other files, uses unknown
                operators, or does not fit the interface.
            IntegrityError: The file is missing or too large.
        """
        import numpy as np

        data = source if isinstance(source, bytes) else read_regular(Path(source), MAX_GRAPH_BYTES)
        check_graph(data)
        session = _session(data)
        _check_ports("input", session.get_inputs(), {s.name: s.shape for s in interface.observation})
        _check_ports(
            "output", session.get_outputs(), {output_name(s.name): s.shape for s in interface.action}
        )
        policy = cls(session, interface)
        for rows in (1, 3):
            policy({s.name: np.zeros((rows, *s.shape), np.float32) for s in interface.observation})
        return policy

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """The deterministic action.

        Args:
            observation: One array per observation signal, by name, in SI units, either of the signal's
                shape or of ``(N, *shape)`` with the same N for all.

        Returns:
            One float32 array per action signal, by name, in SI units, within the limits of the interface; of
            the signal's shape, or ``(N, *shape)`` if the observation was.

        Raises:
            ObservationError: A signal is missing, extra, misshapen, or not finite; the message names it.
            WeightsError: The policy answered with NaN, infinity or another shape.
        """
        import numpy as np

        if observation.keys() != self._known:
            raise _names_differ(self._known, observation)
        feeds: dict[str, NDArray[np.float32]] = {}
        rows: int | None = None
        for name, shape in self._inputs:
            value = _array(name, observation[name])
            single = value.shape == shape
            if not single and (value.shape[1:] != shape or value.ndim != len(shape) + 1 or not len(value)):
                raise ObservationError(
                    f"observation {name} has shape {value.shape}",
                    remedy=f"it must be {shape} or {('N', *shape)}",
                )
            if feeds and rows != (None if single else len(value)):
                raise ObservationError(
                    f"observation {name} has shape {value.shape}, which is another batch size than that of "
                    f"{self._inputs[0][0]}"
                )
            rows = None if single else len(value)
            if not np.isfinite(value).all():
                raise ObservationError(f"observation {name} is not finite: {_first_bad(value)}")
            feeds[name] = value[None] if single else value
        try:
            values = self._run(self._outputs, feeds)
        except Exception as error:  # onnxruntime's errors share no base class
            raise WeightsError(f"policy.onnx cannot be run: {_reason(error)}") from error
        action = {}
        for (name, shape), (low, high), value in zip(self._commands, self._limits, values, strict=True):
            if value.shape != (rows or 1, *shape):
                raise WeightsError(f"the policy's action {name} has shape {value.shape}, not {('N', *shape)}")
            if not np.isfinite(value).all():
                raise WeightsError(
                    f"the policy's action {name} is not finite", remedy="do not use this skill"
                )
            held = value if low is None else np.maximum(value, low)
            held = held if high is None else np.minimum(held, high)
            action[name] = held[0] if rows is None else held
        return action


def output_name(action: str) -> str:
    """Name of the graph's output for an action signal."""
    return f"action.{action}"


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise WeightsError(f"policy.onnx cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _check_ports(kind: str, ports: list[Any], wanted: dict[str, tuple[int, ...]]) -> None:
    found = {port.name: port for port in ports}
    for name, shape in wanted.items():
        port = found.pop(name, None)
        if port is None:
            raise WeightsError(f"policy.onnx has no {kind} {name}, which the interface needs")
        if port.type != "tensor(float)":
            raise WeightsError(f"policy.onnx: {kind} {name} is a {port.type}, not a tensor(float)")
        if not port.shape or isinstance(port.shape[0], int) or tuple(port.shape[1:]) != shape:
            raise WeightsError(
                f"policy.onnx: {kind} {name} has shape {port.shape}; the interface needs {['N', *shape]}"
            )
    if found:
        raise WeightsError(f"policy.onnx has the {kind} {min(found)}, which the interface does not name")


def _names_differ(known: frozenset[str], observation: Mapping[str, Any]) -> ObservationError:
    missing = sorted(known - observation.keys())
    extra = sorted(map(str, observation.keys() - known))
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    parts += [f"extra: {', '.join(extra)}"] if extra else []
    return ObservationError(f"the observation does not fit the interface; {'; '.join(parts)}")


def _array(name: str, value: object) -> NDArray[np.float32]:
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ObservationError(f"observation {name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ObservationError(f"observation {name} is no array of numbers but of {array.dtype}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
        return array.astype(np.float32, copy=False)


def _first_bad(value: NDArray[np.float32]) -> str:
    import numpy as np

    index = [int(i) for i in np.argwhere(~np.isfinite(value))[0]]
    return f"element {index} is {value[tuple(index)]}" if index else f"it is {value}"
