"""The policy as a robot runs it."""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neuraverse.errors import IntegrityError, ObservationError, WeightsError
from neuraverse.interface import Interface, Signal
from neuraverse.policy import Policy, output_name


@pytest.fixture(scope="module")
def weights(tiny):
    return tiny.weights(seed=3)


@pytest.fixture(scope="module")
def policy(tiny, weights, interface):
    return Policy.load(tiny.onnx(weights), interface)


def observe(interface, rows=None, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch = () if rows is None else (rows,)
    return {s.name: rng.normal(size=(*batch, *s.shape)).astype(np.float32) for s in interface.observation}


def by_hand(weights, interface, observation) -> np.ndarray:
    """Normalise, tanh layers, clip, scale; float64."""
    x = np.concatenate([observation[s.name].reshape(-1, s.size) for s in interface.observation], axis=1)
    x = (x - weights["normaliser.mean"].astype(float)) / weights["normaliser.std"]
    for i in range(3):
        x = x @ weights[f"actor.{i}.weight"].T.astype(float) + weights[f"actor.{i}.bias"]
        x = np.tanh(x) if i < 2 else np.clip(x, -1, 1)
    return x * np.array(interface.action[0].high)


def test_the_action_is_that_of_the_formula(policy, weights, interface):
    observation = observe(interface, rows=1000)
    action = policy(observation)
    assert list(action) == ["twist"]
    assert action["twist"].dtype == np.float32
    np.testing.assert_allclose(action["twist"], by_hand(weights, interface, observation), atol=1e-5)


def test_one_sample_has_no_batch_axis_and_equals_its_row(policy, interface):
    batch = observe(interface, rows=5)
    together = policy(batch)["twist"]
    assert together.shape == (5, 6)
    for row in range(5):
        alone = policy({name: value[row] for name, value in batch.items()})["twist"]
        assert alone.shape == (6,)
        np.testing.assert_allclose(alone, together[row], atol=1e-6)


def test_what_numpy_takes_as_numbers_is_taken(policy, interface):
    zeros = policy({s.name: np.zeros(s.shape) for s in interface.observation})["twist"]
    listed = policy({s.name: [0] * s.size for s in interface.observation})["twist"]
    np.testing.assert_array_equal(zeros, listed)


def test_the_order_of_the_names_does_not_matter(policy, interface):
    observation = observe(interface)
    backwards = dict(reversed(observation.items()))
    np.testing.assert_array_equal(policy(observation)["twist"], policy(backwards)["twist"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda o: o.pop("e_rot"), ["missing: e_rot"]),
        (lambda o: o.update(force=0.0), ["extra: force"]),
        (lambda o: (o.pop("e_rot"), o.update(e_rotation=0.0)), ["missing: e_rot", "extra: e_rotation"]),
        (lambda o: o.update(e_pos=np.zeros(4)), ["e_pos", "(4,)", "(3,)", "('N', 3)"]),
        (lambda o: o.update(e_pos=0.0), ["e_pos", "()"]),
        (lambda o: o.update(e_pos=np.zeros((0, 3))), ["e_pos", "(0, 3)"]),
        (lambda o: o.update(e_pos=np.zeros((1, 1, 3))), ["e_pos", "(1, 1, 3)"]),
        (lambda o: o.update(e_rot=np.zeros((1, 3))), ["e_rot", "batch", "e_pos"]),
        (lambda o: o.update(seam=["1"] * 6), ["seam", "no array of numbers"]),
        (lambda o: o.update(seam=[[0.0], [0.0, 1.0]]), ["seam", "no array of numbers"]),
        (lambda o: o.update(seam=None), ["seam"]),
        (lambda o: o.update(seam=1j * np.ones(6)), ["seam"]),
        (lambda o: o.update(twist=[0, 0, math.nan, 0, 0, 0]), ["twist", "not finite", "[2]"]),
        (lambda o: o.update(twist=[0, 0, 0, 0, -math.inf, 0]), ["twist", "not finite", "[4]"]),
        (lambda o: o.update(twist=[1e300, 0, 0, 0, 0, 0]), ["twist", "not finite", "[0]"]),
    ],
)
def test_a_wrong_observation_is_named(policy, interface, change, says):
    observation = observe(interface)
    change(observation)
    with pytest.raises(ObservationError) as caught:
        policy(observation)
    for part in says:
        assert part in str(caught.value)


def test_batches_of_different_length_are_named(policy, interface):
    observation = observe(interface, rows=4)
    observation["seam"] = observation["seam"][:3]
    with pytest.raises(ObservationError, match=r"observation seam .*batch"):
        policy(observation)


def test_the_observation_is_left_as_it_was(policy, interface):
    observation = observe(interface)
    before = {name: value.copy() for name, value in observation.items()}
    policy(observation)
    for name, value in before.items():
        np.testing.assert_array_equal(observation[name], value)


def test_it_is_loaded_from_a_file_too(tiny, weights, interface, policy, tmp_path):
    path = tmp_path / "policy.onnx"
    path.write_bytes(tiny.onnx(weights))
    observation = observe(interface)
    np.testing.assert_array_equal(
        Policy.load(path, interface)(observation)["twist"], policy(observation)["twist"]
    )
    with pytest.raises(IntegrityError, match="missing"):
        Policy.load(tmp_path / "none.onnx", interface)


def test_threads_share_one_policy(policy, interface):
    cases = [observe(interface, seed=seed) for seed in range(4)]
    expected = [policy(case)["twist"] for case in cases]
    failures = []

    def work(i):
        answers = [policy(cases[i])["twist"] for _ in range(50)]
        failures.extend(answer for answer in answers if not np.array_equal(answer, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


GRIP = Interface(
    observation=(Signal(name="gap", shape=(1,), unit="m"), Signal(name="image", shape=(2, 3), unit="1")),
    action=(
        Signal(name="grip", shape=(1,), unit="m", low=(0.0,), high=(0.08,)),
        Signal(name="turn", shape=(2, 1), unit="rad"),
    ),
    rate_hz=10.0,
)


def test_several_actions_of_any_shape(tiny):
    policy = Policy.load(tiny.onnx(tiny.weights(interface=GRIP), GRIP), GRIP)
    action = policy(observe(GRIP))
    assert {name: value.shape for name, value in action.items()} == {"grip": (1,), "turn": (2, 1)}
    batch = policy(observe(GRIP, rows=2))
    assert {name: value.shape for name, value in batch.items()} == {"grip": (2, 1), "turn": (2, 2, 1)}


def graph_of(nodes, interface, constants=(), rows="N", outputs=None, kind=TensorProto.FLOAT) -> bytes:
    ins = [helper.make_tensor_value_info(s.name, kind, [rows, *s.shape]) for s in interface.observation]
    outs = outputs or [
        helper.make_tensor_value_info(output_name(s.name), kind, [rows, *s.shape]) for s in interface.action
    ]
    graph = helper.make_graph(nodes, "policy", ins, outs, list(constants))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()


ONE = Interface(
    observation=(Signal(name="x", shape=(1,), unit="m"),),
    action=(Signal(name="x", shape=(1,), unit="m", low=(-0.1,), high=(0.1,)),),
    rate_hz=10.0,
)


def test_a_command_is_held_within_the_limits_of_the_interface():
    policy = Policy.load(graph_of([helper.make_node("Identity", ["x"], ["action.x"])], ONE), ONE)
    for given, commanded in ((0.05, 0.05), (7.0, 0.1), (-7.0, -0.1)):
        assert policy({"x": [given]})["x"] == np.float32(commanded)


def test_an_answer_that_is_not_finite_moves_nothing():
    node = [helper.make_node("Reciprocal", ["x"], ["y"]), helper.make_node("Sub", ["y", "y"], ["action.x"])]
    with pytest.raises(WeightsError, match="action x is not finite"):  # 1/0 - 1/0, found on loading
        Policy.load(graph_of(node, ONE), ONE)
    shift = numpy_helper.from_array(np.float32([3.0]), "shift")
    node = [
        helper.make_node("Sub", ["x", "shift"], ["s"]),
        helper.make_node("Reciprocal", ["s"], ["action.x"]),
    ]
    policy = Policy.load(graph_of(node, ONE, [shift]), ONE)
    with pytest.raises(WeightsError, match="action x is not finite"):
        policy({"x": [3.0]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observation": lambda o: o[1:]}, "input e_pos"),
        ({"observation": lambda o: (*o, Signal(name="force", shape=(1,), unit="N"))}, "no input force"),
        ({"observation": lambda o: (dataclasses.replace(o[0], name="p"), *o[1:])}, "no input p"),
        (
            {"observation": lambda o: (dataclasses.replace(o[0], shape=(4,)), *o[1:])},
            "input e_pos has shape ['N', 3]; the interface needs ['N', 4]",
        ),
        ({"action": lambda a: (*a, Signal(name="grip", shape=(1,), unit="m"))}, "no output action.grip"),
        ({"action": lambda a: (Signal(name="twist", shape=(5,), unit="1"),)}, "output action.twist"),
    ],
)
def test_a_graph_must_have_the_ports_of_the_interface(tiny, weights, interface, changes, says):
    other = dataclasses.replace(
        interface, **{field: change(getattr(interface, field)) for field, change in changes.items()}
    )
    with pytest.raises(WeightsError) as caught:
        Policy.load(tiny.onnx(weights), other)
    assert says in str(caught.value)


def identity(**kwargs) -> bytes:
    return graph_of([helper.make_node("Identity", ["x"], ["action.x"])], ONE, **kwargs)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (identity(kind=TensorProto.DOUBLE), "tensor(double)"),
        (identity(rows=1), "has shape [1, 1]"),
        (graph_of([helper.make_node("Identity", ["nothing"], ["action.x"])], ONE), "cannot be loaded"),
        (graph_of([helper.make_node("Tanh", ["x", "x"], ["action.x"])], ONE), "cannot be loaded"),
        (
            graph_of(
                [helper.make_node("Slice", ["x", "from", "to"], ["action.x"])],
                ONE,
                [numpy_helper.from_array(np.int64([n]), name) for name, n in (("from", 0), ("to", 2))],
            ),
            "action x has shape (2, 1)",  # never more than two rows
        ),
        (
            graph_of(
                [helper.make_node("Gemm", ["x", "w"], ["action.x"])],
                ONE,
                [numpy_helper.from_array(np.ones((2, 1), np.float32), "w")],
            ),
            "cannot be",
        ),
    ],
)
def test_a_graph_that_does_not_run_is_refused_on_loading(data, says):
    with pytest.raises(WeightsError) as caught:
        Policy.load(data, ONE)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_graph_is_checked_before_onnxruntime_sees_it(tiny, weights, interface, monkeypatch):
    import onnxruntime

    model = onnx.load_from_string(tiny.onnx(weights))
    model.graph.node.append(helper.make_node("Loop", [], ["c"]))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_a, **_k: pytest.fail("it was loaded"))
    with pytest.raises(WeightsError, match="operator Loop"):
        Policy.load(model.SerializeToString(), interface)
