"""The update: what moves, what must not, and how fast."""

import dataclasses

import pytest
import torch

from neuraverse.errors import TrainingError
from neuraverse.learn.objective import gaussian_kl
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.ppo import Batch, Ppo, Teacher
from neuraverse.learn.recipe import PpoSettings

ROWS = 64


def make(seed: int = 0, **settings) -> Ppo:
    policy = ActorCritic(4, 2, hidden=(16,), generator=torch.Generator().manual_seed(seed))
    chosen = PpoSettings(**({"minibatches": 2, "desired_kl": 0.0, "entropy": 0.0} | settings))
    return Ppo(policy, chosen, torch.Generator().manual_seed(seed))


def batch_for(policy: ActorCritic, teacher: ActorCritic | None = None, advantages=None) -> Batch:
    torch.manual_seed(0)
    observations = torch.randn(ROWS, 4)
    means = policy.actor.forward(observations)
    actions = means + policy.log_std.exp() * torch.randn(ROWS, 2)
    return Batch(
        observations=observations,
        actions=actions,
        means=means,
        log_std=policy.log_std.clone(),
        values=policy.critic.forward(observations).squeeze(1),
        advantages=torch.randn(ROWS) if advantages is None else advantages(actions),
        teacher_means=None if teacher is None else teacher.actor.forward(observations),
    )


def test_the_mean_moves_to_where_the_advantage_is():
    ppo = make()
    batch = batch_for(ppo.policy, advantages=lambda actions: actions[:, 0] - actions[:, 1])
    ppo.update(batch)
    moved = (ppo.policy.actor.forward(batch.observations) - batch.means).mean(0)
    assert moved[0] > 0.01
    assert moved[1] < -0.01


def test_the_critic_moves_to_the_returns():
    ppo = make(lr=1e-2)
    batch = batch_for(ppo.policy)
    returns = batch.advantages + batch.values
    before = (batch.values - returns).square().mean()
    ppo.update(batch)
    after = (ppo.policy.critic.forward(batch.observations).squeeze(1) - returns).square().mean()
    assert after < 0.9 * before


def test_critic_only_leaves_the_actor_bit_by_bit():
    ppo = make()
    before = ppo.policy.theta.clone()
    stats = ppo.update(batch_for(ppo.policy), critic_only=True)
    assert torch.equal(ppo.policy.theta[: ppo.policy.split], before[: ppo.policy.split])
    assert not torch.equal(ppo.policy.theta[ppo.policy.split :], before[ppo.policy.split :])
    assert stats.kl == 0.0


def test_entropy_bonus_widens_the_noise():
    narrow, wide = make(entropy=0.0), make(entropy=10.0)
    flat = {"advantages": lambda actions: torch.zeros(ROWS)}
    narrow.update(batch_for(narrow.policy, **flat))
    wide.update(batch_for(wide.policy, **flat))
    assert (wide.policy.log_std > narrow.policy.log_std).all()


@pytest.mark.parametrize(("start", "direction"), [(1e-2, -1), (1e-5, 1)])
def test_learning_rate_follows_the_kl(start, direction):
    ppo = make(desired_kl=0.01, lr=start)
    stats = ppo.update(batch_for(ppo.policy, advantages=lambda actions: actions[:, 0]))
    assert (stats.lr - start) * direction > 0
    assert 1e-5 <= stats.lr <= 1e-2
    assert ppo.optimiser.param_groups[0]["lr"] == stats.lr


def test_learning_rate_stays_without_a_desired_kl():
    ppo = make(desired_kl=0.0, lr=3e-4)
    assert ppo.update(batch_for(ppo.policy)).lr == 3e-4


def test_teacher_pulls_the_policy_to_itself():
    teacher = Teacher(policy=make(seed=7).policy, success=0.8)
    teacher.policy.actor.biases[-1].fill_(0.5)
    teacher.policy.log_std.fill_(-0.5)

    def distance_after(weight: float) -> float:
        ppo = make(lr=1e-2)
        batch = batch_for(ppo.policy, teacher.policy, advantages=lambda actions: torch.zeros(ROWS))
        stats = ppo.update(batch, teacher=teacher, teacher_weight=weight)
        assert stats.teacher_weight == weight
        means = ppo.policy.actor.forward(batch.observations)
        kl = gaussian_kl(means, ppo.policy.log_std, batch.teacher_means, teacher.policy.log_std)
        return kl.item()

    assert distance_after(1.0) < 0.9 * distance_after(0.0)


def test_teacher_gradient_is_that_of_the_kl():
    # With no advantage and no entropy the actor's gradient is weight × ∂KL(π‖π_T): compare with autograd.
    teacher = Teacher(policy=make(seed=7).policy, success=0.8)
    ppo = make(epochs=1, minibatches=1, max_grad_norm=1e9, lr=1e-5)
    batch = batch_for(ppo.policy, teacher.policy, advantages=lambda actions: torch.zeros(ROWS))
    mean, log_std = batch.means.clone().requires_grad_(), batch.log_std.clone().requires_grad_()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_std.exp()),
        torch.distributions.Normal(batch.teacher_means, teacher.policy.log_std.exp()),
    )
    (0.3 * kl.sum(1).mean()).backward()
    ppo.update(batch, teacher=teacher, teacher_weight=0.3)
    assert torch.allclose(ppo.policy.log_std_grad, log_std.grad, atol=1e-6)
    assert torch.allclose(ppo.policy.actor.bias_grads[-1], mean.grad.sum(0), atol=1e-6)


def test_gate_is_one_minus_the_ratio_of_success():
    teacher = Teacher(policy=make().policy, success=0.4)
    assert teacher.gate(None) == 1.0
    assert teacher.gate(0.1) == pytest.approx(0.75)
    assert teacher.gate(0.4) == 0.0
    assert teacher.gate(0.9) == 0.0
    assert Teacher(policy=teacher.policy, success=0.0).gate(0.0) == 0.0, (
        "a teacher that fails teaches nothing"
    )


def test_gradients_are_clipped_apart():
    ppo = make(max_grad_norm=0.1)
    ppo.policy.grad.fill_(1.0)
    ppo.policy.grad[: ppo.policy.split] = 1e-4
    ppo._clip_gradients()
    assert ppo.policy.grad[ppo.policy.split :].norm().item() == pytest.approx(0.1, rel=1e-4)
    assert (ppo.policy.grad[: ppo.policy.split] == 1e-4).all(), (
        "a small actor's gradient is not scaled with it"
    )


def test_divergence_is_an_error():
    ppo = make()
    batch = batch_for(ppo.policy)
    broken = dataclasses.replace(batch, observations=batch.observations * float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        ppo.update(broken)


def test_explained_variance():
    ppo = make(lr=1e-5)
    batch = batch_for(ppo.policy, advantages=lambda actions: torch.zeros(ROWS))
    assert ppo.update(batch).explained_variance == pytest.approx(1.0)


def test_two_threads_give_the_numbers_of_one():
    alone, beside = make(), make()
    beside.use_threads(2)
    stats = [ppo.update(batch_for(ppo.policy)) for ppo in (alone, beside)]
    beside.use_threads(1)
    assert torch.equal(alone.policy.theta, beside.policy.theta)
    assert stats[0] == stats[1]
