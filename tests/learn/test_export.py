"""ONNX and safetensors: what ships is what was trained."""

import time

import numpy as np
import onnx
import pytest
import torch

from neuraverse.errors import IncompatibleError
from neuraverse.interface import Interface, Signal
from neuraverse.learn.export import to_onnx, to_safetensors
from neuraverse.learn.policy import ACTIVATIONS, ActorCritic
from neuraverse.policy import Policy
from neuraverse.tensors import read_tensors

MIXED = Interface(
    observation=(
        Signal(name="offset", shape=(3,), unit="m"),
        Signal(name="grid", shape=(2, 3), unit="1"),
        Signal(name="scalar", shape=(), unit="1"),
        Signal(name="twist", shape=(2,), unit="m/s"),
    ),
    action=(
        Signal(name="twist", shape=(2,), unit="m/s", low=(-0.1, -0.2), high=(0.1, 0.2)),
        Signal(name="grip", shape=(), unit="m", low=(0.0,), high=(0.08,)),
    ),
    rate_hz=20.0,
)
SCALE, OFFSET = (0.1, 0.2, 0.04), (0.0, 0.0, 0.04)


def trained_like(activation: str = "elu") -> ActorCritic:
    policy = ActorCritic(
        12, 3, hidden=(32, 16), activation=activation, generator=torch.Generator().manual_seed(2)
    )
    torch.manual_seed(2)
    policy.actor.weights[-1].normal_(0.0, 0.15)
    for bias in (*policy.actor.biases, *policy.critic.biases):
        bias.normal_(0.0, 0.1)
    policy.freeze_normaliser(torch.randn(100, 12) * torch.logspace(-3, 2, 12) + 5.0)
    return policy


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_onnx_equals_torch_on_a_thousand_inputs(activation):
    policy = trained_like(activation)
    rng = np.random.default_rng(0)
    # Far beyond what the normaliser saw too: clipping is part of the policy.
    spread = policy.normaliser_std.numpy() * rng.choice([1.0, 30.0], size=(1000, 1))
    flat = (policy.normaliser_mean.numpy() + spread * rng.normal(size=(1000, 12))).astype(np.float32)
    shipped = Policy.load(to_onnx(policy, MIXED, SCALE, OFFSET), MIXED)
    answer = shipped(
        {
            "offset": flat[:, :3],
            "grid": flat[:, 3:9].reshape(-1, 2, 3),
            "scalar": flat[:, 9],
            "twist": flat[:, 10:],
        }
    )
    wanted = policy(torch.from_numpy(flat)).numpy() * np.float32(SCALE) + np.float32(OFFSET)
    np.testing.assert_allclose(answer["twist"], wanted[:, :2], atol=1e-5)
    np.testing.assert_allclose(answer["grip"], wanted[:, 2], atol=1e-5)
    assert np.abs(wanted[:, 0]).max() == pytest.approx(0.1), "some actions were clipped"
    assert np.unique(wanted[:, 0]).size > 100, "and many were not"


def test_onnx_says_what_it_is_and_is_made_quickly():
    policy = trained_like()
    start = time.perf_counter()
    data = to_onnx(policy, MIXED, SCALE, OFFSET)
    assert time.perf_counter() - start < 2.0
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    props = {p.key: p.value for p in model.metadata_props}
    assert props == {
        "observation_names": "offset,grid,scalar,twist",
        "action_names": "twist,grip",
        "action_scale": ",".join(repr(float(np.float32(x))) for x in SCALE),
        "interface_digest": MIXED.digest(),
    }


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(IncompatibleError, match="does not fit an interface of 12 → 3"):
        to_onnx(ActorCritic(11, 3), MIXED, SCALE)
    with pytest.raises(IncompatibleError, match="with 2 scales"):
        to_onnx(ActorCritic(12, 3), MIXED, SCALE[:2])


def test_safetensors_hold_the_whole_policy():
    policy = trained_like("tanh")
    tensors = {name: torch.from_numpy(value) for name, value in read_tensors(to_safetensors(policy)).items()}
    assert {"actor.0.weight", "critic.2.bias", "log_std", "normaliser.mean", "normaliser.std"} <= set(tensors)
    copy = ActorCritic.from_tensors(tensors, activation="tanh")
    assert torch.equal(copy.theta, policy.theta)
