"""The mathematics of proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), without state.

Time-outs bootstrap from the value of the *final* observation, terminations from zero, and generalised
advantages (arXiv 1506.02438) are cut at both. The gradient of the loss with respect to the policy's mean, its
log-std and the value is written out by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


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
    return z.square_().sum(-1).mul_(-0.5).sub_(log_std.sum() + 0.5 * LOG_2PI * means.shape[-1])


def gaussian_kl(mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:
    """Mean over the rows of KL(p ‖ q) of diagonal Gaussians, summed over the action's elements."""
    inverse = torch.exp(-2.0 * log_std_q)
    spread = (log_std_q - log_std_p + 0.5 * torch.exp(2.0 * log_std_p) * inverse - 0.5).sum()
    return (mean_p - mean_q).square_().mean(0).mul_(0.5 * inverse).sum() + spread


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Gradient of a minibatch's policy loss with respect to what the actor puts out, and the loss itself."""

    mean: Tensor  # (rows, act_dim)
    log_std: Tensor  # (act_dim,)
    loss: Tensor
    clip_fraction: Tensor


def policy_gradient(
    mean: Tensor,
    log_std: Tensor,
    *,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip: float,
    entropy: float,
) -> PolicyGradient:
    """Gradient of ``mean(−min(r A, clip(r, 1 ± clip) A)) − entropy H``.

    With ``z = (a − μ)/σ`` and ``r = π/π_old``: ``∂r/∂μ = r z/σ`` and ``∂r/∂log σ = r (z² − 1)``.
    The surrogate has no gradient where the ratio has left the clip range towards the side that its
    advantage rewards. ``H = Σ log σ + const``.

    Args:
        mean: (rows, act_dim) of the current policy.
        log_std: (act_dim,) of the current policy.
        actions: (rows, act_dim).
        old_log_probs: (rows,) of the policy that acted.
        advantages: (rows,) normalised.
        clip: ε of the surrogate.
        entropy: Weight of the entropy bonus.
    """
    inverse_std = torch.exp(-log_std)
    z = (actions - mean).mul_(inverse_std)
    z_squared = z.square()
    log_probs = z_squared.sum(-1).mul_(-0.5).sub_(log_std.sum() + 0.5 * LOG_2PI * mean.shape[-1])
    ratio = log_probs.sub_(old_log_probs).exp_()
    surrogate = ratio * advantages
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip).mul_(advantages)
    # Where the clipped surrogate is the smaller one it is constant: ∂L/∂log π = −A r / rows elsewhere.
    pull = surrogate.masked_fill(clipped < surrogate, 0.0).div_(-mean.shape[0])
    return PolicyGradient(
        mean=z.mul_(inverse_std).mul_(pull.unsqueeze(-1)),
        log_std=torch.mv(z_squared.sub_(1.0).t(), pull).sub_(entropy),
        loss=torch.minimum(surrogate, clipped).mean().neg_(),
        clip_fraction=ratio.sub_(1.0).abs_().gt(clip).float().mean(),
    )


def value_gradient(
    value: Tensor, *, returns: Tensor, old_values: Tensor, coef: float, clip: float
) -> tuple[Tensor, Tensor]:
    """Gradient (rows, 1) of ``coef mean((V − R)²)`` with respect to the values, and the loss without `coef`.

    A `clip` above 0 bounds the step of the value: the loss is the larger of the plain one and that of
    ``V_old + clip(V − V_old, ± clip)``.

    Args:
        value: (rows, 1) of the current critic.
        returns: (rows,).
        old_values: (rows,) of the critic before the update.
        coef: Weight of the loss.
        clip: 0 for none.
    """
    error = value.squeeze(-1) - returns
    loss = error.square()
    if clip > 0.0:
        step = value.squeeze(-1) - old_values
        bounded = step.clamp(-clip, clip).add_(old_values).sub_(returns).square_()
        # The bounded branch is constant in V wherever it differs from the plain one.
        error.masked_fill_(bounded > loss, 0.0)
        loss = torch.maximum(loss, bounded)
    return error.mul_(2.0 * coef / value.shape[0]).unsqueeze_(-1), loss.mean()
