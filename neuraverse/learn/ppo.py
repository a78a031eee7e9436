"""Proximal policy optimisation on plain tensors: the update of the networks from one rollout.

The gradient of the loss (`neuraverse.learn.objective`) is carried through the networks. The learning rate
follows the KL divergence between the old and the new policy. Two hooks serve a learner that starts from a
parent skill: critic-only updates, and a KL penalty towards the parent's policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from neuraverse.errors import TrainingError
from neuraverse.learn.objective import LOG_2PI, gaussian_kl, log_prob, policy_gradient, value_gradient
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.recipe import PpoSettings

_LR_FACTOR = 1.5  # the learning rate is multiplied or divided by this, when the KL is off by a factor of 2


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
        self._side: ThreadPoolExecutor | None = None

    def use_threads(self, threads: int) -> None:
        """Let the update use `threads` CPUs; from two on, the critic learns beside the actor."""
        beside = threads > 1 and self.policy.device.type == "cpu"
        if beside and self._side is None:
            self._side = ThreadPoolExecutor(1, "critic", initializer=_settle, initargs=(threads // 2,))
        elif not beside and self._side is not None:
            self._side.shutdown()
            self._side = None

    def _workspace(self, rows: int) -> None:
        if rows != self._rows:
            self._rows = rows
            self._actor_out, self._critic_out = (
                m.workspace(rows) for m in (self.policy.actor, self.policy.critic)
            )
            self._actor_scratch, self._critic_scratch = (
                m.workspace(rows) for m in (self.policy.actor, self.policy.critic)
            )

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
            for part in shuffled.view(s.minibatches, rows, -1).unbind():
                sums += self._minibatch(
                    part.split_with_sizes(widths, 1), batch.log_std, critic_only, teacher, teacher_weight
                )
        policy_loss, value_loss, clip_fraction, kl = (sums / (s.epochs * s.minibatches)).tolist()
        unexplained = (returns - batch.values).var() / returns.var().clamp_min(1e-12)
        return UpdateStats(
            policy_loss=policy_loss,
            value_loss=value_loss,
            clip_fraction=clip_fraction,
            kl=kl,
            entropy=float(policy.log_std.sum()) + 0.5 * (1.0 + LOG_2PI) * policy.act_dim,
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
        critic = self._critic(observations, returns.squeeze(-1), old_values.squeeze(-1))
        kl = loss = clipped = torch.zeros((), device=policy.theta.device)
        if critic_only:
            policy.grad[: policy.split].zero_()
        else:
            mean = policy.actor.forward(observations, self._actor_out)
            g = policy_gradient(
                mean,
                policy.log_std,
                actions=actions,
                old_log_probs=old_log_probs.squeeze(-1),
                advantages=advantages.squeeze(-1),
                clip=s.clip,
                entropy=s.entropy,
            )
            loss, clipped = g.loss, g.clip_fraction
            kl = gaussian_kl(old_means, old_log_std, mean, policy.log_std)
            self._adapt(float(kl))
            if len(columns) == 8 and teacher is not None:
                # ∂KL(π‖π_T)/∂μ = (μ − μ_T)/σ_T²,  ∂/∂log σ = σ²/σ_T² − 1
                precision = torch.exp(-2.0 * teacher.policy.log_std)
                g.mean.addcmul_(mean - columns[7], precision, value=teacher_weight / mean.shape[0])
                g.log_std.add_(torch.exp(2.0 * policy.log_std) * precision - 1.0, alpha=teacher_weight)
            policy.actor.backward(observations, self._actor_out, g.mean, self._actor_scratch)
            policy.log_std_grad.copy_(g.log_std)
        value_loss = critic()
        self._clip_gradients()
        self.optimiser.step()
        return torch.stack((loss, value_loss, clipped, kl))

    def _critic(self, observations: Tensor, returns: Tensor, old_values: Tensor) -> Callable[[], Tensor]:
        """Start on the critic's gradient; what is returned waits for it and gives the loss.

        Actor and critic share nothing until the step. With two CPUs, each has one: on networks of this size
        that is faster than two threads inside every product, and the numbers are those of one CPU.
        """
        s = self.settings
        critic = self.policy.critic

        def work() -> Tensor:
            with torch.no_grad():  # the mode belongs to a thread
                value = critic.forward(observations, self._critic_out)
                grad, loss = value_gradient(
                    value, returns=returns, old_values=old_values, coef=s.value_coef, clip=s.value_clip
                )
                critic.backward(observations, self._critic_out, grad, self._critic_scratch)
                return loss

        if self._side is None:
            loss = work()
            return lambda: loss
        return self._side.submit(work).result

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
                    remedy="lower ppo.lr_max or ppo.desired_kl, and look for rewards that explode",
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


def _settle(threads: int) -> None:
    """Settings that belong to a thread."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
