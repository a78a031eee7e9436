"""The training loop: roll out, update, validate, checkpoint. A cut run goes on to the same numbers."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from neuraverse.errors import ConfigError, MissingExtraError
from neuraverse.learn import checkpoint
from neuraverse.learn.board import Board
from neuraverse.learn.denormals import flush_denormals
from neuraverse.learn.envs import TorchEnv, make_env
from neuraverse.learn.evaluation import Scored, check_sizes, evaluate, note_of, scored_of
from neuraverse.learn.policy import ActorCritic
from neuraverse.learn.ppo import Ppo, Teacher, UpdateStats
from neuraverse.learn.progress import Progress, Result
from neuraverse.learn.recipe import VALIDATION_SEED, Recipe
from neuraverse.learn.rollout import Collector


class Trainer:
    """Improves a policy in a vector environment.

    Args:
        env: Same-step autoreset; Box spaces.
        recipe: Hyperparameters; ``env`` and ``ppo.num_envs`` of the recipe are not looked at here.
        seed: Seeds weights, exploration and environments.
        device: CUDA if present and not said otherwise.
        run_dir: Where checkpoints and TensorBoard files go; a run found there is resumed. None keeps nothing.
        eval_env: Environments for validation; without them the training environments are used if their state
            can be put back, else there is no validation.
        callbacks: Called with a `Progress` after each iteration; `False` from one ends the run there.
        initial: A policy to start from, such as a parent's; it is copied, normaliser included.
        teacher: A parent to stay near to while it is better.

    Raises:
        ConfigError: The environment or the recipe does not suit, or `run_dir` holds another run.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        recipe: Recipe,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        run_dir: Path | str | None = None,
        eval_env: VectorEnv[Any, Any, Any] | None = None,
        callbacks: Iterable[Callable[[Progress], object]] = (),
        initial: ActorCritic | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if not 0 <= seed < 2**31:
            raise ConfigError(f"the seed {seed} is not between 0 and {2**31 - 1}")
        self.recipe = recipe
        self.seed = seed
        self.device = pick_device(device)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.env = TorchEnv(env, self.device)
        self.eval_env = eval_env
        self.callbacks = list(callbacks)
        self.teacher = teacher
        settings = recipe.ppo
        if self.env.num_envs * settings.steps % settings.minibatches:
            raise ConfigError(
                f"{self.env.num_envs} environments × {settings.steps} steps do not divide into "
                f"{settings.minibatches} minibatches",
                remedy="choose another ppo.minibatches",
            )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        if initial is None:
            self.policy = ActorCritic(
                self.env.obs_dim,
                self.env.act_dim,
                hidden=settings.hidden,
                activation=settings.activation,
                init_std=settings.init_std,
                device=self.device,
                generator=torch.Generator().manual_seed(seed),
            )
        else:
            check_sizes(initial, self.env)
            self.policy = ActorCritic.from_tensors(
                initial.tensors(), activation=initial.activation, device=self.device
            )
        self._warm = initial is not None
        self._origin = None if initial is None else _digest(self.policy)
        self.ppo = Ppo(self.policy, settings, self.generator)
        self.collector = Collector(self.env, self.policy, settings, self.generator)
        self.iteration = 0
        self.env_steps = 0
        self.validation_steps = 0
        self.curve: list[dict[str, float | None]] = []
        self.best: dict[str, Tensor] | None = None
        self.best_validation: Scored | None = None
        self._latest: Scored | None = None
        self._spent_wall = 0.0
        self._spent_cpu = 0.0
        self._started = False

    @classmethod
    def from_recipe(
        cls,
        name_or_path: str | Path | Recipe,
        overrides: Iterable[str] = (),
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        run_dir: Path | str | None = None,
        callbacks: Iterable[Callable[[Progress], object]] = (),
    ) -> Trainer:
        """A trainer with the environments that a recipe names; see `Recipe.load` for the errors."""
        recipe = name_or_path if isinstance(name_or_path, Recipe) else Recipe.load(name_or_path, overrides)
        env = make_env(recipe.env, recipe.ppo.num_envs)
        eval_env = make_env(recipe.env, recipe.validation.episodes) if recipe.validation.every else None
        return cls(
            env, recipe, seed=seed, device=device, run_dir=run_dir, eval_env=eval_env, callbacks=callbacks
        )

    def fit(
        self, total_steps: int | None = None, on_progress: Callable[[Progress], object] | None = None
    ) -> Result:
        """Train until the steps are spent or validation reaches ``validation.stop_lower``.

        Args:
            total_steps: Instead of the recipe's ``ppo.total_steps``; steps of earlier sittings count.
            on_progress: Called after each iteration, as the callbacks are.

        Raises:
            TrainingError: Learning diverged.
            StorageError: A checkpoint could not be written; the one before is still there.
        """
        total = self.recipe.ppo.total_steps if total_steps is None else total_steps
        with flush_denormals(), self._threads():
            return self._fit(total, on_progress)

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Share the CPUs between actor and critic instead of splitting every small product among them."""
        before = torch.get_num_threads()
        self.ppo.use_threads(before)
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, before // 2))
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self.ppo.use_threads(1)

    def _fit(self, total: int, on_progress: Callable[[Progress], object] | None) -> Result:
        settings = self.recipe.ppo
        wall, cpu = time.perf_counter(), time.process_time()
        self._begin()
        board = self._board()
        listeners: list[Callable[[Progress], object]] = [*self.callbacks, *board]
        if on_progress is not None:
            listeners.append(on_progress)
        base_wall, base_cpu, first_step = self._spent_wall, self._spent_cpu, self.env_steps
        reached = self._reached()
        while self.env_steps < total and not reached:
            if not self.collector.ready:
                self.env_steps += self.collector.fit_normaliser()
                continue
            update = self._iterate(total)
            validated = self._validate_if_due(last=self.env_steps >= total)
            reached = self._reached()
            seconds = time.perf_counter() - wall
            self._spent_wall, self._spent_cpu = base_wall + seconds, base_cpu + time.process_time() - cpu
            progress = self._progress(update, total, seconds, self.env_steps - first_step, validated)
            self.curve.append(progress.curve_entry())
            stop = any([listener(progress) is False for listener in listeners])
            last = stop or reached or self.env_steps >= total
            if self.run_dir is not None and (last or self.iteration % settings.checkpoint_every == 0):
                self.save()
            if stop:
                break
        for writer in board:
            writer.close()
        return self._result(reached)

    def _board(self) -> list[Board]:
        """The TensorBoard log, where there is a folder for it and the package is installed."""
        if self.run_dir is not None:
            with contextlib.suppress(MissingExtraError):
                return [Board(self.run_dir / "tensorboard")]
        return []

    def _begin(self) -> None:
        """Start the episodes, or take up the run found in `run_dir`."""
        if self._started:
            return
        self._started = True
        found = None if self.run_dir is None else checkpoint.load(self.run_dir)
        if found is not None:
            self._restore(*found)
            return
        self.collector.reset(_env_seed(self.seed))
        if self._warm:
            self.collector.ready = True  # the normaliser is the parent's
            self._validate()

    def _iterate(self, total: int) -> UpdateStats:
        fine = self.recipe.fine_tune
        weight = 0.0
        if self.teacher is not None and self.env_steps < fine.kl_until * total:
            weight = fine.kl * self.teacher.gate(self._success())
        batch = self.collector.collect(self.teacher if weight > 0.0 else None)
        update = self.ppo.update(
            batch,
            critic_only=self._warm and self.iteration < fine.warmup,
            teacher=self.teacher,
            teacher_weight=weight,
        )
        self.iteration += 1
        self.env_steps += batch.advantages.shape[0]
        return update

    def _success(self) -> float | None:
        """The learner's success: of recent episodes or of the last validation, whichever is better."""
        known = [self.collector.recent("success")]
        if self._latest is not None and self._latest.score is not None:
            known.append(self._latest.score.rate)
        return max((rate for rate in known if rate is not None), default=None)

    def _validate_if_due(self, *, last: bool) -> Scored | None:
        every = self.recipe.validation.every
        return self._validate() if every and (last or self.iteration % every == 0) else None

    def _validate(self) -> Scored | None:
        """Score the policy on the validation seeds and keep it if it is the best so far."""
        settings = self.recipe.validation
        state = self.env.get_state() if self.eval_env is None else None
        if not settings.every or (self.eval_env is None and state is None):
            return None
        scored = evaluate(
            self.policy,
            self.env.env if self.eval_env is None else self.eval_env,
            episodes=settings.episodes,
            seed_first=settings.seed_first,
            success_return=self.recipe.bar.success_return,
        )
        if state is not None:
            self.env.set_state(state)
        self.validation_steps += scored.steps
        self._latest = scored
        if self.best_validation is None or scored.rank > self.best_validation.rank:
            self.best_validation, self.best = scored, self.policy.tensors()
        return scored

    def _reached(self) -> bool:
        bar = self.recipe.validation.stop_lower
        score = None if self.best_validation is None else self.best_validation.score
        return bar is not None and score is not None and score.lower >= bar

    def _progress(
        self, update: UpdateStats, total: int, seconds: float, steps: int, scored: Scored | None
    ) -> Progress:
        speed = steps / max(seconds, 1e-9)
        return Progress(
            iteration=self.iteration,
            env_steps=self.env_steps,
            total_steps=total,
            steps_per_s=speed,
            seconds=self._spent_wall,
            seconds_left=max(total - self.env_steps, 0) / speed,
            success=self.collector.recent("success"),
            ep_return=self.collector.recent("return"),
            ep_length=self.collector.recent("length"),
            validation=None if scored is None else scored.score,
            validation_return=None if scored is None else scored.mean_return,
            update=update,
        )

    def _result(self, reached: bool) -> Result:
        policy = self.policy.clone()
        if self.best is not None:
            policy.load(self.best)
        return Result(
            policy=policy,
            validation=self.best_validation,
            curve=tuple(self.curve),
            env_steps=self.env_steps,
            validation_steps=self.validation_steps,
            wall_s=self._spent_wall,
            cpu_s=self._spent_cpu,
            device=str(self.device),
            seed=self.seed,
            reached=reached,
        )

    def save(self) -> None:
        """Write a checkpoint into `run_dir`."""
        if self.run_dir is None:
            raise ConfigError("the trainer has no run_dir", remedy="pass run_dir=")
        state = self.env.get_state()
        tensors = {
            **checkpoint.under("policy", self.policy.tensors()),
            **checkpoint.under("optimiser", self.ppo.tensors()),
            **checkpoint.under("collector", self.collector.tensors()),
            **checkpoint.under("best", self.best or {}),
            **checkpoint.under("env", state or {}),
            "generator": self.generator.get_state(),
        }
        note = {
            "recipe": self._identity(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "validation_steps": self.validation_steps,
            "wall_s": self._spent_wall,
            "cpu_s": self._spent_cpu,
            "lr": self.ppo.lr,
            "ready": self.collector.ready,
            "recent": {name: list(values) for name, values in self.collector.window.items()},
            "curve": self.curve,
            "best_validation": note_of(self.best_validation),
            "latest": note_of(self._latest),
        }
        checkpoint.save(self.run_dir, tensors, note)

    def _restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        if note["recipe"] != self._identity():
            raise ConfigError(
                f"{self.run_dir} holds a run of another recipe, seed or environment, or of another parent",
                remedy="choose another folder, or remove that one",
            )
        self.policy.load(checkpoint.part(tensors, "policy"))
        self.ppo.load(checkpoint.part(tensors, "optimiser"), note["lr"])
        self.best = checkpoint.part(tensors, "best") or None
        self.generator.set_state(tensors["generator"])
        self.iteration, self.env_steps = note["iteration"], note["env_steps"]
        self.validation_steps = note["validation_steps"]
        self._spent_wall, self._spent_cpu = note["wall_s"], note["cpu_s"]
        self.curve = note["curve"]
        self.best_validation, self._latest = (scored_of(note[key]) for key in ("best_validation", "latest"))
        state = checkpoint.part(tensors, "env")
        if state:
            self.env.set_state(state)
            self.collector.load(checkpoint.part(tensors, "collector"), note["recent"])
        else:  # this environment cannot be put back: its episodes start anew, on seeds not used before
            self.collector.reset(_env_seed(self.seed, self.iteration * self.env.num_envs))
            self.collector.recall(note["recent"])
        self.collector.ready = note["ready"]

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be the same run; how long it lasts is not part of it."""
        plain = self.recipe.to_dict()
        plain["ppo"].pop("total_steps")
        plain["ppo"].pop("checkpoint_every")
        own = {name: plain[name] for name in ("env", "ppo", "validation", "fine_tune")}
        return {**own, "seed": self.seed, "num_envs": self.env.num_envs, "origin": self._origin}


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """`device`, or CUDA if present, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"the device {device!r} cannot be used: {reason}", remedy="choose cpu or cuda"
        ) from error
    return chosen


def _env_seed(seed: int, used: int = 0) -> int:
    """Distinct runs take distinct stretches of the training seeds, all below those of validation."""
    return (seed * 1_000_003 + used) % (VALIDATION_SEED - 1_000_000)


def _digest(policy: ActorCritic) -> str:
    """SHA-256 over the weights that a run starts from, so that a child resumes no run of another parent."""
    found = hashlib.sha256()
    for value in policy.tensors().values():
        found.update(value.numpy().tobytes())
    return found.hexdigest()
