"""Advantages, clipping and the hand-written gradient, worked by hand and against autograd."""

import math

import pytest
import torch

from neuraverse.learn.objective import gae, gaussian_kl, log_prob, policy_gradient, value_gradient


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def flags(*values):
    return torch.tensor(values).unsqueeze(1)


def test_gae_of_an_episode_that_goes_on():
    # gamma = 1/2, lambda = 1/2, rewards 1, 2, 3; values 4, 2, 8 and 6 for what comes after.
    # delta = 1 + 2/2 - 4 = -2;  2 + 8/2 - 2 = 4;  3 + 6/2 - 8 = -2
    # A_2 = -2;  A_1 = 4 + (1/4)(-2) = 3.5;  A_0 = -2 + (1/4)(3.5) = -1.125
    no = flags(False, False, False)
    found = gae(column(1, 2, 3), column(4, 2, 8, 6), no, no, column(9, 9, 9), gamma=0.5, lam=0.5)
    assert found.squeeze(1).tolist() == [-1.125, 3.5, -2.0]


def test_gae_after_a_termination_nothing_follows():
    # Terminated in step 1: V' = 0 there, and nothing of step 2 leaks back.
    # delta_1 = 2 + 0 - 2 = 0;  A_1 = 0;  A_0 = -2 + (1/4)(0) = -2;  delta_2 = -2 as before
    no, ends = flags(False, False, False), flags(False, True, False)
    found = gae(column(1, 2, 3), column(4, 2, 8, 6), ends, no, column(9, 9, 9), gamma=0.5, lam=0.5)
    assert found.squeeze(1).tolist() == [-2.0, 0.0, -2.0]


def test_gae_after_a_truncation_the_final_observation_counts():
    # Truncated in step 1 with V(final_obs) = 10, not with V(next episode's first observation) = 8.
    # delta_1 = 2 + 10/2 - 2 = 5;  A_1 = 5 (cut);  A_0 = -2 + (1/4)(5) = -0.75
    no, cut = flags(False, False, False), flags(False, True, False)
    found = gae(column(1, 2, 3), column(4, 2, 8, 6), no, cut, column(9, 10, 9), gamma=0.5, lam=0.5)
    assert found.squeeze(1).tolist() == [-0.75, 5.0, -2.0]


def test_gae_termination_wins_over_truncation():
    no, both = flags(False, False, False), flags(False, True, False)
    one = gae(column(1, 2, 3), column(4, 2, 8, 6), both, both, column(9, 10, 9), gamma=0.5, lam=0.5)
    other = gae(column(1, 2, 3), column(4, 2, 8, 6), both, no, column(9, 10, 9), gamma=0.5, lam=0.5)
    assert torch.equal(one, other)


def test_gae_in_the_last_step_of_a_rollout():
    # One step, r = 1, V = 2, V' = 8: 1 + 4 - 2 = 3; terminated: -1; truncated, V(final) = 4: 1 + 2 - 2 = 1
    yes, no = flags(True), flags(False)
    for ended, cut, wanted in ((no, no, 3.0), (yes, no, -1.0), (no, yes, 1.0)):
        assert gae(column(1), column(2, 8), ended, cut, column(4), gamma=0.5, lam=0.5).item() == wanted


def test_gae_keeps_environments_apart():
    torch.manual_seed(0)
    rewards, values, final = torch.randn(5, 3), torch.randn(6, 3), torch.randn(5, 3)
    ended, cut = torch.rand(5, 3) < 0.3, torch.rand(5, 3) < 0.3
    together = gae(rewards, values, ended, cut, final, gamma=0.9, lam=0.8)
    for i in range(3):
        pick = [x[:, i : i + 1] for x in (rewards, values, ended, cut, final)]
        assert torch.allclose(gae(*pick, gamma=0.9, lam=0.8), together[:, i : i + 1])


def test_log_prob_by_hand():
    # sigma = 2, a - mu = 2: -1/2 - ln 2 - ln(2 pi)/2, twice for two elements
    found = log_prob(torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([2.0, 2.0]).log())
    assert found.item() == pytest.approx(2 * (-0.5 - math.log(2) - 0.5 * math.log(2 * math.pi)))


def test_kl_by_hand():
    # Same sigma = 2, means 2 apart: (2/2)^2 / 2 = 1/2.  Same mean, sigma 1 against 2: ln 2 + 1/8 - 1/2.
    zero, two = torch.zeros(1), torch.tensor([2.0]).log()
    assert gaussian_kl(torch.tensor([[2.0]]), two, torch.tensor([[0.0]]), two).item() == pytest.approx(0.5)
    found = gaussian_kl(torch.zeros(3, 1), zero, torch.zeros(3, 1), two)
    assert found.item() == pytest.approx(math.log(2) + 1 / 8 - 1 / 2)


def one_row(ratio: float, advantage: float, **changes):
    """A row with mu = 0, sigma = 1, a = 1: z = 1, d log pi / d mu = 1."""
    now = log_prob(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1))
    return policy_gradient(
        torch.zeros(1, 1),
        torch.zeros(1),
        actions=torch.ones(1, 1),
        old_log_probs=now - math.log(ratio),
        advantages=torch.tensor([advantage]),
        **({"clip": 0.2, "entropy": 0.0} | changes),
    )


def one_value(clip):
    """A row with V = 3, V before = 2, R = 5."""
    returns, before = torch.tensor([5.0]), torch.tensor([2.0])
    return value_gradient(torch.tensor([[3.0]]), returns=returns, old_values=before, coef=1.0, clip=clip)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Inside the range: loss -r A, d loss / d mu = -A r z / sigma.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        # Gone further where the advantage wants it: held at 1.2 A or 0.8 A, no gradient.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        # Gone the wrong way: the plain term is the worse one, and pulls back with full force.
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, slope):
    found = one_row(ratio, advantage)
    assert found.loss.item() == pytest.approx(loss, abs=1e-5)
    assert found.mean.item() == pytest.approx(slope, abs=1e-5)
    # z = 1: d log pi / d log sigma = z^2 - 1 = 0
    assert found.log_std.item() == pytest.approx(0.0, abs=1e-5)
    assert found.clip_fraction.item() == (0.0 if 0.8 <= ratio <= 1.2 else 1.0)


def test_value_loss_and_its_clipping_by_hand():
    # V = 3, R = 5: (3 - 5)^2 = 4, slope 2 (3 - 5) = -4.
    slope, loss = one_value(clip=0.0)
    assert (loss.item(), slope.item()) == (4.0, -4.0)
    # V_old = 2, step 1 bounded to 0.5: (2.5 - 5)^2 = 6.25 is the larger one, and constant in V.
    slope, loss = one_value(clip=0.5)
    assert (loss.item(), slope.item()) == (6.25, 0.0)


@pytest.mark.parametrize("value_clip", [0.0, 0.3])
def test_gradient_equals_autograd(value_clip):
    torch.manual_seed(1)
    rows, width = 64, 3
    mean = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    log_std = torch.randn(width, dtype=torch.float64).mul(0.3).requires_grad_()
    value = torch.randn(rows, 1, dtype=torch.float64, requires_grad=True)
    actions, advantages = torch.randn(rows, width).double(), torch.randn(rows).double()
    returns, old_values = torch.randn(rows).double(), torch.randn(rows).double()
    normal = torch.distributions.Normal(mean, log_std.exp())
    log_probs = normal.log_prob(actions).sum(1)
    old = log_probs.detach() + 0.3 * torch.randn(rows).double()
    ratio = (log_probs - old).exp()
    policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    value_loss = (value.squeeze(1) - returns).square()
    if value_clip:
        step = (value.squeeze(1) - old_values).clamp(-value_clip, value_clip)
        value_loss = torch.maximum(value_loss, (old_values + step - returns).square())
    loss = policy_loss + 0.7 * value_loss.mean() - 0.01 * normal.entropy().sum(1).mean()
    loss.backward()
    found = policy_gradient(
        mean.detach(),
        log_std.detach(),
        actions=actions,
        old_log_probs=old,
        advantages=advantages,
        clip=0.2,
        entropy=0.01,
    )
    slope, squared = value_gradient(
        value.detach(), returns=returns, old_values=old_values, coef=0.7, clip=value_clip
    )
    assert torch.allclose(found.mean, mean.grad)
    assert torch.allclose(found.log_std, log_std.grad)
    assert torch.allclose(slope, value.grad)
    assert found.loss.item() == pytest.approx(policy_loss.item())
    assert squared.item() == pytest.approx(value_loss.mean().item())
