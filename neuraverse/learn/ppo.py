"""Proximal policy optimisation on plain tensors (Schulman et al. 2017, arXiv 1707.06347).

The gradient of the loss with respect to the policy's mean, log-std and value is written by hand; the networks
carry it further. Time-outs bootstrap from the value of the *final* observation, terminations from zero, and
generalised advantages (arXiv 1506.02438) are cut at both. The learning rate follows the KL divergence between
the old and the new policy. Two hooks serve a learner that starts from a parent skill: critic-only updates, and
a KL penalty towards the parent's policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuraverse.errors import TrainingError
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.recipe import PpoSettings

_LOG_2PI = math.log(2.0 * math.pi)
_LR_FACTOR = 1.5  # the learning rate is multiplied or divided by this, when the KL is off by a factor of 2


def gae(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates.

    ``δ_t = r_t + γ V'_t − V_t`` and ``A_t = δ_t + γ λ A_{t+1}``, where ``V'_t`` is 0 after a termination, the
    value of the final observation after a truncation, else ``V_{t+1}``; the sum is cut after either.

    Args:
        rewards: (T, N).
        values: (T + 1, N) values of the observations acted upon, and of the one after the last step.
        terminated: (T, N) bool, the episode ended for good in that step.
        truncated: (T, N) bool, the episode was cut off; where both hold, termination wins.
        final_values: (T, N) value of the final observation, read only where truncated.
        gamma: Discount per step.
        lam: λ of GAE.

    Returns:
        (T, N) advantages.
    """
    ended = terminated | truncated
    following = torch.where(truncated, final_values, values[1:]).masked_fill_(terminated, 0.0)
    advantages = torch.add(rewards, following, alpha=gamma).sub_(values[:-1])
    carry = (~ended).to(advantages.dtype).mul_(gamma * lam)
    for t in range(advantages.shape[0] - 2, -1, -1):
        advantages[t].addcmul_(carry[t], advantages[t + 1])
    return advantages


def log_prob(actions: Tensor, means: Tensor, log_std: Tensor) -> Tensor:
    """Log density (rows,) of a diagonal Gaussian, for `actions` and `means` (rows, act_dim)."""
    z = (actions - means).mul_(torch.exp(-log_std))
    return z.square_().sum(-1).mul_(-0.5).sub_(log_std.sum() + 0.5 * _LOG_2PI * means.shape[-1])


def gaussian_kl(mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:
    """Mean over the rows of KL(p ‖ q) of diagonal Gaussians, summed over the action's elements."""
    inverse = torch.exp(-2.0 * log_std_q)
    spread = (log_std_q - log_std_p + 0.5 * torch.exp(2.0 * log_std_p) * inverse - 0.5).sum()
    return (mean_p - mean_q).square_().mean(0).mul_(0.5 * inverse).sum() + spread


@dataclass(frozen=True, kw_only=True)
class LossGradient:
    """Gradient of a minibatch's loss with respect to what the networks put out, and the loss itself."""

    mean: Tensor  # (rows, act_dim)
    log_std: Tensor  # (act_dim,)
    value: Tensor  # (rows, 1)
    policy_loss: Tensor
    value_loss: Tensor
    clip_fraction: Tensor


def loss_gradient(
    mean: Tensor,
    log_std: Tensor,
    value: Tensor,
    *,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    returns: Tensor,
    old_values: Tensor,
    clip: float,
    entropy: float,
    value_coef: float,
    value_clip: float,
) -> LossGradient:
    """Gradient of ``mean(−min(r A, clip(r, 1 ± clip) A) + value_coef (V − R)²) − entropy H``.

    With ``z = (a − μ)/σ`` and ``r = π/π_old``: ``∂r/∂μ = r z/σ`` and ``∂r/∂log σ = r (z² − 1)``. The surrogate has no
    gradient where the ratio has left the clip range towards the side that its advantage rewards.
    ``H = Σ log σ + const``. A `value_clip` above 0 bounds the step of the value as in SB3 and rsl_rl: the loss
    is the larger of the plain one and that of ``V_old + clip(V − V_old, ± value_clip)``.

    Args:
        mean: (rows, act_dim) of the current policy.
        log_std: (act_dim,) of the current policy.
        value: (rows, 1) of the current critic.
        actions: (rows, act_dim).
        old_log_probs: (rows,) of the policy that acted.
        advantages: (rows,) normalised.
        returns: (rows,).
        old_values: (rows,).
        clip: ε of the surrogate.
        entropy: Weight of the entropy bonus.
        value_coef: Weight of the value loss.
        value_clip: 0 for none.
    """
    rows = mean.shape[0]
    inverse_std = torch.exp(-log_std)
    z = (actions - mean).mul_(inverse_std)
    z_squared = z.square()
    log_probs = z_squared.sum(-1).mul_(-0.5).sub_(log_std.sum() + 0.5 * _LOG_2PI * mean.shape[-1])
    ratio = log_probs.sub_(old_log_probs).exp_()
    surrogate = ratio * advantages
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip).mul_(advantages)
    # Where the clipped surrogate is the smaller one it is constant: ∂L/∂log π = −A r / rows elsewhere.
    pull = surrogate.masked_fill(clipped < surrogate, 0.0).div_(-rows)
    mean_grad = z.mul_(inverse_std).mul_(pull.unsqueeze(-1))
    log_std_grad = torch.mv(z_squared.sub_(1.0).t(), pull).sub_(entropy)

    error = value.squeeze(-1) - returns
    value_loss = error.square()
    if value_clip > 0.0:
        step = value.squeeze(-1) - old_values
        bounded = step.clamp(-value_clip, value_clip).add_(old_values).sub_(returns).square_()
        # The bounded branch is constant in V wherever it differs from the plain one.
        error.masked_fill_(bounded > value_loss, 0.0)
        value_loss = torch.maximum(value_loss, bounded)
    return LossGradient(
        mean=mean_grad,
        log_std=log_std_grad,
        value=error.mul_(2.0 * value_coef / rows).unsqueeze_(-1),
        policy_loss=torch.minimum(surrogate, clipped).mean().neg_(),
        value_loss=value_loss.mean(),
        clip_fraction=ratio.sub_(1.0).abs_().gt(clip).float().mean(),
    )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A parent's policy to stay near to.

    Attributes:
        policy: The parent; it is only read.
        success: Its own success rate on this task.
    """

    policy: ActorCritic
    success: float

    def gate(self, success: float | None) -> float:
        """QDagger's λ (arXiv 2206.01626): 1 while the learner fails, 0 once it does as well as its parent."""
        if self.success <= 0.0:
            return 0.0
        return max(1.0 - (success or 0.0) / self.success, 0.0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rollout, flattened to (rows, ...). Observations are normalised, advantages are not.

    Attributes:
        observations: (rows, obs_dim).
        actions: (rows, act_dim) as drawn, before clipping to the action range.
        means: (rows, act_dim) of the policy that drew them.
        log_std: (act_dim,) of the policy that drew them.
        values: (rows,) before the update.
        advantages: (rows,).
        teacher_means: (rows, act_dim) of the parent, if there is one.
    """

    observations: Tensor
    actions: Tensor
    means: Tensor
    log_std: Tensor
    values: Tensor
    advantages: Tensor
    teacher_means: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateStats:
    """Means over the minibatches of one update."""

    policy_loss: float
    value_loss: float
    clip_fraction: float
    kl: float
    entropy: float
    explained_variance: float
    std: float
    lr: float
    teacher_weight: float


class Ppo:
    """Updates an `ActorCritic` in place, one rollout at a time.

    Args:
        policy: The networks to improve.
        settings: Hyperparameters.
        generator: Source of the minibatch order, on the policy's device.

    Attributes:
        lr: Learning rate; adapts.
    """

    def __init__(self, policy: ActorCritic, settings: PpoSettings, generator: torch.Generator) -> None:
        self.policy = policy
        self.settings = settings
        self.generator = generator
        self.lr = settings.lr
        policy.theta.grad = policy.grad
        self.optimiser = torch.optim.Adam([policy.theta], lr=self.lr, eps=1e-8, fused=True)
        self._rows = -1

    def _workspace(self, rows: int) -> None:
        if rows != self._rows:
            self._rows = rows
            self._actor_out, self._critic_out = (
                m.workspace(rows) for m in (self.policy.actor, self.policy.critic)
            )
            self._scratch = self.policy.critic.workspace(rows)

    @torch.no_grad()
    def update(
        self,
        batch: Batch,
        *,
        critic_only: bool = False,
        teacher: Teacher | None = None,
        teacher_weight: float = 0.0,
    ) -> UpdateStats:
        """Run all epochs over one batch.

        Args:
            batch: What was collected with the current policy.
            critic_only: Leave actor and log-std as they are.
            teacher: The parent that `batch.teacher_means` came from.
            teacher_weight: Weight of KL(own ‖ parent), gate included.

        Raises:
            TrainingError: A gradient is not finite.
        """
        s = self.settings
        policy = self.policy
        rows = batch.advantages.shape[0] // s.minibatches
        self._workspace(rows)
        log_probs = log_prob(batch.actions, batch.means, batch.log_std)
        returns = batch.advantages + batch.values
        spread, centre = torch.std_mean(batch.advantages)
        columns = [
            batch.observations,
            batch.actions,
            batch.means,
            log_probs.unsqueeze(-1),
            ((batch.advantages - centre) / (spread + 1e-8)).unsqueeze(-1),
            returns.unsqueeze(-1),
            batch.values.unsqueeze(-1),
        ]
        if teacher is not None and teacher_weight > 0.0 and batch.teacher_means is not None:
            columns.append(batch.teacher_means)
        widths = [c.shape[1] for c in columns]
        packed = torch.cat(columns, 1)  # one gather per epoch instead of one per quantity
        shuffled = torch.empty_like(packed)
        sums = torch.zeros(4, device=packed.device)
        for _ in range(s.epochs):
            order = torch.randperm(packed.shape[0], generator=self.generator, device=packed.device)
            torch.index_select(packed, 0, order, out=shuffled)
            for part in shuffled.split(rows):
                sums += self._minibatch(
                    part.split(widths, 1), batch.log_std, critic_only, teacher, teacher_weight
                )
        policy_loss, value_loss, clip_fraction, kl = (sums / (s.epochs * s.minibatches)).tolist()
        unexplained = (returns - batch.values).var() / returns.var().clamp_min(1e-12)
        return UpdateStats(
            policy_loss=policy_loss,
            value_loss=value_loss,
            clip_fraction=clip_fraction,
            kl=kl,
            entropy=float(policy.log_std.sum()) + 0.5 * (1.0 + _LOG_2PI) * policy.act_dim,
            explained_variance=1.0 - float(unexplained),
            std=float(policy.log_std.exp().mean()),
            lr=self.lr,
            teacher_weight=teacher_weight if len(columns) == 8 else 0.0,
        )

    def _minibatch(
        self,
        columns: tuple[Tensor, ...],
        old_log_std: Tensor,
        critic_only: bool,
        teacher: Teacher | None,
        teacher_weight: float,
    ) -> Tensor:
        s = self.settings
        policy = self.policy
        observations, actions, old_means, old_log_probs, advantages, returns, old_values = columns[:7]
        value = policy.critic.forward(observations, self._critic_out)
        mean = old_means if critic_only else policy.actor.forward(observations, self._actor_out)
        g = loss_gradient(
            mean,
            policy.log_std,
            value,
            actions=actions,
            old_log_probs=old_log_probs.squeeze(-1),
            advantages=advantages.squeeze(-1),
            returns=returns.squeeze(-1),
            old_values=old_values.squeeze(-1),
            clip=s.clip,
            entropy=s.entropy,
            value_coef=s.value_coef,
            value_clip=s.value_clip,
        )
        policy.critic.backward(observations, self._critic_out, g.value, self._scratch)
        if critic_only:
            policy.grad[: policy.split].zero_()
            kl = torch.zeros((), device=mean.device)
        else:
            kl = gaussian_kl(old_means, old_log_std, mean, policy.log_std)
            self._adapt(float(kl))
            if len(columns) == 8 and teacher is not None:
                # ∂KL(π‖π_T)/∂μ = (μ − μ_T)/σ_T²,  ∂/∂log σ = σ²/σ_T² − 1
                precision = torch.exp(-2.0 * teacher.policy.log_std)
                g.mean.addcmul_(mean - columns[7], precision, value=teacher_weight / mean.shape[0])
                g.log_std.add_(torch.exp(2.0 * policy.log_std) * precision - 1.0, alpha=teacher_weight)
            policy.actor.backward(observations, self._actor_out, g.mean, self._scratch)
            policy.log_std_grad.copy_(g.log_std)
        self._clip_gradients()
        self.optimiser.step()
        return torch.stack((g.policy_loss, g.value_loss, g.clip_fraction, kl))

    def _adapt(self, kl: float) -> None:
        s = self.settings
        if s.desired_kl <= 0.0:
            return
        if kl > 2.0 * s.desired_kl:
            self.lr = max(self.lr / _LR_FACTOR, s.lr_min)
        elif 0.0 < kl < 0.5 * s.desired_kl:
            self.lr = min(self.lr * _LR_FACTOR, s.lr_max)
        self.optimiser.param_groups[0]["lr"] = self.lr

    def _clip_gradients(self) -> None:
        """Clip actor and critic each to its own norm, so that a large value loss cannot mute the actor."""
        policy = self.policy
        for grad in (policy.grad[: policy.split], policy.grad[policy.split :]):
            norm = float(torch.linalg.vector_norm(grad))
            if not math.isfinite(norm):
                raise TrainingError(
                    "learning diverged: a gradient is not finite",
                    remedy="lower ppo.lr_max or ppo.desired_kl, and look for rewards or observations that explode",
                )
            if norm > self.settings.max_grad_norm:
                grad.mul_(self.settings.max_grad_norm / norm)

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's state, for a checkpoint; empty before the first step."""
        return {k: v.detach().cpu().clone() for k, v in self.optimiser.state[self.policy.theta].items()}

    def load(self, tensors: dict[str, Tensor], lr: float) -> None:
        """Take over what `tensors` and `lr` were."""
        self.lr = lr
        self.optimiser.param_groups[0]["lr"] = lr
        device = self.policy.theta.device
        self.optimiser.state[self.policy.theta] = {k: v.to(device, copy=True) for k, v in tensors.items()}
