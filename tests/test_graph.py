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
from neuraverse.graph import (
    MAX_GRAPH_BYTES,
    MAX_NODES,
    MAX_OPSET,
    MAX_PARTS,
    MIN_OPSET,
    OPERATORS,
    check_graph,
)
from neuraverse.policy import output_name


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


def test_functions_training_graphs_and_sparse_constants_are_refused(model):
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(model)
    spoilt.functions.add(name="f", domain="")
    refuse(spoilt, "functions")
    spoilt.CopyFrom(model)
    spoilt.training_info.add()
    refuse(spoilt, "training graphs")
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


@pytest.mark.parametrize("raw", [True, False])
def test_a_truth_value_is_true_or_false(model, raw):
    tensor = helper.make_tensor("truth", TensorProto.BOOL, [2], b"\1\0" if raw else [True, False], raw=raw)
    model.graph.initializer.append(tensor)
    check_graph(model.SerializeToString())
    if raw:
        model.graph.initializer[-1].raw_data = b"\1\2"
    else:
        model.graph.initializer[-1].int32_data[1] = 2
    refuse(model, "truth", "no truth value")


@pytest.mark.parametrize(
    ("opsets", "says"),
    [
        ([], "opset (none)"),
        ([("", MIN_OPSET - 1)], f"opset {MIN_OPSET - 1}"),
        ([("", MAX_OPSET + 1)], f"opset {MAX_OPSET + 1}"),
        ([("ai.onnx", MAX_OPSET + 1)], f"opset {MAX_OPSET + 1}"),
        ([("", 20), ("ai.onnx", 21)], "opset 20, 21"),
        ([("com.microsoft", 1)], "opset (none)"),
    ],
)
def test_an_opset_out_of_range_is_refused(model, opsets, says):
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*each) for each in opsets)
    refuse(model, says)


def asked(interface) -> dict:
    return {
        "inputs": {s.name: s.shape for s in interface.observation},
        "outputs": {output_name(s.name): s.shape for s in interface.action},
    }


def test_inputs_and_outputs_of_the_interface_are_accepted(good, interface):
    check_graph(good, **asked(interface))
    check_graph(bytearray(good), **asked(interface))


def reshape(port, *dims) -> None:
    del port.type.tensor_type.shape.dim[:]
    for size in dims:
        port.type.tensor_type.shape.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: setattr(g.input[0], "name", "nose"), "no input e_pos"),
        (lambda g: setattr(g.output[0], "name", "twist"), "no output action.twist"),
        (lambda g: g.input.pop(), "no input prev_action"),
        (lambda g: g.input.add(name="more"), "the input more"),
        (lambda g: g.output.add(name="more"), "the output more"),
        (lambda g: g.input.add(name="e_pos"), "two inputs of one name"),
        (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "type 11"),
        (lambda g: g.input[0].ClearField("type"), "type 0"),
        (lambda g: g.input[0].type.sequence_type.SetInParent(), "type 0"),
        (lambda g: reshape(g.input[0], "N", 4), "[None, 4]"),
        (lambda g: reshape(g.input[0], "N", "k"), "[None, None]"),
        (lambda g: reshape(g.input[0], 1, 3), "[1, 3]"),
        (lambda g: reshape(g.input[0], "N"), "[None]"),
        (lambda g: reshape(g.input[0]), "[]"),
        (lambda g: reshape(g.input[0], "N", 3, 1), "[None, 3, 1]"),
        (lambda g: reshape(g.input[0], "N", *[3] * 20_000), "[None, 3, 3, 3"),
        (lambda g: setattr(g.initializer[0], "name", "e_pos"), "constant of an input's name"),
    ],
)
def test_other_inputs_and_outputs_are_refused(model, interface, change, says):
    change(model.graph)
    with pytest.raises(WeightsError) as caught:
        check_graph(model.SerializeToString(), **asked(interface))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_of_choices_that_exclude_each_other_the_last_counts(model, interface):
    dim = field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x12\1N") + field(1, b"\x08\x03\x12\1k"))))
    del model.graph.input[0]
    with pytest.raises(WeightsError, match=r"\[None, None\]"):  # as onnxruntime, which reads k, not 3
        check_graph(
            model.SerializeToString() + field(7, field(11, field(1, b"e_pos") + dim)), **asked(interface)
        )


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
