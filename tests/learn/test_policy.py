"""The networks: gradients, normaliser, storage."""

import pickle

import pytest
import torch

from neuraverse.errors import WeightsError
from neuraverse.learn.policy import ACTIVATIONS, ActorCritic


def make(**kwargs) -> ActorCritic:
    return ActorCritic(5, 2, hidden=(7, 6), generator=torch.Generator().manual_seed(3), **kwargs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_equals_autograd(activation):
    policy = make(activation=activation)
    torch.manual_seed(0)
    x, grad = torch.randn(11, 5), torch.randn(11, 2)
    weights = [w.clone().requires_grad_() for w in policy.actor.weights]
    biases = [b.clone().requires_grad_() for b in policy.actor.biases]
    function = {"elu": torch.nn.functional.elu, "tanh": torch.tanh, "relu": torch.relu}[activation]
    y = x
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        y = torch.nn.functional.linear(y, w, b)
        y = function(y) if i < 2 else y
    y.backward(grad)
    outputs, scratch = policy.actor.workspace(11), policy.actor.workspace(11)
    with torch.no_grad():
        assert torch.allclose(policy.actor.forward(x, outputs), y)
        policy.actor.backward(x, outputs, grad, scratch)
    for mine, theirs in zip(policy.actor.weight_grads, weights, strict=True):
        assert torch.allclose(mine, theirs.grad, atol=1e-6)
    for mine, theirs in zip(policy.actor.bias_grads, biases, strict=True):
        assert torch.allclose(mine, theirs.grad, atol=1e-6)
    assert not policy.grad[policy.split :].any(), "the critic's gradients are elsewhere"


def test_normaliser_is_worked_out_once_and_applied():
    policy = make()
    # Column 0 holds 1 and 3 (mean 2, std 1), column 1 is constant, the rest 0.
    seen = torch.zeros(2, 5)
    seen[:, 0] = torch.tensor([1.0, 3.0])
    seen[:, 1] = 4.0
    policy.freeze_normaliser(seen)
    x = torch.tensor([[3.0, 5.0, 0.5, 99.0, -99.0]])
    assert policy.normalise(x).tolist() == [[1.0, 1.0, 0.5, 10.0, -10.0]]


def test_deterministic_action_is_the_clipped_mean():
    policy = make()
    policy.actor.biases[-1].copy_(torch.tensor([3.0, -0.25]))
    policy.actor.weights[-1].zero_()
    assert policy(torch.zeros(2, 5)).tolist() == [[1.0, -0.25], [1.0, -0.25]]


def test_tensors_make_the_same_policy():
    policy = make(activation="tanh", init_std=0.5)
    policy.freeze_normaliser(torch.randn(9, 5))
    x = torch.randn(4, 5)
    for copy in (
        ActorCritic.from_tensors(policy.tensors(), activation="tanh"),
        policy.clone(),
        pickle.loads(pickle.dumps(policy)),
    ):
        assert torch.equal(copy(x), policy(x))
        assert torch.equal(copy.log_std, policy.log_std)
        assert torch.equal(copy.critic.forward(x), policy.critic.forward(x))
        assert copy.hidden == (7, 6)
        copy.theta.add_(1.0)
        assert not torch.equal(copy(x), policy(x)), "a copy is independent"
        assert not torch.equal(copy.critic.forward(x), policy.critic.forward(x)), "views follow theta"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("actor.0.weight", lambda t: t[:, :4], "actor.0.weight"),
        ("critic.1.bias", lambda t: t * float("nan"), "critic.1.bias holds numbers that are not finite"),
        ("log_std", None, "log_std is missing"),
        ("normaliser.std", lambda t: t * 0.0, "normaliser.std must be positive"),
        ("normaliser.clip", lambda t: t * 2.0, "normaliser.clip"),
    ],
)
def test_wrong_weights_are_named(name, change, said):
    policy = make()
    tensors = policy.tensors()
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    with pytest.raises(WeightsError, match=said):
        policy.load(tensors)


def test_foreign_tensors_are_no_policy():
    with pytest.raises(WeightsError, match=r"no actor\.0\.weight"):
        ActorCritic.from_tensors({"w": torch.zeros(2, 2)}, activation="elu")
    with pytest.raises(WeightsError, match="'gelu' is none of elu, tanh, relu"):
        ActorCritic.from_tensors(make().tensors(), activation="gelu")
    with pytest.raises(WeightsError, match="extra is not part"):
        make().load(make().tensors() | {"extra": torch.zeros(1)})
