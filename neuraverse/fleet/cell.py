"""One robot in its cell: it waits for a skill, checks it, tries it, and says what it is worth here.

    event (a hint) → pull (digest, signature, trust, fit) → probe in the own cell → use | fine-tune | refuse

A `Cell` has a home of its own (keys, trust, cache) and meets the others at the registry alone, through the
same HTTP client as a distant robot. `start_cell` makes it a Ray actor. While it waits it costs next to no
CPU, so by default it occupies none; a probe then takes one thread for some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from neuraverse.client import Client, Event, Resolved
from neuraverse.errors import ConfigError, ContentError, IncompatibleError, NotFoundError
from neuraverse.fleet.cluster import offered
from neuraverse.fleet.workers import make_env
from neuraverse.learn.recipe import EnvSettings, Recipe
from neuraverse.manifest import Score

if TYPE_CHECKING:
    from neuraverse.interface import Offer
    from neuraverse.learn.evaluation import Scored
    from neuraverse.learn.progress import Result


@dataclass(frozen=True, kw_only=True)
class AdoptionReport:
    """What a cell made of a skill.

    Attributes:
        robot: Name of the robot.
        ref: ``org/skill@version``.
        digest: ``sha256:<hex>``.
        verified: Fingerprint of the trusted key that signed it; empty if it was refused before.
        outside: One sentence for each figure of this body outside the range of the skill's training.
        notified_s: From the registry's record of the event to its arrival, by the clocks of the two [s].
        pulled_s: From there until it lay on the disk, verified [s].
        zero_shot: Success as it is, in this cell; None if it was not run to the end.
        decision: ``use``, ``fine-tune`` or ``refuse``.
        reason: Why, in one sentence.
        probe_steps: Environment steps that the probe cost.
        seconds: From the event's arrival to the decision [s].
        path: The skill on this robot's disk; None if it was not pulled.
        probe: The probe in full, for `neuraverse.fleet.fine_tune(zero_shot=…)`.
    """

    robot: str
    ref: str
    digest: str
    verified: str = ""
    outside: tuple[str, ...] = ()
    notified_s: float
    pulled_s: float = 0.0
    zero_shot: Score | None = None
    decision: str
    reason: str
    probe_steps: int = 0
    seconds: float
    path: Path | None = None
    probe: Scored | None = None


class Cell:
    """One robot, what surrounds it, and its own home.

    Args:
        env: The cell as an environment; ``env.robot`` is the robot.
        registry: URL of the registry.
        home: Own folder for keys, trust and cache; what is trusted there is the operator's doing.
        num_envs: Environments to probe in at once.
        threads: Threads of the probe.
    """

    def __init__(
        self, *, env: EnvSettings, registry: str, home: Path | str, num_envs: int = 64, threads: int = 1
    ) -> None:
        self._settings = env
        self._num_envs = num_envs
        self._threads = threads
        self._client = Client(registry, home=home)
        self._env: Any = None
        self._cursor: str | None = None

    def ready(self) -> Offer:
        """Set up the cell; `listen` misses nothing that is published from now on.

        Returns:
            What the robot offers to skills.

        Raises:
            UnknownNameError: There is no such environment or robot.
            ConfigError: The environment has no robot.
            NetworkError: The registry could not be asked.
        """
        import torch

        if self._env is None:
            torch.set_num_threads(self._threads)
            self._env = make_env(self._settings, self._num_envs, self._threads)
        if self._cursor is None:
            self._cursor = self._client.cursor()
        return self._offer()

    def close(self) -> None:
        """Close connections and environment."""
        self._client.close()
        if self._env is not None:
            self._env.close()

    def listen(
        self,
        name: str,
        *,
        target: float = 0.9,
        episodes: int = 128,
        success_return: float | None = None,
        after: str | None = None,
    ) -> AdoptionReport:
        """Wait until the skill `name` is published, then pull, verify, probe and decide.

        Args:
            name: ``org/skill``.
            target: Success that is good enough: the Wilson lower bound must reach it.
            episodes: Episodes of the probe.
            success_return: See `neuraverse.learn.evaluate`.
            after: Cursor to begin behind, "0" for everything ever published; from `ready` on if not given.

        Raises:
            NetworkError: The registry could not be asked.
            StorageError: The disk is full, read-only or gone.
        """
        self.ready()
        for event in self._client.watch(self._cursor if after is None else after, name):
            arrived, began = datetime.now(UTC), time.monotonic()
            self._cursor = event.cursor
            found = self._published(event, name)
            if found is not None:
                late = (arrived - datetime.fromisoformat(event.at)).total_seconds() if event.at else 0.0
                return self._adopt(found, max(0.0, late), began, target, episodes, success_return)
        raise AssertionError("the feed has no end")

    def publish_child(
        self,
        result: Result,
        recipe: Recipe,
        *,
        parent: str,
        evaluation: Scored,
        parent_evaluation: Scored,
        name: str | None = None,
        version: str | None = None,
        key: str = "default",
    ) -> Resolved:
        """Seal what was made of a skill, sign it with the robot's own key, and publish it.

        Run again after it was cut, it publishes what it had sealed.

        Args:
            result: The fine-tuning.
            recipe: Its recipe, from `neuraverse.learn.child_recipe`.
            parent: Digest of the skill it came from.
            evaluation: The child's score.
            parent_evaluation: The parent's score on the same seeds, in this cell.
            name: ``org/skill`` instead of the recipe's.
            version: Instead of the recipe's.
            key: Name of the robot's key.

        Raises:
            UnknownNameError: There is no such key.
            ConfigError: The two were not scored on the same seeds.
            ConflictError: The version is taken by other bytes.
            RegistryError: The registry refused; the message says why.
            NetworkError: It could not be asked.
        """
        from neuraverse.learn.sealing import seal

        seeds, same = ((s.seed_first, s.episodes) for s in (evaluation, parent_evaluation))
        if seeds != same:
            raise ConfigError(
                f"the child was scored on {seeds[1]} seeds from {seeds[0]} on, "
                f"its parent on {same[1]} from {same[0]} on",
                remedy="score both on the same seeds",
            )
        self.ready()
        private = self._client.keys.private_key_path(key)
        ref = f"{name or recipe.skill.name}@{version or recipe.skill.version}"
        path = self._client.home / "skills" / ref.replace("/", "-")
        if not _holds(path, result):
            seal(
                result,
                recipe,
                evaluation,
                path,
                env=self._env,
                key=private,
                parent=self._client.pull(parent),
                parent_score=parent_evaluation.score,
                name=name,
                version=version,
            )
        return self._client.publish(path, key=key)

    def _offer(self) -> Offer:
        task = getattr(self._env.unwrapped, "task", None)
        robot = getattr(task, "robot", None)
        if task is None or robot is None:
            raise ConfigError(
                f"the environment {self._settings.id} has no robot",
                remedy="choose a task in which a robot moves a tool",
            )
        offer: Offer = robot.offer(task.observation, task.action)
        return offer

    def _published(self, event: Event, name: str) -> Resolved | None:
        """The skill that an event announces, if it announces one."""
        if event.type == "published":
            return Resolved.of(event)
        if event.type != "reset":
            return None
        try:  # the registry was restored: what was published meanwhile is in no event
            return self._client.resolve(name)
        except NotFoundError:
            return None

    def _adopt(
        self,
        found: Resolved,
        notified_s: float,
        began: float,
        target: float,
        episodes: int,
        success_return: float | None,
    ) -> AdoptionReport:
        from neuraverse.learn.adopt import decide, probe
        from neuraverse.learn.envs import outside
        from neuraverse.trust import verify_skill

        offer = self._offer()
        about: dict[str, Any] = {
            "robot": offer.robot,
            "ref": found.ref,
            "digest": found.digest,
            "notified_s": notified_s,
        }
        try:
            skill = self._client.pull(found, offer=offer)
            about |= {"verified": verify_skill(skill, self._client.keys), "path": skill.path}
        except (ContentError, IncompatibleError) as error:
            seconds = time.monotonic() - began
            return AdoptionReport(**about, decision="refuse", reason=str(error), seconds=seconds)
        about |= {"pulled_s": time.monotonic() - began, "outside": tuple(outside(self._env, skill.manifest))}
        tried = probe(skill, self._env, episodes=episodes, success_return=success_return)
        decision = decide(tried, target)
        return AdoptionReport(
            **about,
            zero_shot=None if tried.scored is None else tried.scored.score,
            decision=decision.action,
            reason=decision.reason,
            probe_steps=0 if tried.scored is None else tried.scored.steps,
            seconds=time.monotonic() - began,
            probe=tried.scored,
        )


def start_cell(
    env: EnvSettings,
    *,
    registry: str,
    home: Path | str,
    cpus: float = 0.0,
    num_envs: int = 64,
    threads: int = 1,
) -> Any:
    """A `Cell` as a Ray actor: ``get(cell.ready.remote())``, ``cell.listen.remote("org/skill")``.

    It runs on this node, for its home and, often, its registry are this machine's. It lives as long as its
    handle, or until ``ray.kill``.

    Args:
        env: See `Cell`, as for the following.
        registry: URL.
        home: On the disk of this node.
        cpus: CPUs it occupies from now on; a waiting cell needs none.
        num_envs: Environments to probe in at once.
        threads: Threads of the probe.
    """
    offered()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    make: Callable[..., Any] = ray.remote(Cell).options(num_cpus=cpus, scheduling_strategy=here).remote
    return make(env=env, registry=registry, home=Path(home).absolute(), num_envs=num_envs, threads=threads)


def _holds(path: Path, result: Result) -> bool:
    """Whether `path` holds this very policy, sealed."""
    from neuraverse.learn.export import to_safetensors
    from neuraverse.skill import Skill

    if not path.exists():
        return False
    return Skill.open(path).read("model.safetensors") == to_safetensors(result.policy)
