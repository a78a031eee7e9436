"""Collecting rollouts: the environments are stepped with the exploring policy into preallocated storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from neuraverse.errors import TrainingError
from neuraverse.learn.envs import Step, TorchEnv
from neuraverse.learn.objective import gae
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.ppo import Batch, Teacher
from neuraverse.learn.recipe import PpoSettings

_WINDOW = 100  # episodes, or one per environment if those are more


class Collector:
    """Steps environments and turns what happened into a `Batch`.

    Args:
        env: Where.
        policy: Acts; updated in place by others between two calls.
        settings: Rollout length, γ, λ, reward scale.
        generator: Source of the exploration noise, on the policy's device.

    Attributes:
        ready: Whether the policy's normaliser is settled.
        window: Return, length and success of the last episodes.
    """

    def __init__(
        self, env: TorchEnv, policy: ActorCritic, settings: PpoSettings, generator: torch.Generator
    ) -> None:
        self.env = env
        self.policy = policy
        self.settings = settings
        self.generator = generator
        self.ready = settings.normaliser_batches == 0
        size = max(_WINDOW, env.num_envs)
        self.window: dict[str, deque[float]] = {
            name: deque(maxlen=size) for name in ("return", "length", "success")
        }
        steps, count, device = settings.steps, env.num_envs, policy.device
        self._obs = torch.zeros(steps + 1, count, env.obs_dim, device=device)  # normalised
        self._means = torch.zeros(steps, count, env.act_dim, device=device)
        self._actions = torch.zeros(steps, count, env.act_dim, device=device)
        self._rewards = torch.zeros(steps, count, device=device)
        self._terminated = torch.zeros(steps, count, dtype=torch.bool, device=device)
        self._truncated = torch.zeros(steps, count, dtype=torch.bool, device=device)
        self._raw = torch.zeros(count, env.obs_dim, device=device)  # what comes next, not normalised
        self._return = torch.zeros(count, device=device)
        self._length = torch.zeros(count, device=device)

    def reset(self, seed: int) -> None:
        """Begin new episodes."""
        self._raw.copy_(self.env.reset(seed))
        self._return.zero_()
        self._length.zero_()

    @torch.no_grad()
    def fit_normaliser(self) -> int:
        """Act with noise alone and settle the normaliser on what was seen; returns the steps spent."""
        s = self.settings
        seen = []
        for _ in range(s.normaliser_batches * s.steps):
            seen.append(self._raw.clone())
            noise = torch.empty_like(self._actions[0]).normal_(generator=self.generator)
            self._advance(noise.mul_(self.policy.log_std.exp()).clamp_(-1.0, 1.0))
        self.policy.freeze_normaliser(torch.cat(seen))
        self.ready = True
        return len(seen) * self.env.num_envs

    @torch.no_grad()
    def collect(self, teacher: Teacher | None = None) -> Batch:
        """One rollout of ``settings.steps`` steps in every environment.

        Args:
            teacher: A parent whose means are wanted for the same observations.

        Raises:
            TrainingError: A reward or an observation is not finite.
        """
        s, policy = self.settings, self.policy
        std = policy.log_std.exp()
        noise = torch.empty_like(self._actions).normal_(generator=self.generator)
        outputs = policy.actor.workspace(self.env.num_envs)
        timed_out: list[tuple[int, Tensor, Tensor]] = []  # step, environments, final observations
        for t in range(s.steps):
            policy.normalise(self._raw, out=self._obs[t])
            self._means[t] = policy.actor.forward(self._obs[t], outputs)
            torch.addcmul(self._means[t], noise[t], std, out=self._actions[t])
            step = self._advance(self._actions[t].clamp(-1.0, 1.0))
            self._rewards[t] = step.reward
            self._terminated[t] = step.terminated
            self._truncated[t] = step.truncated
            if len(step.ended):
                cut = step.ended[~step.terminated[step.ended]]
                if len(cut):
                    timed_out.append((t, cut, self.env.final_obs(step.infos, cut)))
        policy.normalise(self._raw, out=self._obs[s.steps])
        return self._batch(timed_out, teacher)

    def _batch(self, timed_out: list[tuple[int, Tensor, Tensor]], teacher: Teacher | None) -> Batch:
        s, policy = self.settings, self.policy
        values = policy.critic.forward(self._obs.flatten(0, 1)).view(s.steps + 1, -1)
        final_values = torch.zeros_like(values[1:])
        if timed_out:
            at = policy.critic.forward(policy.normalise(torch.cat([obs for _, _, obs in timed_out]))).squeeze(
                1
            )
            for (t, cut, _), value in zip(
                timed_out, torch.split(at, [len(cut) for _, cut, _ in timed_out]), strict=True
            ):
                final_values[t, cut] = value
        advantages = gae(
            self._rewards * s.reward_scale,
            values,
            self._terminated,
            self._truncated,
            final_values,
            gamma=s.gamma,
            lam=s.lam,
        )
        if not bool(torch.isfinite(advantages.sum())):
            raise TrainingError(
                "learning diverged: a reward, an observation or a value is not finite",
                remedy="run check_task() on the environment, or lower ppo.lr_max",
            )
        observations = self._obs[: s.steps].flatten(0, 1)
        return Batch(
            observations=observations,
            actions=self._actions.flatten(0, 1),
            means=self._means.flatten(0, 1),
            log_std=policy.log_std.clone(),
            values=values[: s.steps].flatten(),
            advantages=advantages.flatten(),
            teacher_means=None if teacher is None else self._teach(teacher.policy),
        )

    def _teach(self, parent: ActorCritic) -> Tensor:
        """The parent's means; its normaliser is the learner's own, since the learner began as its copy."""
        return parent.actor.forward(self._obs[: self.settings.steps].flatten(0, 1))

    def _advance(self, actions: Tensor) -> Step:
        """Step the environments and keep the books of their episodes."""
        step = self.env.step(actions)
        self._raw.copy_(step.obs)
        self._return += step.reward
        self._length += 1.0
        if len(step.ended):
            self.window["return"].extend(self._return[step.ended].tolist())
            self.window["length"].extend(self._length[step.ended].tolist())
            success = self.env.final_info(step.infos).get("success")
            if success is not None:
                self.window["success"].extend(float(success[i]) for i in step.ended.tolist())
            self._return[step.ended] = 0.0
            self._length[step.ended] = 0.0
        return step

    def recent(self, name: str) -> float | None:
        """Mean over the last episodes, or None before the first."""
        values = self.window[name]
        return sum(values) / len(values) if values else None

    def tensors(self) -> dict[str, Tensor]:
        """Where the episodes stand, for a checkpoint."""
        return {"obs": self._raw, "return": self._return, "length": self._length}

    def load(self, tensors: Mapping[str, Tensor], recent: Mapping[str, list[float]]) -> None:
        """Take over what `tensors` and `window` were."""
        self._raw.copy_(tensors["obs"])
        self._return.copy_(tensors["return"])
        self._length.copy_(tensors["length"])
        self.recall(recent)

    def recall(self, recent: Mapping[str, list[float]]) -> None:
        """Take over the last episodes' figures alone."""
        for name, values in recent.items():
            self.window[name].clear()
            self.window[name].extend(values)
