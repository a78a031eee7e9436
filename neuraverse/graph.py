"""Reading policy.onnx without trust, before onnxruntime sees it, and without the onnx package.

A policy is arithmetic on its inputs and its own constants. This reader accepts only that: standard
operators without loops, branches, randomness or strings, no foreign operator domains, no data in other
files, and finite constants.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neuraverse.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

MAX_GRAPH_BYTES = 64 << 20
MAX_NODES = 1000
MAX_PARTS = 1 << 18
"""Fields and bytes of number lists in a file; weights are raw bytes and count as one."""
MAX_DIMENSIONS = 8
MIN_OPSET, MAX_OPSET = 13, 26
"""What onnxruntime 1.20 and later run alike."""
_FLOAT, _BOOL = 1, 9  # TensorProto.DataType
_CHUNK = 1 << 20
OPERATORS = frozenset(
    """
    Abs Acos Add And ArgMax Asin Atan Cast Ceil Celu Clip Concat Constant Cos Cosh Div Elu Equal Erf Exp
    Flatten Floor Gather Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity
    LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max Mean Min Mish Mod Mul Neg Not Or PRelu
    Pow Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Round Selu Shape Sigmoid Sign Sin
    Sinh Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tan Tanh Transpose Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)
# ONNX TensorProto.DataType -> NumPy type of raw_data, field of typed data
_TYPES = {
    1: ("<f4", "float_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("u1", "int32_data"),  # truth values
    11: ("<f8", "double_data"),
}
_NUMBERS = {"float": 2, "double": 1, "int64": 3, "int32": 5}  # FieldDescriptorProto.Type
# The part of onnx.proto that matters here, message -> (field, number, type, repeated); the rest is skipped.
_SCHEMA = {
    "Model": [
        ("graph", 7, "Graph", False),
        ("opset_import", 8, "Opset", True),
        ("training_info", 20, "bytes", True),
        ("functions", 25, "bytes", True),
    ],
    "Opset": [("domain", 1, "bytes", False), ("version", 2, "int64", False)],
    "Graph": [
        ("node", 1, "Node", True),
        ("initializer", 5, "Tensor", True),
        ("input", 11, "Port", True),
        ("output", 12, "Port", True),
        ("sparse_initializer", 15, "bytes", True),
    ],
    "Port": [("name", 1, "bytes", False), ("type", 2, "Type", False)],
    "Type": [
        ("tensor_type", 1, "TensorType", False),
        *((f"other_{number}", number, "bytes", False) for number in (4, 5, 7, 8, 9)),
    ],
    "TensorType": [("elem_type", 1, "int32", False), ("shape", 2, "Shape", False)],
    "Shape": [("dim", 1, "Dim", True)],
    "Dim": [("dim_value", 1, "int64", False), ("dim_param", 2, "bytes", False)],
    "Node": [
        ("op_type", 4, "bytes", False),
        ("attribute", 5, "Attribute", True),
        ("domain", 7, "bytes", False),
    ],
    "Attribute": [
        ("name", 1, "bytes", False),
        ("f", 2, "float", False),
        ("t", 5, "Tensor", False),
        ("g", 6, "bytes", False),
        ("floats", 7, "float", True),
        ("tensors", 10, "Tensor", True),
        ("graphs", 11, "bytes", True),
        ("sparse_tensor", 22, "bytes", False),
        ("sparse_tensors", 23, "bytes", True),
    ],
    "Tensor": [
        ("dims", 1, "int64", True),
        ("data_type", 2, "int32", False),
        ("float_data", 4, "float", True),
        ("int32_data", 5, "int32", True),
        ("int64_data", 7, "int64", True),
        ("name", 8, "bytes", False),
        ("raw_data", 9, "bytes", False),
        ("double_data", 10, "double", True),
        ("external_data", 13, "bytes", True),
        ("data_location", 14, "int32", False),
    ],
}
_KINDS = {message: {number: kind for _, number, kind, _ in fields} for message, fields in _SCHEMA.items()}
_CHOICES = frozenset({"Type", "Dim"})  # messages whose fields exclude each other


def check_graph(
    data: Buffer,
    label: str = "policy.onnx",
    *,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Check an ONNX file of a policy; nothing is run.

    Args:
        data: The file's bytes, or a view or map of them.
        label: How messages call it.
        inputs: The shape of each input that it must have, without the batch axis; None asks nothing.
        outputs: The same for outputs.

    Raises:
        WeightsError: Too large, malformed, not plain arithmetic, of another opset, a constant is not finite,
            or inputs or outputs are others.
    """
    model = _parse(data, label)
    graph = model.graph
    if not graph.node:
        raise WeightsError(f"{label} is not an ONNX file, or its graph is empty")
    if model.functions or model.training_info or graph.sparse_initializer:
        raise WeightsError(
            f"{label} has functions, training graphs or sparse constants, which a policy must not have"
        )
    if len(graph.node) > MAX_NODES:
        raise WeightsError(f"{label} has {len(graph.node)} nodes; at most {MAX_NODES} are allowed")
    for node in graph.node:
        _check_node(node, label)
    for tensor in graph.initializer:
        _check_tensor(tensor, label)
    opsets = [each.version for each in model.opset_import if _text(each.domain) in ("", "ai.onnx")]
    if len(opsets) != 1 or not MIN_OPSET <= opsets[0] <= MAX_OPSET:
        raise WeightsError(
            f"{label} is of opset {', '.join(map(str, opsets[:5])) or '(none)'}; "
            f"one of {MIN_OPSET} to {MAX_OPSET} is allowed",
            remedy="export the policy with an opset in between",
        )
    constants = {tensor.name for tensor in graph.initializer}
    if any(port.name in constants for port in graph.input):
        raise WeightsError(f"{label} has a constant of an input's name, which would take its place")
    for kind, ports, wanted in (("input", graph.input, inputs), ("output", graph.output, outputs)):
        if wanted is not None:
            _check_ports(kind, ports, wanted, label)


def _parse(data: Buffer, label: str) -> Any:
    from google.protobuf.message import DecodeError

    with memoryview(data).cast("B") as view:
        if len(view) > MAX_GRAPH_BYTES:
            raise WeightsError(f"{label} has {len(view)} bytes; at most {MAX_GRAPH_BYTES} are allowed")
        _count(view, "Model", MAX_PARTS, label)
        try:
            return _model_class().FromString(data if isinstance(data, bytes) else bytes(view))
        except DecodeError as error:
            raise WeightsError(f"{label} is not an ONNX file") from error


def _check_ports(kind: str, ports: Any, wanted: Mapping[str, tuple[int, ...]], label: str) -> None:
    """Names, types and shapes, as `policy.Policy.load` finds them in onnxruntime."""
    found = {_text(port.name): port.type.tensor_type for port in ports}
    if len(found) != len(ports):
        raise WeightsError(f"{label} has two {kind}s of one name")
    for name, shape in wanted.items():
        port = found.pop(name, None)
        if port is None:
            raise WeightsError(f"{label} has no {kind} {name}, which the interface needs")
        if port.elem_type != _FLOAT:
            raise WeightsError(f"{label}: {kind} {name} is of type {port.elem_type}, not {_FLOAT} (float)")
        dims = port.shape.dim[: MAX_DIMENSIONS + 2]  # one more than an interface can have
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        if sizes != [None, *shape]:
            raise WeightsError(
                f"{label}: {kind} {name} has shape {sizes}; the interface needs {['N', *shape]}"
            )
    if found:
        raise WeightsError(f"{label} has the {kind} {min(found)}, which the interface does not name")


def _count(data: memoryview, message: str, left: int, label: str) -> int:
    """How many of `left` parts remain after those of `message`, found without parsing it.

    Two bytes can be an empty node, for which a parser takes a hundred: a small file could fill the memory.
    """
    kinds = _KINDS[message]
    at = 0
    end = len(data)
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)  # most are of one byte
        wire, kind = tag & 7, kinds.get(tag >> 3)
        left -= 1
        if wire == 2:
            size, at = (data[at], at + 1) if at < end and data[at] < 0x80 else _varint(data, at)
            if kind in _SCHEMA:
                with data[at : at + size] as part:
                    left = _count(part, kind, left, label)
            elif kind in _NUMBERS:
                left -= min(size, end - at)
            at += size
        elif wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise WeightsError(f"{label} is not an ONNX file")
        if left < 0:
            raise WeightsError(f"{label} has more than {MAX_PARTS} parts, which no policy needs")
    return left


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            break
    return value, at


def _check_node(node: Any, label: str) -> None:
    operator, domain = _text(node.op_type), _text(node.domain)
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        full = f"{domain}.{operator}" if domain else operator
        raise WeightsError(f"{label} uses the operator {full}, which is not allowed in a policy")
    for attribute in node.attribute:
        if (
            attribute.HasField("g")
            or attribute.graphs
            or attribute.HasField("sparse_tensor")
            or attribute.sparse_tensors
        ):
            raise WeightsError(f"{label}: operator {operator} holds a graph or a sparse constant")
        if not all(map(math.isfinite, (attribute.f, *attribute.floats))):
            raise WeightsError(f"{label}: attribute {_text(attribute.name)} of {operator} is not finite")
        for tensor in (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors:
            _check_tensor(tensor, label)


def _check_tensor(tensor: Any, label: str) -> None:
    import numpy as np

    where = f"{label}: constant {_text(tensor.name) or '(unnamed)'}"
    if tensor.external_data or tensor.data_location:
        raise WeightsError(f"{where} lies in another file")
    if tensor.data_type not in _TYPES:
        raise WeightsError(f"{where} is of type {tensor.data_type}, which is not allowed in a policy")
    if len(tensor.dims) > MAX_DIMENSIONS or any(n < 0 for n in tensor.dims):
        raise WeightsError(f"{where} has a negative dimension, or more than {MAX_DIMENSIONS}")
    dtype, field = _TYPES[tensor.data_type]
    raw, typed = tensor.raw_data, getattr(tensor, field)
    if raw and typed:
        raise WeightsError(f"{where} is given twice")
    itemsize = np.dtype(dtype).itemsize
    if (len(raw) or len(typed) * itemsize) != math.prod(tensor.dims) * itemsize:
        raise WeightsError(f"{where} does not fill its shape {list(tensor.dims)}")
    values: NDArray[Any] = np.frombuffer(raw, dtype) if raw else np.asarray(typed)
    if not all(np.isfinite(values[at : at + _CHUNK]).all() for at in range(0, len(values), _CHUNK)):
        raise WeightsError(f"{where} holds NaN or infinity")
    if tensor.data_type == _BOOL and not ((values == 0) | (values == 1)).all():
        raise WeightsError(f"{where} holds what is no truth value")


def _text(value: bytes) -> str:
    return value[:100].decode(errors="replace")


@functools.cache
def _model_class() -> Any:
    """A protobuf message class for `_SCHEMA`, in a pool of its own."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = _NUMBERS | {"bytes": 12}
    file: Any = descriptor_pb2.FileDescriptorProto(name="policy.proto", package="policy", syntax="proto2")
    for message, fields in _SCHEMA.items():
        descriptor = file.message_type.add(name=message)
        if message in _CHOICES:
            descriptor.oneof_decl.add(name="choice")
        for name, number, kind, repeated in fields:
            field = descriptor.field.add(name=name, number=number, label=3 if repeated else 1)
            if message in _CHOICES:
                field.oneof_index = 0
            if kind in kinds:
                field.type = kinds[kind]
            else:
                field.type, field.type_name = 11, f".policy.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("policy.Model"))
