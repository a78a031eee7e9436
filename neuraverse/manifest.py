"""manifest.json: the signed description of a skill, its schema and its identity.

The manifest names every other file of the skill with its SHA-256 and size, so one signature over it covers
all. Its own SHA-256 (`digest_of`) is the identity of the skill: a version may be looked up, a digest is the
thing itself. Unknown keys, duplicate keys, infinities and wrong types are errors.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from neuraverse.errors import ConfigError, ManifestError
from neuraverse.interface import Interface

MAX_MANIFEST_BYTES = 1 << 20
MAX_MARKS = {",": 20_000, ":": 4_000, "{": 2_000, "[": 2_000}
"""How often these may occur in manifest.json: bounds for its values, keys, objects and lists.

One value of a wrong type costs the validator up to eight kilobytes of memory, so bytes alone are no bound.
"""
MAX_FILE_BYTES = 256 << 20
BLOBS = ("model.safetensors", "policy.onnx", "evaluation.json", "curve.json", "README.md")
"""The files that a manifest lists; beside them lie only manifest.json and signature.json."""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?"
NAME_PATTERN = f"^{_LABEL}/{_LABEL}$"
VERSION_PATTERN = (
    r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(-(0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?$"
)
DIGEST_PATTERN = "^sha256:[0-9a-f]{64}$"
_MAX_INT = 2**53
_LONG = 300  # characters of a message that may come from the file


def _printable(text: str) -> str:
    bad = next((c for c in text if not c.isprintable() and c != "\n"), None)
    if bad is not None:
        raise ValueError(f"holds the control character U+{ord(bad):04X}")
    return text


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("must be one line")
    return _printable(text)


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    todo: list[Any] = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list):
            todo += each
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError("holds a number that is not finite")
    return value


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() != timedelta(0):
        raise ValueError("must be in UTC")
    return moment


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"low {span[0]:g} is above high {span[1]:g}")
    return span


Line = Annotated[str, StringConstraints(max_length=300), AfterValidator(_one_line)]
Prose = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_printable)]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/@ -]{1,100}$")]
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
Count = Annotated[int, Field(ge=0, le=_MAX_INT)]
NonNegative = Annotated[float, Field(ge=0.0)]
Span = Annotated[tuple[float, float], AfterValidator(_ordered)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Figure = Annotated[int, Field(ge=-_MAX_INT, le=_MAX_INT)] | float | bool | Line


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of `data`; over manifest.json it is the identity of the skill."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def version_key(version: str) -> tuple[Any, ...]:
    """Sort key of a version, by the precedence rules of semver.org 2.0.0, section 11.

    Raises:
        ManifestError: It is no version.
    """
    if not re.fullmatch(VERSION_PATTERN, version):
        raise ManifestError(f"{version!r} is not a version", remedy="write it as 1.2.3 or 1.2.3-rc.1")
    numbers, _, pre = version.partition("-")
    release = tuple(int(n) for n in numbers.split("."))
    if not pre:
        return (*release, 1, ())
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split("."))
    return (*release, 0, parts)


def wilson_lower(successes: int, n: int, z: float = 1.959963984540054) -> float:
    """Lower end of Wilson's 95 % score interval of a success rate; 0 without successes.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n <= 0 or successes <= 0:
        return 0.0
    rate = successes / n
    centre = rate + z * z / (2 * n)
    margin = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (centre - margin) / (1 + z * z / n)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A success rate with Wilson's 95 % lower bound and the number of episodes behind it."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    rate: Rate
    lower: Rate
    n: Count

    @classmethod
    def of(cls, successes: int, n: int) -> Self:
        """The score of `successes` in `n` episodes."""
        return cls(rate=successes / n if n else 0.0, lower=wilson_lower(successes, n), n=n)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Body(_Part):
    """A body's figures that decide how well a policy carries over."""

    robot: Line
    dof: Annotated[int, Field(ge=1, le=1000)]
    servo_hz: NonNegative
    """Bandwidth of the joint servos."""
    latency_s: NonNegative
    tool_mass_kg: NonNegative

    def outside(self, randomised: dict[str, tuple[float, float]]) -> list[str]:
        """One sentence for each figure of this body that lies outside the range of training.

        Args:
            randomised: `SkillManifest.randomised`; names that are no figure of a body are passed over.
        """
        found = []
        for field, what, unit in (
            ("servo_hz", "servo bandwidth", "Hz"),
            ("latency_s", "latency", "s"),
            ("tool_mass_kg", "tool mass", "kg"),
        ):
            if field not in randomised:
                continue
            low, high = randomised[field]
            value = getattr(self, field)
            if not low <= value <= high:
                found.append(
                    f"{what}: {self.robot} has {value:g} {unit}, trained over {low:g} to {high:g} {unit}"
                )
        return found


class TaskInfo(_Part):
    """What the skill does, and where."""

    env_id: Line
    success: Line
    """When an episode counts as a success, as a sentence."""
    parameters: dict[Key, Figure] = {}


class Network(_Part):
    """Shape of the policy network."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=64)]
    activation: Line
    parameters: Count
    """Numbers stored in model.safetensors, all tensors together."""
    opset: Annotated[int, Field(ge=1, le=1000)]


class Evaluation(_Part):
    """Score of the deterministic policy on seeds that training never saw."""

    episodes: Annotated[int, Field(ge=1, le=_MAX_INT)]
    successes: Count
    rate: Rate
    lower: Rate
    seed_first: Count
    seed_count: Count
    deterministic: Literal[True] = True
    metrics: dict[Key, float] = {}
    source: Score | None = None
    """Score of the parent on the same seeds; None without one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.successes > self.episodes:
            raise ValueError(f"{self.successes} successes in {self.episodes} episodes")
        if abs(self.rate - self.successes / self.episodes) > 1e-6:
            raise ValueError(
                f"rate {self.rate:g} is not {self.successes} successes in {self.episodes} episodes"
            )
        if abs(self.lower - wilson_lower(self.successes, self.episodes)) > 1e-6:
            raise ValueError(
                f"lower {self.lower:g} is not the Wilson 95 % bound of {self.successes}/{self.episodes}"
            )
        return self

    @property
    def score(self) -> Score:
        """Rate, lower bound and n."""
        return Score(rate=self.rate, lower=self.lower, n=self.episodes)


class Training(_Part):
    """How the skill was learnt and what it cost."""

    algorithm: Line
    recipe: Annotated[dict[str, JsonValue], AfterValidator(_finite)] = {}
    seeds: Annotated[tuple[Count, ...], Field(max_length=10_000)]
    seed_scores: dict[Key, float] = {}
    env_steps: Count
    wall_s: NonNegative
    cpu_s: NonNegative
    device: Line


class FileEntry(_Part):
    """Digest and size of one file."""

    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class SkillManifest(_Part):
    """The description of a skill. `SkillManifest.build` makes one, `SkillManifest.parse` reads one."""

    schema_version: Literal["neuraverse.manifest/1"] = "neuraverse.manifest/1"
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    """``org/skill``; lower-case letters, digits and hyphens, each part of 1 to 64 characters."""
    version: Annotated[str, StringConstraints(pattern=VERSION_PATTERN, max_length=64)]
    title: Line
    description: Prose = ""
    license: Line
    """SPDX expression."""
    created: Annotated[AwareDatetime, AfterValidator(_utc)]
    interface: Interface
    body: Body
    """The body it was trained on."""
    randomised: dict[Key, Span] = {}
    """What it was trained over: figures of the body by name, and others such as ``noise_pos_m``."""
    task: TaskInfo
    network: Network
    evaluation: Evaluation
    training: Training
    versions: dict[Key, Line] = {}
    """Versions of every package that decides the numbers."""
    parents: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()
    files: dict[
        Literal["model.safetensors", "policy.onnx", "evaluation.json", "curve.json", "README.md"], FileEntry
    ]
    """Empty only before `Skill.write` has filled it in."""
    tags: Annotated[tuple[Key, ...], Field(max_length=64)] = ()

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Make a manifest from Python values.

        Raises:
            ManifestError: A field is missing, unknown, or has a wrong type or range; the message names it.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise _sentence(error) from error

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read manifest.json.

        Args:
            data: The file's bytes.

        Raises:
            ManifestError: Too large, not JSON, a key twice, or a field that is missing, unknown, or of a
                wrong type or range; the message names the field.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(
                f"manifest.json has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed"
            )
        for mark, most in MAX_MARKS.items():
            if (found := data.count(mark.encode())) > most:
                raise ManifestError(f"manifest.json has {found} times {mark!r}; at most {most} are allowed")
        try:
            json.loads(data, object_pairs_hook=_unique)
            manifest = cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise _sentence(error) from error
        except ConfigError as error:
            raise ManifestError(
                f"manifest.json: interface: {error.message[:_LONG]}", remedy=error.remedy
            ) from error
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"manifest.json is not valid JSON: {error}") from error
        missing = [name for name in BLOBS if name not in manifest.files]
        if missing:
            raise ManifestError(f"manifest.json: files: {', '.join(missing)} is not listed")
        return manifest

    def to_bytes(self) -> bytes:
        """Canonical JSON: fields in the order of the schema, indented by two, UTF-8, a newline at the end."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @property
    def org(self) -> str:
        """The part of the name before the slash: whose key must have signed."""
        return self.name.partition("/")[0]

    @property
    def ref(self) -> str:
        """``org/skill@version``."""
        return f"{self.name}@{self.version}"


PATTERN_HELP = {
    NAME_PATTERN: "must be org/skill, each of 1 to 64 lower-case letters, digits and inner hyphens",
    VERSION_PATTERN: "must be a semantic version such as 1.2.3 or 1.2.3-rc.1",
    DIGEST_PATTERN: "must be sha256: and 64 lower-case hexadecimal digits",
}
"""What to tell people instead of a pattern."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:100]!r} occurs twice")
    return found


def _sentence(error: ValidationError) -> ManifestError:
    if error.error_count() > 100:  # listing them would take as much memory again
        return ManifestError(f"manifest.json: {error.error_count()} fields are missing, unknown or wrong")
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:_LONG] or "the whole"
    what = first["msg"].removeprefix("Value error, ")[:_LONG]
    if first["type"] == "extra_forbidden":
        what = "is not a field of this schema"
    elif first["type"] == "string_pattern_mismatch":
        what = PATTERN_HELP.get(first["ctx"]["pattern"], what)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return ManifestError(f"manifest.json: {where}: {what}{more}")
