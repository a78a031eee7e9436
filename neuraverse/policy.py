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
        self._names = [signal.name for signal in interface.action]
        self._outputs = [output_name(name) for name in self._names]
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
        data = source if isinstance(source, bytes) else read_regular(Path(source), MAX_GRAPH_BYTES)
        check_graph(data)
        session = _session(data)
        _check_ports("input", session.get_inputs(), {s.name: s.shape for s in interface.observation})
        _check_ports(
            "output", session.get_outputs(), {output_name(s.name): s.shape for s in interface.action}
        )
        return cls(session, interface)

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
            WeightsError: The policy answered with NaN or infinity.
        """
        import numpy as np

        if observation.keys() != self._known:
            raise _names_differ(self._known, observation)
        feeds = {}
        batch = -1  # not known yet; 0: one sample without a batch axis
        for name, shape in self._inputs:
            try:
                value = np.asarray(observation[name], dtype=np.float32)
            except (TypeError, ValueError, OverflowError) as error:
                raise ObservationError(f"observation {name} is no array of numbers: {error}") from error
            if value.shape == shape:
                rows, value = 0, value[None]
            elif value.shape[1:] == shape and value.ndim == len(shape) + 1 and len(value):
                rows = len(value)
            else:
                raise ObservationError(
                    f"observation {name} has shape {value.shape}",
                    remedy=f"it must be {shape} or {('N', *shape)}",
                )
            if batch == -1:
                batch, first = rows, name
            elif rows != batch:
                raise ObservationError(
                    f"observation {name} has batch size {rows or 'none'} and {first} has {batch or 'none'}"
                )
            if not np.isfinite(value).all():
                raise ObservationError(f"observation {name} is not finite: {_first_bad(value)}")
            feeds[name] = value
        answer = {}
        values = self._run(self._outputs, feeds)
        for name, (low, high), value in zip(self._names, self._limits, values, strict=True):
            if not np.isfinite(value).all():
                raise WeightsError(
                    f"the policy's action {name} is not finite", remedy="do not use this skill"
                )
            if low is not None:
                value = np.maximum(value, low)
            if high is not None:
                value = np.minimum(value, high)
            answer[name] = value if batch else value[0]
        return answer


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
        reason = str(error).strip().partition("\n")[0][:300]
        raise WeightsError(f"policy.onnx cannot be loaded: {reason}") from error


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


def _first_bad(value: NDArray[np.float32]) -> str:
    import numpy as np

    index = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0][1:])
    return f"element {index}" if index else "its value"
