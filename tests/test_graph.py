"""policy.onnx read without trust, before onnxruntime sees it."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from neuraverse import graph
from neuraverse.errors import WeightsError
from neuraverse.graph import MAX_GRAPH_BYTES, MAX_NODES, MAX_PARTS, OPERATORS, check_graph


@pytest.fixture(scope="module")
def good(tiny) -> bytes:
    return tiny.onnx(tiny.weights())


@pytest.fixture
def model(good):
    """The same, to be spoilt."""
    return onnx.load_from_string(good)


def refuse(model, *says):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(WeightsError) as caught:
        check_graph(data)
    for part in ("policy.onnx", *says):
        assert part in str(caught.value)


def test_a_policy_is_accepted(good):
    check_graph(good)


def test_every_operator_allowed_exists_in_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= OPERATORS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("raw", [True, False])
def test_a_constant_that_is_not_finite_is_named(model, bad, raw):
    value = numpy_helper.to_array(model.graph.initializer[0]).copy()
    value.flat[1] = bad
    name = model.graph.initializer[0].name
    if raw:
        spoilt = numpy_helper.from_array(value, name)
    else:
        spoilt = helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.flatten())
    model.graph.initializer[0].CopyFrom(spoilt)
    refuse(model, name, "NaN or infinity")


def test_a_constant_inside_a_node_is_checked_too(model):
    spoilt = numpy_helper.from_array(np.float32([np.nan]))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=spoilt))
    refuse(model, "NaN or infinity")
    model.graph.node[-1].CopyFrom(helper.make_node("Constant", [], ["c"], value_float=float("nan")))
    refuse(model, "value_float of Constant is not finite")
    model.graph.node[-1].CopyFrom(helper.make_node("Constant", [], ["c"], value_floats=[1.0, float("inf")]))
    refuse(model, "value_floats of Constant is not finite")


def test_data_in_another_file_is_refused(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")
    refuse(model, tensor.name, "lies in another file")
    tensor.data_location = TensorProto.DEFAULT
    refuse(model, "lies in another file")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    refuse(model, "lies in another file")


@pytest.mark.parametrize(
    "operator", ["Loop", "If", "Scan", "RandomNormal", "ConstantOfShape", "Expand", "Nonsense", ""]
)
def test_other_operators_are_refused(model, operator):
    model.graph.node.append(helper.make_node(operator, ["e_pos"], ["c"]))
    refuse(model, "operator", operator)


def test_a_foreign_domain_is_refused(model):
    model.graph.node.append(helper.make_node("Gelu", ["e_pos"], ["c"], domain="com.microsoft"))
    refuse(model, "com.microsoft.Gelu")


def test_a_graph_within_a_node_is_refused(model):
    model.graph.node.append(helper.make_node("Identity", ["e_pos"], ["c"], body=model.graph))
    refuse(model, "Identity holds a graph")


def test_functions_and_sparse_constants_are_refused(model):
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(model)
    spoilt.functions.add(name="f", domain="")
    refuse(spoilt, "functions")
    model.graph.sparse_initializer.add()
    refuse(model, "sparse")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.dims.append(2),
        lambda t: t.dims.insert(0, -1),
        lambda t: t.ClearField("raw_data"),
        lambda t: setattr(t, "raw_data", t.raw_data[:-1]),
        lambda t: t.float_data.append(1.0),
        lambda t: setattr(t, "data_type", TensorProto.STRING),
        lambda t: setattr(t, "data_type", 99),
        lambda t: setattr(t, "data_type", TensorProto.DOUBLE),
    ],
)
def test_a_misshapen_constant_is_named(model, change):
    change(model.graph.initializer[0])
    refuse(model, model.graph.initializer[0].name)


def test_too_many_nodes_are_refused(model):
    model.graph.node.extend([helper.make_node("Identity", ["e_pos"], ["c"])] * MAX_NODES)
    refuse(model, f"at most {MAX_NODES}")


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"PK\x03\x04", pickle.dumps([1]), b"<html>", b"{}", bytes(100)]
)
def test_what_is_no_onnx_is_refused(data):
    refuse(data, "not an ONNX file")


def test_a_file_beyond_the_limit_is_not_parsed():
    refuse(bytes(MAX_GRAPH_BYTES + 1), str(MAX_GRAPH_BYTES))


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    size, length = len(content), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(
    "hostile",
    [
        field(7, field(1, b"") * (MAX_PARTS + 1)),  # nodes
        field(7, field(1, field(5, b"") * (MAX_PARTS + 1))),  # attributes of one node
        field(7, field(5, b"") * (MAX_PARTS + 1)),  # constants
        field(7, field(5, field(7, b"\1" * (MAX_PARTS + 1)))),  # one constant of integers, packed
        field(7, field(5, field(1, b"\1" * (MAX_PARTS + 1)))),  # its dimensions
        field(7, field(1, field(5, b"") * (MAX_PARTS // 2)) * 3),  # in sum
    ],
)
def test_what_would_fill_the_memory_is_refused_unparsed(hostile, monkeypatch):
    monkeypatch.setattr(graph, "_model_class", lambda: pytest.fail("it was parsed"))
    refuse(hostile, f"more than {MAX_PARTS} parts")


def test_weights_in_raw_bytes_are_one_part(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(MAX_PARTS, np.float32), "large"))
    check_graph(model.SerializeToString())


def test_a_constant_of_many_dimensions_is_named(model):
    tensor = model.graph.initializer[0]
    tensor.dims.extend([1] * 20)
    refuse(model, tensor.name, "dimension")


@settings(max_examples=300)
@given(st.data())
def test_spoilt_bytes_are_refused_or_accepted_and_nothing_else(good, data):
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WeightsError):
        check_graph(bytes(spoilt[: data.draw(st.integers(1, len(spoilt)))]))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_accepted_and_nothing_else(data):
    with contextlib.suppress(WeightsError):
        check_graph(data)
