"""From a trained policy to files: ONNX that needs nothing else, and safetensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch

from neuraverse.errors import IncompatibleError, MissingExtraError
from neuraverse.interface import Interface
from neuraverse.learn.policy import OBSERVATION_CLIP, ActorCritic
from neuraverse.policy import output_name
from neuraverse.skill import Skill

OPSET = 17
_IR_VERSION = 8  # the oldest that carries this opset, for the sake of old runtimes
_NODES = {"elu": "Elu", "tanh": "Tanh", "relu": "Relu"}


def to_onnx(
    policy: ActorCritic,
    interface: Interface,
    action_scale: Sequence[float] | np.ndarray,
    action_offset: Sequence[float] | np.ndarray | None = None,
) -> bytes:
    """The deterministic policy as an ONNX graph, in SI units on both sides.

    One float32 input ``(N, *shape)`` per observation signal and one output per action signal, as
    `neuraverse.policy` wants them. Normaliser, clipping and scaling are inside.

    Args:
        policy: The policy.
        interface: Its signals, in the order of the flat observation and action.
        action_scale: (act_dim,); SI action = scale * action + offset.
        action_offset: (act_dim,); zero if not given.

    Raises:
        IncompatibleError: The sizes of policy, interface and scale differ.
        MissingExtraError: onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", "train", "the export of a policy") from error

    scale = np.asarray(action_scale, np.float32).reshape(-1)
    offset = (
        np.zeros_like(scale) if action_offset is None else np.asarray(action_offset, np.float32).reshape(-1)
    )
    wanted = (interface.observation_size, interface.action_size, interface.action_size)
    if (policy.obs_dim, policy.act_dim, len(scale)) != wanted:
        raise IncompatibleError(
            f"a policy of {policy.obs_dim} → {policy.act_dim} with {len(scale)} scales does not fit "
            f"an interface of {interface.observation_size} → {interface.action_size}"
        )
    weights = {name: value.numpy() for name, value in policy.tensors().items()}
    # Names of signals are identifiers; every other name has a dot, so that none can meet.
    constants: dict[str, np.ndarray | np.float32] = {
        "policy.mean": weights["normaliser.mean"],
        "policy.std": weights["normaliser.std"],
        "policy.clip_low": np.float32(-OBSERVATION_CLIP),
        "policy.clip_high": np.float32(OBSERVATION_CLIP),
        "policy.minus_one": np.float32(-1.0),
        "policy.one": np.float32(1.0),
        "policy.scale": scale,
        "policy.offset": offset,
    }
    nodes, inputs, outputs = [], [], []
    for signal in interface.observation:
        inputs.append(helper.make_tensor_value_info(signal.name, TensorProto.FLOAT, ["N", *signal.shape]))
        constants[f"flat.{signal.name}"] = np.array([-1, signal.size], np.int64)
        nodes.append(
            helper.make_node("Reshape", [signal.name, f"flat.{signal.name}"], [f"row.{signal.name}"])
        )
    nodes += [
        helper.make_node("Concat", [f"row.{s.name}" for s in interface.observation], ["policy.flat"], axis=1),
        helper.make_node("Sub", ["policy.flat", "policy.mean"], ["policy.centred"]),
        helper.make_node("Div", ["policy.centred", "policy.std"], ["policy.scaled"]),
        helper.make_node("Clip", ["policy.scaled", "policy.clip_low", "policy.clip_high"], ["hidden.0"]),
    ]
    last = len(policy.hidden)
    for i in range(last + 1):
        names = [f"actor.{i}.weight", f"actor.{i}.bias"]
        constants |= {name: weights[name] for name in names}
        nodes.append(helper.make_node("Gemm", [f"hidden.{i}", *names], [f"linear.{i}"], transB=1))
        if i < last:
            nodes.append(helper.make_node(_NODES[policy.activation], [f"linear.{i}"], [f"hidden.{i + 1}"]))
    nodes += [
        helper.make_node("Clip", [f"linear.{last}", "policy.minus_one", "policy.one"], ["policy.unit"]),
        helper.make_node("Mul", ["policy.unit", "policy.scale"], ["policy.without_offset"]),
        helper.make_node("Add", ["policy.without_offset", "policy.offset"], ["policy.si"]),
    ]
    constants["policy.sizes"] = np.array([s.size for s in interface.action], np.int64)
    nodes.append(
        helper.make_node(
            "Split", ["policy.si", "policy.sizes"], [f"part.{s.name}" for s in interface.action], axis=1
        )
    )
    for signal in interface.action:
        out = output_name(signal.name)
        constants[f"shape.{signal.name}"] = np.array([-1, *signal.shape], np.int64)
        nodes.append(helper.make_node("Reshape", [f"part.{signal.name}", f"shape.{signal.name}"], [out]))
        outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", *signal.shape]))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "policy", inputs, outputs, initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="neuraverse",
    )
    helper.set_model_props(
        model,
        {
            "observation_names": ",".join(s.name for s in interface.observation),
            "action_names": ",".join(s.name for s in interface.action),
            "action_scale": ",".join(repr(float(x)) for x in scale),
            "interface_digest": interface.digest(),
        },
    )
    return bytes(model.SerializeToString())


def to_safetensors(policy: ActorCritic) -> bytes:
    """Actor, critic, log-std and normaliser."""
    return safetensors.torch.save(policy.tensors())


def policy_of(skill: Skill, device: torch.device | str = "cpu") -> ActorCritic:
    """The torch policy of a skill, critic included, as the start of a fine-tune or for evaluation in a batch.

    Raises:
        WeightsError: Its weights are not those of such a network.
    """
    tensors = {name: torch.from_numpy(value) for name, value in skill.weights().items()}
    return ActorCritic.from_tensors(tensors, activation=skill.manifest.network.activation, device=device)
