"""How skills are named, and what a registry says about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import quote

from neuraverse.errors import IntegrityError, NetworkError, UsageError

LATEST = "latest"
BEGINNING = "0"  # the cursor before all events
CURSOR = "0|[0-9a-f]{8}-[0-9]{1,16}"
_WHICH = r"[0-9A-Za-z.,<>=^~* -]{1,128}"
_TEXTS, _CHARACTERS = 10, 1000  # of what a publisher says, as much is passed on


@dataclass(frozen=True, kw_only=True)
class Ref:
    """Which skill is meant: by name and version, alias or ``latest``; or by digest.

    Attributes:
        name: ``org/skill``; empty if `digest` says it all.
        which: Version, range or alias.
        digest: ``sha256:<hex>``, or empty.
    """

    name: str = ""
    which: str = LATEST
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``org/skill``, ``org/skill@1.0.0``, ``org/skill@^1.2``, ``org/skill@alias``, ``sha256:<hex>``.

        Raises:
            UsageError: It is none of these.
        """
        from neuraverse.manifest import DIGEST_PATTERN, NAME_PATTERN

        if re.fullmatch(DIGEST_PATTERN, text):
            return cls(digest=text)
        name, at, which = text.partition("@")
        if not re.fullmatch(NAME_PATTERN, name) or (at and not re.fullmatch(_WHICH, which)):
            raise UsageError(
                f"{text[:200]!r} names no skill",
                remedy="write org/skill, org/skill@1.0.0, org/skill@^1.2, org/skill@alias or sha256:<64 "
                "hexadecimal digits>",
            )
        return cls(name=name, which=which or LATEST)

    @property
    def is_exact(self) -> bool:
        """Whether it names a version, which never changes, and no range or alias."""
        from neuraverse.manifest import VERSION_PATTERN

        return re.fullmatch(VERSION_PATTERN, self.which) is not None

    @property
    def is_range(self) -> bool:
        """Whether it names a range of versions."""
        return bool(self.which) and not self.is_exact and not self.which[0].isalpha()

    def admits(self, version: str) -> bool:
        """Whether it may mean a version at all: itself, one in its range, or whatever an alias points to."""
        from neuraverse.versions import parse_range

        if self.is_range:
            return parse_range(self.which).allows(version)
        return not self.is_exact or version == self.which

    def expect(self, found: Resolved) -> None:
        """Whether a registry may answer it so.

        Raises:
            IntegrityError: It may not.
        """
        if found.name != self.name or not self.admits(found.version):
            raise IntegrityError(
                f"the registry answered {self} with {found.ref}",
                remedy="if this robot is pinned there, free it; else do not trust this registry",
            )

    @property
    def path(self) -> str:
        """Path of it below a registry's address."""
        return f"/v1/skills/{self.name}/{quote(self.which, safe='')}"

    def __str__(self) -> str:
        return self.digest or f"{self.name}@{self.which}"


def is_path(text: str | Path) -> bool:
    """Whether a reference means a folder on this machine: it looks like a path, or is one with a manifest."""
    if isinstance(text, Path) or text.startswith((".", "/", "~")):
        return True
    try:
        return (Path(text) / "manifest.json").is_file()
    except OSError:  # as a name it is too long, or not for us to look at
        return False


class Settled(Protocol):
    """Whatever says which skill it is, as a `Skill` and an `Event` do."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """One skill, settled: name and version for people, digest for machines.

    Attributes:
        warnings: What its publisher wants to be known: that it was yanked, or that the skill is deprecated.
        state: ``active``, or ``yanked``: to be had by its exact version alone.
        asked: The reference that it answers, if it answers one.
        fresh: Whether the registry said so now; else it could not be asked, and said so before.
        gone: Whether the version that the asker holds was revoked; None if nobody said.
    """

    name: str
    version: str
    digest: str
    warnings: tuple[str, ...] = ()
    state: str = "active"
    asked: str = field(default="", compare=False, repr=False)
    fresh: bool = field(default=True, compare=False, repr=False)
    gone: bool | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, it: Settled) -> Self:
        """Which skill `it` is."""
        return cls(name=it.name, version=it.version, digest=it.digest)

    @property
    def ref(self) -> str:
        """``org/skill@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a skill is proven.

    Attributes:
        bound: Lower end of the 95 % interval of its success.
        n: Episodes behind it.
        source: ``simulation`` or ``field``.
    """

    bound: float
    n: int
    source: str

    @classmethod
    def of(cls, plain: object) -> Self:
        """Read it out of a registry's answer.

        Raises:
            NetworkError: It is malformed.
        """
        fields = _fields(plain)
        bound, n = _number(fields, "bound"), int(_number(fields, "n"))
        return cls(bound=bound, n=n, source=_text(fields, "source"))


@dataclass(frozen=True, kw_only=True)
class Field:
    """What robots reported of a skill.

    Attributes:
        n: Episodes.
        successes: Of these.
        lower: Lower end of the 95 % interval of success.
    """

    n: int
    successes: int
    lower: float

    @classmethod
    def of(cls, plain: object) -> Self:
        """Read it out of a registry's answer.

        Raises:
            NetworkError: It is malformed.
        """
        fields = _fields(plain)
        n, successes = int(_number(fields, "n")), int(_number(fields, "successes"))
        if not 0 <= successes <= n or n < 1:
            raise NetworkError("the registry's answer is malformed: 'field' is no count of successes")
        return cls(n=n, successes=successes, lower=_number(fields, "lower"))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A skill as a search lists it, with its latest version and how well that is proven.

    Attributes:
        rate: Share of successes in simulation, as the publisher claims.
        lower: Lower end of its 95 % interval.
        n: Episodes behind it.
        task: Environment id.
        interface: Digest of the interface.
        visibility: Who may see it: ``public``, ``network`` or ``private``.
        evidence: What it is sorted by: a lower bound with the episodes behind it.
        field: What robots reported, if they did: success, its bound, and episodes.
    """

    name: str
    version: str
    digest: str
    title: str
    description: str
    robot: str
    rate: float
    lower: float
    n: int
    created: str
    task: str
    interface: str
    license: str
    tags: tuple[str, ...]
    visibility: str
    evidence: Evidence
    field: Field | None

    @classmethod
    def of(cls, plain: object) -> Self:
        """Read one entry of a registry's answer.

        Raises:
            NetworkError: It is malformed.
        """
        fields = _fields(plain)
        return cls(
            name=_text(fields, "name"),
            version=_text(fields, "version"),
            digest=_text(fields, "digest"),
            title=_text(fields, "title"),
            description=_text(fields, "description"),
            robot=_text(fields, "robot"),
            rate=_number(fields, "rate"),
            lower=_number(fields, "lower"),
            n=int(_number(fields, "n")),
            created=_text(fields, "created"),
            task=_text(fields, "task"),
            interface=_text(fields, "interface"),
            license=_text(fields, "license"),
            tags=_texts(fields, "tags"),
            visibility=_text(fields, "visibility"),
            evidence=Evidence.of(fields.get("evidence")),
            field=None if fields.get("field") is None else Field.of(fields["field"]),
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a registry. A hint: what it says is checked when the skill is pulled.

    Attributes:
        id: Its place in the order.
        cursor: Where a reader stands that has seen it.
        type: ``published``, ``alias``, ``unalias``, ``yanked``, ``unyanked``, ``revoked``, ``deprecated``,
            ``undeprecated``, ``visibility``; or ``reset``: the registry is another or restored, look anew.
        name: ``org/skill``.
        version: The version that was published or that the alias now means.
        digest: ``sha256:<hex>`` of that version.
        at: When, by the registry's clock; UTC, ISO 8601.
        parents: Digests of the parents, if published.
        interface: Digest of the interface, if published.
        alias: The alias that moved.
        previous: The version that it meant before, if any.
        reason: Why a version was yanked or revoked.
        by: Fingerprint of the key that signed the change.
        visibility: Who sees the skill from now on, if that changed.
    """

    id: int
    type: str
    cursor: str = BEGINNING
    name: str = ""
    version: str = ""
    digest: str = ""
    at: str = ""
    parents: tuple[str, ...] = ()
    interface: str = ""
    alias: str = ""
    previous: str = ""
    reason: str = ""
    by: str = ""
    visibility: str = ""

    @classmethod
    def of(cls, plain: object) -> Self:
        """Read one event of a registry's answer; fields that are not known are passed over.

        Raises:
            NetworkError: It is malformed.
        """
        fields = _fields(plain)
        number = fields.get("id")
        if type(number) is not int or number < 1:
            raise NetworkError("the registry sent an event without an id")
        parents = fields.get("parents") or ()
        if not isinstance(parents, list | tuple) or not all(isinstance(p, str) for p in parents):
            raise NetworkError(f"the registry sent event {number} with malformed parents")
        texts = {k: _text(fields, k) for k in ("type", "name", "version", "digest", "at")}
        optional = {
            k: fields.get(k) for k in ("interface", "alias", "previous", "reason", "by", "visibility")
        }
        extra = {k: v for k, v in optional.items() if isinstance(v, str)}
        cursor = fields.get("cursor")
        if not isinstance(cursor, str) or not re.fullmatch(CURSOR, cursor):
            raise NetworkError(f"the registry sent event {number} without a cursor")
        return cls(id=number, cursor=cursor, parents=tuple(parents), **texts, **extra)


def _fields(plain: object) -> Mapping[str, Any]:
    if not isinstance(plain, dict):
        raise NetworkError("the registry's answer is malformed: an object was expected")
    return plain


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise NetworkError(f"the registry's answer is malformed: {name!r} is missing or no text")
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise NetworkError(f"the registry's answer is malformed: {name!r} is missing or no list of texts")
    return tuple(value)


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 2**53:
        raise NetworkError(f"the registry's answer is malformed: {name!r} is missing or no number")
    return value


def resolved_of(plain: object) -> Resolved:
    """Read name, version, digest and state of a registry's answer.

    Raises:
        NetworkError: It is malformed.
    """
    from neuraverse.manifest import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN

    fields = _fields(plain)
    found = Resolved(
        name=_text(fields, "name"),
        version=_text(fields, "version"),
        digest=_text(fields, "digest"),
        warnings=texts_of(fields.get("warnings") or []),
        state=_text({"state": "active", **fields}, "state")[:_CHARACTERS],
    )
    patterns = {"name": NAME_PATTERN, "version": VERSION_PATTERN, "digest": DIGEST_PATTERN}
    for key, pattern in patterns.items():
        if not re.fullmatch(pattern, getattr(found, key)):
            raise NetworkError(
                f"the registry's answer is malformed: {getattr(found, key)[:100]!r} is no {key}"
            )
    return found


def texts_of(plain: object) -> tuple[str, ...]:
    """Sentences for people out of a registry's answer: few, short, and none that steers a terminal.

    Raises:
        NetworkError: It is no list of texts.
    """
    if not isinstance(plain, list) or not all(isinstance(text, str) for text in plain):
        raise NetworkError("the registry's answer is malformed: 'warnings' is no list of texts")
    return tuple(printable(text) for text in plain[:_TEXTS])


def printable(text: str) -> str:
    """`text` in one line, not long, and without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_CHARACTERS])
