"""The cell that a command works in: a skill from anywhere, and the environment of one robot for it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse.cli.output import note, transfer
from neuraverse.errors import ConfigError, NotFoundError, UnknownNameError

if TYPE_CHECKING:
    from neuraverse.client import Client, Resolved
    from neuraverse.interface import Offer
    from neuraverse.learn.recipe import Recipe
    from neuraverse.manifest import SkillManifest
    from neuraverse.skill import Skill

_NEAR = 200  # skills of the same organisation, and as many of all, that a misspelt name is held against
OWN_TASKS = "neuraverse_envs"


def fetch(
    ref: str, registry: str | None = None, offer: Offer | None = None, *, offline: bool = False
) -> Skill:
    """A skill from a registry or a folder, verified against the trusted keys; see `neuraverse.client`."""
    from neuraverse.client import Client
    from neuraverse.client.refs import is_path

    with Client(registry) as client, transfer(f"pulling {ref}") as progress:
        try:
            skill = client.pull(ref, offer=offer, progress=progress, offline=offline)
        except NotFoundError:
            settle(client, ref)  # names the near ones
            raise
        if not offline and not is_path(ref):
            client.flush(skill, ref)
        return skill


def manifest_of(ref: str, registry: str | None, *, offline: bool = False) -> tuple[SkillManifest, str]:
    """The manifest behind a reference (a registry's is not verified yet), and one to that very skill."""
    from neuraverse.client import Client
    from neuraverse.client.refs import is_path
    from neuraverse.manifest import SkillManifest
    from neuraverse.skill import Skill
    from neuraverse.trust import verify_skill

    if is_path(ref):
        return Skill.open(Path(ref).expanduser(), admit=verify_skill).manifest, ref
    with Client(registry) as client:
        if offline:
            held = client.pull(ref, offline=True)
            return held.manifest, held.digest
        digest = settle(client, ref).digest
        return SkillManifest.parse(client.manifest(digest)), digest


def settle(client: Client, ref: str) -> Resolved:
    """What a reference means now.

    Raises:
        UnknownNameError: The registry has no skill of that name; lists the near ones.
        NotFoundError: It has no such version or alias of it.
    """
    from neuraverse.client import Ref

    try:
        return client.resolve(ref)
    except NotFoundError:
        name = Ref.parse(ref).name
        if not name or _exists(client, name):
            raise
        near = client.search(org=name.partition("/")[0], limit=_NEAR) + client.search(limit=_NEAR)
        names = {found.name for found in near}
        raise UnknownNameError("skill", name, names) from None


def _exists(client: Client, name: str) -> bool:
    """Whether there is a skill, though no version of it can be chosen."""
    try:
        client.describe(name)
    except NotFoundError:
        return False
    return True


def load_tasks() -> None:
    """Register the tasks that come with Neuraverse, so that a wrong id is answered with near ones."""
    with contextlib.suppress(ImportError):
        importlib.import_module(OWN_TASKS)


def recipe_for(
    manifest: SkillManifest,
    *,
    env: str | None = None,
    robot: str | None = None,
    tool: str | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a skill, for the same task on another body.

    Args:
        manifest: Of the skill.
        env: Another environment, which the user vouches for.
        robot: Another body, with its own figures and without the spread of training.
        tool: Where the tool sits, if `robot` is a file.
        overrides: Changes to the recipe.

    Raises:
        ConfigError: The recipe is wrong, or names a module that nobody vouched for.
    """
    from neuraverse.learn import Recipe
    from neuraverse.learn.adopt import check_env

    least = {"skill": {"name": manifest.name}, "env": {"id": manifest.task.env_id}}
    plain = least | manifest.training.recipe
    recipe = Recipe.parse(plain, overrides, source=f"recipe of {manifest.ref}")
    settings = recipe.env
    if env is not None:
        settings = dataclasses.replace(settings, id=env)
    if env is None:
        try:
            check_env(settings)
        except ConfigError as error:
            raise ConfigError(
                f"{error.message}; a skill may not choose what is imported",
                remedy=f"if you know that package, pass --env {settings.id}",
            ) from error
    if robot is not None:
        kwargs = {**settings.kwargs, **({} if tool is None else {"tool": tool})}
        settings = dataclasses.replace(settings, robot=robot, randomise={}, kwargs=kwargs)
    elif tool is not None:
        raise ConfigError("--tool is for a robot from a file", remedy="name it with --robot FILE")
    load_tasks()
    return dataclasses.replace(recipe, env=settings)


def offer_of(manifest: SkillManifest, robot: str, tool: str | None, env: str | None) -> Offer:
    """What a robot supplies in a cell of the skill's own task.

    Raises:
        ConfigError: The task has no robots.
    """
    return _offer_in(recipe_for(manifest, env=env, robot=robot, tool=tool).env.id, robot, tool)


def offer_here(robot: str, tool: str | None, env: str | None) -> Offer:
    """What a robot supplies in the cell of a task; without one, in those of all tasks that come along.

    Raises:
        ConfigError: The task has no robots.
    """
    from neuraverse.sim.registration import tasks

    offers = [_offer_in(each, robot, tool) for each in ([env] if env else tasks())]
    observation = {signal.name: signal for offer in offers for signal in offer.observation}
    action = {signal.name: signal for offer in offers for signal in offer.action}
    return dataclasses.replace(
        offers[0], observation=tuple(observation.values()), action=tuple(action.values())
    )


def _offer_in(env: str, robot: str, tool: str | None) -> Offer:
    from neuraverse.learn import make_env
    from neuraverse.learn.recipe import EnvSettings

    cell = make_env(EnvSettings(id=env, robot=robot, kwargs={} if tool is None else {"tool": tool}), 1)
    body, interface = getattr(getattr(cell, "task", None), "robot", None), getattr(cell, "interface", None)
    if body is None or interface is None:
        raise ConfigError(f"the environment {env} has no robot to choose", remedy="leave out the robot")
    offer: Offer = body.offer(interface.observation, interface.action)
    return offer


def signing_key(name: str | None) -> Path:
    """The private key to sign with; made if there is none at all and none was named.

    Raises:
        UnknownNameError: There is no own key of that name.
    """
    from neuraverse.trust import KeyStore

    store = KeyStore()
    if name is None and not any(key.name for key in store.list()):
        key = store.new("default")
        note(f"made your first key, 'default', in {store.home} (fingerprint {key.fingerprint[:16]})")
    return store.private_key_path(name or "default")


def slug(text: str) -> str:
    """A label of lower-case letters, digits and hyphens, from a robot's name or file."""
    return re.sub("[^a-z0-9]+", "-", Path(text).stem.lower()).strip("-") or "robot"
