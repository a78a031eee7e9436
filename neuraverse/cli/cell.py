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
        names = [found.name for found in client.search()]
        if not name or name in names or _exists(client, name):
            raise
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
    from neuraverse.learn import make_env
    from neuraverse.learn.recipe import EnvSettings

    settings = recipe_for(manifest, env=env, robot=robot, tool=tool).env
    bare = EnvSettings(id=settings.id, robot=robot, kwargs={} if tool is None else {"tool": tool})
    cell = make_env(bare, 1)
    body, interface = getattr(getattr(cell, "task", None), "robot", None), getattr(cell, "interface", None)
    if body is None or interface is None:
        raise ConfigError(f"the environment {settings.id} has no robot to choose", remedy="leave out --robot")
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
