"""Recipes: everything a training run needs to know, in one `skill.toml` per skill.

Sections: ``[skill]`` what is published, ``[env]`` where it is learned, ``[ppo]`` how, ``[validation]`` how
checkpoints are compared, ``[bar]`` the quality promised, ``[eval]`` how the result is scored, ``[fine_tune]``
how a parent skill is carried over. Every field has a default but ``skill.name`` and ``env.id``. This module
imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import importlib.util
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from neuraverse.errors import ConfigError, UnknownNameError

SKILLS_PACKAGE = "neuraverse_skills"
RECIPE_FILE = "skill.toml"
# Seeds: training below, then validation, then the published evaluation; the three never meet.
VALIDATION_SEED = 1_000_000_000
EVALUATION_SEED = 2_000_000_000
_SEED_END = 2**32

_T = TypeVar("_T")


def _whole(value: object) -> object:
    """Let 2e6 stand for 2000000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Natural = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _section(cls: type[_T]) -> type[_T]:
    """A frozen dataclass that pydantic reads strictly."""
    cls.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


@_section
class SkillSettings:
    """What the published skill is called and says of itself."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}/[a-z0-9][a-z0-9-]{0,63}$")]
    version: str = "1.0.0"
    title: str = ""
    description: str = ""
    success: str = ""  # one sentence: what counts as success
    license: str = "Apache-2.0"
    tags: tuple[str, ...] = ()


@_section
class EnvSettings:
    """A Gymnasium id, ``"module:namespace/Name-v0"`` or plain, and how it is made."""

    id: str
    robot: str | None = None
    randomise: dict[str, tuple[float, float]] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)


@_section
class PpoSettings:
    """The learner. Steps are single environment steps, over all environments together."""

    total_steps: Count = 2_000_000
    num_envs: Count = 256
    steps: Count = 24  # per environment and rollout
    epochs: Count = 5
    minibatches: Count = 4
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.97
    lam: Share = 0.95
    clip: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    value_clip: NonNegative = 0.0  # 0: the value loss is not clipped
    value_coef: Positive = 1.0
    entropy: NonNegative = 0.002
    max_grad_norm: Positive = 1.0
    lr: Positive = 1e-3
    lr_min: Positive = 1e-5
    lr_max: Positive = 1e-2
    desired_kl: NonNegative = 0.01  # 0: the learning rate stays as it is
    init_std: Positive = 0.37
    hidden: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (64, 64)
    activation: Literal["elu", "tanh", "relu"] = "elu"
    reward_scale: Positive = 1.0
    normaliser_batches: Natural = 1  # rollouts of noise that the observation normaliser is fitted on
    checkpoint_every: Count = 10  # iterations


@_section
class ValidationSettings:
    """How checkpoints are compared while training."""

    every: Natural = 20  # iterations; 0: never
    episodes: Count = 128
    seed_first: Annotated[Natural, Field(ge=VALIDATION_SEED, lt=EVALUATION_SEED)] = VALIDATION_SEED
    stop_lower: Share | None = None  # training ends once the Wilson lower bound is this high


@_section
class BarSettings:
    """What the published skill must reach to be called good."""

    success: Share = 0.9  # Wilson 95 % lower bound
    success_return: float | None = (
        None  # an episode succeeds with this return, if the environment does not say
    )


@_section
class EvalSettings:
    """The scores that are published: on seeds that neither training nor validation ever saw."""

    episodes: Count = 1000
    num_envs: Count = 250
    seed_first: Annotated[Natural, Field(ge=EVALUATION_SEED, lt=_SEED_END)] = EVALUATION_SEED


@_section
class FineTuneSettings:
    """How a parent skill is carried over to another body."""

    warmup: Natural = 5  # iterations in which only the critic learns
    kl: NonNegative = 1.0  # weight of KL(own ‖ parent), before the gate
    kl_until: Share = 0.5  # share of the steps after which the parent is let go
    std_floor: NonNegative = 0.2  # exploration is raised to at least this
    lr: Positive = 5e-4
    total_steps: Count = 1_000_000
    probe_episodes: Count = 128


@_section
class Recipe:
    """One training run. See the module's head for the sections."""

    skill: SkillSettings
    env: EnvSettings
    ppo: PpoSettings = field(default_factory=PpoSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    bar: BarSettings = field(default_factory=BarSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    fine_tune: FineTuneSettings = field(default_factory=FineTuneSettings)

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe by name (``"weld-seam"``), by path, or for a Gymnasium id (``"HalfCheetah-v5"``).

        Args:
            name_or_path: A folder in `neuraverse_skills`, a ``.toml`` file or a folder that holds one, or the
                id of an environment without a recipe, which then gets the defaults.
            overrides: Assignments such as ``"ppo.lr=3e-4"``, applied last.

        Raises:
            UnknownNameError: There is no such recipe; those that exist are listed.
            ConfigError: A field is unknown, of the wrong type or out of range.
        """
        text = str(name_or_path)
        path = Path(text)
        known = names()
        if path.suffix == ".toml" or (path / RECIPE_FILE).is_file():
            file = path if path.suffix == ".toml" else path / RECIPE_FILE
            return cls.parse(_read(file), overrides, source=str(file))
        if text in known:
            return cls.parse(_read(known[text]), overrides, source=f"{text}/{RECIPE_FILE}")
        if _is_env_id(text):
            plain = {"skill": {"name": f"local/{_slug(text)}"}, "env": {"id": text}}
            return cls.parse(plain, overrides, source=text)
        raise UnknownNameError("recipe", text, known)

    @classmethod
    def parse(
        cls, data: Mapping[str, Any] | str, overrides: Iterable[str] = (), *, source: str = "recipe"
    ) -> Recipe:
        """Check TOML text or a mapping; see `load` for the errors."""
        if isinstance(data, str):
            try:
                data = tomllib.loads(data)
            except tomllib.TOMLDecodeError as error:
                raise ConfigError(f"{source} is not valid TOML: {error}") from error
        merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in data.items()}
        for assignment in overrides:
            _override(merged, assignment)
        try:
            recipe = _adapter().validate_json(json.dumps(merged, default=str), strict=True)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_explain(error)}") from error
        recipe.check(source)
        return recipe

    def check(self, source: str = "recipe") -> None:
        """Raise ConfigError where single fields are right and do not fit together."""
        rows = self.ppo.num_envs * self.ppo.steps
        if rows % self.ppo.minibatches:
            raise ConfigError(
                f"{source}: ppo.minibatches = {self.ppo.minibatches} does not divide "
                f"ppo.num_envs × ppo.steps = {rows}",
                remedy="choose a divisor",
            )
        if not self.ppo.lr_min <= self.ppo.lr <= self.ppo.lr_max:
            raise ConfigError(f"{source}: ppo.lr = {self.ppo.lr:g} is not between ppo.lr_min and ppo.lr_max")
        for name, (low, high) in self.env.randomise.items():
            if low > high:
                raise ConfigError(
                    f"{source}: env.randomise.{name} = [{low:g}, {high:g}] has its low above its high"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as stored in a manifest."""
        plain: Any = dataclasses.asdict(self)
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]


def names() -> dict[str, Path]:
    """The recipes that are installed: name -> file."""
    if importlib.util.find_spec(SKILLS_PACKAGE) is None:
        return {}
    found: dict[str, Path] = {}
    for root in importlib.resources.files(SKILLS_PACKAGE).iterdir():
        file = Path(str(root)) / RECIPE_FILE
        if file.is_file():
            found[root.name] = file
    return dict(sorted(found.items()))


@functools.cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {file} cannot be read: {error}") from error


def _is_env_id(text: str) -> bool:
    stem, _, version = text.rpartition("-v")
    return bool(stem) and version.isdigit()


def _slug(env_id: str) -> str:
    name = env_id.rpartition("/")[2].rpartition(":")[2].rpartition("-v")[0]
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in name).replace("_", "-")
    return "".join(c for c in words if c.isalnum() or c == "-").strip("-").lower() or "skill"


def _override(data: dict[str, Any], assignment: str) -> None:
    path, equals, raw = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(
            f"the override {assignment!r} is not of the form section.field=value",
            remedy="such as ppo.lr=3e-4",
        )
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()  # a bare word is a string
    node = data
    for key in keys[:-1]:
        child = node.get(key)
        node[key] = dict(child) if isinstance(child, Mapping) else {}
        node = node[key]
    node[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    """One sentence on the first thing that is wrong, with the names that exist where a name is unknown."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _fields_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        return f"{where} is not a field - {hint}"
    if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"{where} is missing"
    message = first["msg"]
    return f"{where} = {json.dumps(first['input'])}: {message[0].lower()}{message[1:]}"


def _fields_at(path: Iterable[int | str]) -> list[str]:
    sections = {f.name: get_type_hints(Recipe)[f.name] for f in dataclasses.fields(Recipe)}
    cls: Any = Recipe
    for part in path:
        cls = sections.get(str(part))
        if cls is None:
            return []
    return [f.name for f in dataclasses.fields(cls)]
