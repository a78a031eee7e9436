"""policy.onnx from strangers: refused in a sentence, or arithmetic that hides nothing, in little memory."""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from neuraverse.errors import WeightsError
from neuraverse.graph import MAX_NODES, MAX_OPSET, MAX_PARTS, MIN_OPSET, OPERATORS, check_graph
from neuraverse.policy import output_name
from tests.fuzz.hostile import any_bytes, assert_cheap, few_and_many, field, for_each, spoilt, varint


@pytest.fixture(scope="module")
def good(tiny) -> list[bytes]:
    """Policies as the project writes them, and one that holds numbers in every way that is allowed."""
    plain = tiny.onnx(tiny.weights())
    model = onnx.load_from_string(plain)
    name = model.graph.input[0].name
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0])
    model.graph.initializer.extend(
        [
            typed,
            helper.make_tensor("whole", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("truth", TensorProto.BOOL, [2], [True, False]),
            numpy_helper.from_array(np.float64([1.0]), "double"),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["c0"], value=typed),
            helper.make_node("Constant", [], ["c1"], value_floats=[1.0, 2.0]),
            helper.make_node("LeakyRelu", [name], ["c2"], alpha=0.1),
        ]
    )
    return [plain, model.SerializeToString()]


@pytest.fixture(scope="module")
def ports(interface) -> dict:
    return {
        "inputs": {s.name: s.shape for s in interface.observation},
        "outputs": {output_name(s.name): s.shape for s in interface.action},
    }


def messages(message):
    """A protobuf message and all within it."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for each in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                yield from messages(each)


def hides_nothing(data: bytes) -> None:
    """Read by the onnx package, what was accepted is what a policy may be."""
    try:
        model = onnx.load_from_string(data)
    except DecodeError:  # broken in a part that policies do not use: onnxruntime refuses it, and nothing runs
        return
    every = list(messages(model))
    kinds = [each.DESCRIPTOR.name for each in every]
    assert kinds.count("GraphProto") == 1
    assert not {"FunctionProto", "SparseTensorProto", "TrainingInfoProto"} & set(kinds)
    opsets = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    assert len(opsets) == 1
    assert MIN_OPSET <= opsets[0] <= MAX_OPSET
    assert 0 < len(model.graph.node) <= MAX_NODES
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    for each in every:
        if isinstance(each, TensorProto):
            assert each.data_location == TensorProto.DEFAULT
            assert not each.external_data
            assert np.isfinite(numpy_helper.to_array(each)).all()
        if isinstance(each, AttributeProto):
            assert math.isfinite(each.f)
            assert np.isfinite(list(each.floats)).all()


def has_ports(data: bytes, inputs: dict, outputs: dict) -> None:
    """Read by the onnx package, inputs and outputs are those."""
    graph = onnx.load_from_string(data).graph
    for found, wanted in ((graph.input, inputs), (graph.output, outputs)):
        assert sorted(port.name for port in found) == sorted(wanted)
        for port in found:
            assert port.type.WhichOneof("value") == "tensor_type"
            assert port.type.tensor_type.elem_type == TensorProto.FLOAT
            batch, *dims = port.type.tensor_type.shape.dim
            assert batch.WhichOneof("value") != "dim_value"
            assert tuple(dim.dim_value for dim in dims) == wanted[port.name]
            assert all(dim.WhichOneof("value") == "dim_value" for dim in dims)
    assert not {each.name for each in graph.initializer} & {port.name for port in graph.input}


@pytest.fixture(scope="module")
def refused_or_sound(ports):
    def check(data: bytes) -> None:
        try:
            check_graph(data)
        except WeightsError:
            with pytest.raises(WeightsError) as caught:
                check_graph(memoryview(data), **ports)
            assert len(str(caught.value)) < 1000
            return
        hides_nothing(data)
        with contextlib.suppress(WeightsError, DecodeError):
            check_graph(bytearray(data), **ports)
            has_ports(data, **ports)

    return check


def test_what_the_project_writes_is_accepted(good, ports, refused_or_sound):
    for data in good:
        check_graph(data, **ports)
        refused_or_sound(data)


@few_and_many
def test_fault_16_spoilt_files(examples, good, refused_or_sound):
    for_each(spoilt(good), examples, refused_or_sound)


@few_and_many
def test_fault_16_any_bytes(examples, good, refused_or_sound):
    starts = [good[0][:at] for at in (4, 40, 400)]
    for_each(any_bytes(*starts, b"\x3a", b"\x42\x02\x10\x14"), examples, refused_or_sound)


TAGS = st.builds(lambda number, wire: varint(number << 3 | wire), st.integers(0, 30), st.integers(0, 7))
PROTOBUF = st.recursive(
    st.one_of(
        TAGS,
        st.builds(lambda n, value: varint(n << 3) + varint(value), st.integers(1, 25), st.integers(0, 2**64)),
        st.builds(field, st.integers(1, 25), st.sampled_from([b"", b"Add", b"\1\2\3", b"e_pos", b"\0" * 8])),
        st.sampled_from([b"\x80" * 9 + b"\1", b"\x80" * 12, b"\xff" * 10, b"\x3a\xff\xff\xff\xff\x0f"]),
    ),
    lambda inner: st.builds(
        lambda number, parts: field(number, b"".join(parts)),
        st.sampled_from([1, 2, 5, 7, 8, 11, 12, 20, 25]),
        st.lists(inner, max_size=6),
    ),
    max_leaves=25,
)


@few_and_many
def test_fault_16_any_protobuf(examples, good, refused_or_sound):
    """Alone, and after a valid file, with which a parser merges it."""
    after = st.builds(bytes.__add__, st.sampled_from([b"", *good]), PROTOBUF)
    within = st.builds(lambda start, part: start + field(7, part), st.sampled_from([b"", *good]), PROTOBUF)
    for_each(after | within, examples, refused_or_sound)


def external(tensor: TensorProto, how: str) -> TensorProto:
    """The same tensor, with its numbers said to lie in another file."""
    found = TensorProto()
    found.CopyFrom(tensor)
    if how in ("both", "location", "without numbers"):
        found.data_location = TensorProto.EXTERNAL
    if how in ("both", "key", "without numbers"):
        found.external_data.add(key="location", value="../../etc/passwd")
    if how == "without numbers":
        found.ClearField("raw_data")
    return found


def subgraph(tensor: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    return helper.make_graph([node], "within", [], [], [tensor])


def place(model: onnx.ModelProto, tensor: TensorProto, where: str) -> None:
    """Put a tensor somewhere into a model."""
    graph = model.graph
    node = graph.node[0]
    match where:
        case "initializer":
            graph.initializer.append(tensor)
        case "constant":
            graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        case "attribute":
            node.attribute.add(name="x", t=tensor)
        case "attribute list":
            node.attribute.add(name="x").tensors.append(tensor)
        case "attribute beside a number":
            node.attribute.add(name="x", f=1.0, type=AttributeProto.FLOAT, t=tensor)
        case "subgraph":
            node.attribute.add(name="x", g=subgraph(tensor))
        case "subgraph list":
            node.attribute.add(name="x").graphs.append(subgraph(tensor))
        case "subgraph in a subgraph":
            inner = subgraph(tensor)
            inner.node[0].attribute.add(name="x", g=subgraph(tensor))
            node.attribute.add(name="x", g=inner)
        case "sparse initializer":
            graph.sparse_initializer.add(values=tensor)
        case "sparse attribute":
            node.attribute.add(name="x").sparse_tensor.values.CopyFrom(tensor)
        case "sparse attribute list":
            node.attribute.add(name="x").sparse_tensors.add(values=tensor)
        case "function":
            model.functions.add(name="f", node=[helper.make_node("Constant", [], ["c"], value=tensor)])
        case "training":
            model.training_info.add(initialization=subgraph(tensor))


PLACES = (
    "initializer",
    "constant",
    "attribute",
    "attribute list",
    "attribute beside a number",
    "subgraph",
    "subgraph list",
    "subgraph in a subgraph",
    "sparse initializer",
    "sparse attribute",
    "sparse attribute list",
    "function",
    "training",
)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("how", ["both", "location", "key", "without numbers"])
def test_fault_16_external_data_anywhere(good, where, how):
    for data in good:
        model = onnx.load_from_string(data)
        tensor = external(numpy_helper.from_array(np.float32([1.0, 2.0]), "t"), how)
        place(model, tensor, where)
        assert any(each == tensor for each in messages(model)), "it is not there"
        with pytest.raises(WeightsError):
            check_graph(model.SerializeToString())
        # Written as two files end to end, which a parser merges into one.
        part = onnx.ModelProto()
        part.graph.node.add(op_type="Identity")
        place(part, tensor, where)
        with pytest.raises(WeightsError):
            check_graph(data + part.SerializeToString())


@pytest.mark.parametrize("where", PLACES[:5])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_anywhere(good, where, number):
    for tensor in (
        numpy_helper.from_array(np.float32([1.0, number]), "t"),
        helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, number]),
        helper.make_tensor("t", TensorProto.DOUBLE, [2], [1.0, number]),
    ):
        model = onnx.load_from_string(good[0])
        place(model, tensor, where)
        with pytest.raises(WeightsError, match="NaN or infinity"):
            check_graph(model.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        *(pickle.dumps({"w": [1.0] * 9}, protocol) for protocol in range(6)),
        *(field(7, pickle.dumps({"w": [1.0] * 9}, protocol)) for protocol in range(6)),
    ],
)
def test_fault_16_a_pickle_is_no_graph(data):
    with pytest.raises(WeightsError):
        check_graph(data)


def test_fault_16_an_archive_is_no_graph(good):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("policy.onnx", good[0] + bytes(10_000_000))
    for data in (file.getvalue(), good[0] + file.getvalue()):
        with pytest.raises(WeightsError):
            check_graph(data)


ADD = field(1, field(4, b"Add"))
OPSET = field(8, b"\x10\x14")
FLOATS = b"\x10\x01"  # TensorProto.data_type
FEW = MAX_PARTS - 100


def port(dims: bytes) -> bytes:
    return field(1, b"e_pos") + field(2, field(1, b"\x08\x01" + field(2, dims)))


BOMBS = {
    "nodes": field(7, field(1, b"") * FEW),
    "nodes too many": field(7, field(1, b"") * (1 << 24)),
    "attributes": OPSET + field(7, field(1, field(4, b"Add") + field(5, b"") * FEW)),
    "attributes with tensors": field(7, field(1, field(4, b"Add") + field(5, field(5, b"")) * (FEW // 2))),
    "attributes with lists": field(
        7, field(1, field(4, b"Add") + field(5, field(10, b"") * 9) * (FEW // 10))
    ),
    "numbers of an attribute": OPSET
    + field(7, field(1, field(4, b"Add") + field(5, field(7, bytes(FEW & ~3))))),
    "constants": OPSET + field(7, ADD + field(5, FLOATS + b"\x08\x00") * (FEW // 3)),
    "whole numbers": field(7, ADD + field(5, b"\x10\x07\x08\x01" + field(7, b"\1" * FEW))),
    "numbers": OPSET
    + field(7, ADD + field(5, FLOATS + b"\x08" + varint(FEW // 4) + field(4, bytes(FEW // 4 * 4)))),
    "numbers one by one": field(7, ADD + field(5, FLOATS + b"\x08\x01" + b"\x25\0\0\0\0" * FEW)),
    "dimensions": field(7, ADD + field(5, FLOATS + field(1, b"\1" * FEW))),
    "a vast shape": field(7, ADD + field(5, FLOATS + field(1, varint(2**62) * 8))),
    "inputs": OPSET + field(7, ADD + field(11, b"") * FEW),
    "dimensions of an input": OPSET + field(7, ADD + field(11, port(field(1, b"") * FEW))),
    "opsets": field(7, ADD) + OPSET * (FEW // 2),
    "functions": field(7, ADD) + field(25, b"") * FEW,
    "unknown": OPSET + field(7, ADD) + (field(3, b"") + b"\x08\x01") * (FEW // 2),
    "a long operator": field(7, field(1, field(4, b"x" * 1_000_000))),
    "a long domain": field(7, field(1, field(4, b"Add") + field(7, b"x" * 1_000_000))),
    "a long name": OPSET + field(7, ADD + field(11, field(1, b"x" * 1_000_000))),
    "a long constant": field(7, ADD + field(5, field(8, b"x" * 1_000_000))),
    "groups": b"\x0b" * 1_000_000,
    "deep": b"".join(b"\x3a" + varint(1_000_000 - 4 * i) for i in range(200_000)),
    "a length that lies": b"\x3a\xff\xff\xff\xff\x07" + bytes(1000),
}
FINE = {
    "attributes",
    "numbers of an attribute",
    "constants",
    "numbers",
    "inputs",
    "dimensions of an input",
    "unknown",
    "a long name",
}
ASKED = {"inputs": {"e_pos": (3,)}, "outputs": {}}


def ask(data: bytes) -> None:
    """`check_graph` with the ports of an interface, for the measuring process."""
    check_graph(data, **ASKED)


QUICK = ["nodes", "attributes", "numbers", "a long operator", "a long name", "groups", "deep"]


@pytest.mark.parametrize(
    "names", [QUICK, pytest.param(list(BOMBS), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_fault_16_bombs_take_little_memory(tmp_path, names):
    bombs = {name: BOMBS[name] for name in names}
    accepted = FINE & bombs.keys()
    assert_cheap("neuraverse.graph:check_graph", bombs, tmp_path, accepted=accepted, traced=False)


def test_fault_16_inputs_that_are_bombs_take_little_memory(tmp_path):
    bombs = {name: BOMBS[name] for name in ("inputs", "dimensions of an input", "a long name")}
    assert_cheap("tests.fuzz.test_graph:ask", bombs, tmp_path, traced=False)


@pytest.mark.parametrize(
    "hostile", [field(7, field(1, b"") * (MAX_PARTS + 1)), b"\x3a", field(7, b"\x0b"), b""]
)
def test_a_map_of_a_file_can_be_closed_afterwards(tmp_path, good, hostile):
    path = tmp_path / "policy.onnx"
    for data in (good[0], good[0] + hostile):
        path.write_bytes(data)
        expected = pytest.raises(WeightsError) if data != good[0] else contextlib.nullcontext()
        with expected, path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            check_graph(view)
