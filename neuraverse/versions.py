"""Semantic versions in order, and ranges of them such as ``^1.2``.

A range is one or more comparisons that must all hold, divided by commas or spaces:

    ^1.2.3      >=1.2.3 <2.0.0; of ^0.2.3 the upper end is 0.3.0, of ^0.0.3 it is 0.0.4
    ~1.2.3      >=1.2.3 <1.3.0; ~1 is ^1.0
    >=1.2 <2    what it says; also >, <=, =
    1.2, 1.2.*  every 1.2
    *           everything

A prerelease is in a range only if a comparison names a prerelease of the same release, so that ``^1.2`` never
chooses 1.3.0-rc.1, and ``^1.3.0-rc.1`` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from neuraverse.errors import UsageError
from neuraverse.manifest import VERSION_PATTERN, version_key

MAX_RANGE_CHARACTERS = 128
_NUMBER = "(?:0|[1-9][0-9]{0,8})"
_PART = re.compile(
    rf"(?P<how>\^|~|>=|<=|>|<|=)?(?P<major>{_NUMBER}|\*)(?:\.(?P<minor>{_NUMBER}|\*))?"
    rf"(?:\.(?P<patch>{_NUMBER}|\*))?(?P<pre>-[0-9A-Za-z.-]+)?"
)
_REMEDY = "write a range as ^1.2, ~1.2.3, 1.2.*, or >=1.2 <2"


@dataclass(frozen=True, kw_only=True)
class Range:
    """A set of versions.

    Attributes:
        text: As it was written.
        bounds: Comparisons (``>=``, ``>``, ``<``, ``<=``) and sort keys of versions; all must hold.
        named: Releases of which a comparison names a prerelease.
    """

    text: str
    bounds: tuple[tuple[str, tuple[Any, ...]], ...]
    named: frozenset[tuple[int, ...]]

    def allows(self, version: str) -> bool:
        """Whether a version is in the range.

        Raises:
            ManifestError: It is no version.
        """
        key = version_key(version)
        if is_prerelease(version) and key[:3] not in self.named:
            return False
        return all(_HOLDS[how](key, bound) for how, bound in self.bounds)


_HOLDS = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def parse_range(text: str) -> Range:
    """Read a range.

    Raises:
        UsageError: It is none.
    """
    parts = text.replace(",", " ").split()
    # ">= 1.2" is two words for one comparison.
    parts = re.sub(r"(\^|~|>=|<=|>|<|=) +", r"\1", " ".join(parts)).split()
    if not parts or len(text) > MAX_RANGE_CHARACTERS:
        raise UsageError(f"{text[:200]!r} is no range of versions", remedy=_REMEDY)
    bounds: list[tuple[str, tuple[Any, ...]]] = []
    named = set()
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None or not _in_order(match):
            raise UsageError(f"{text[:200]!r} is no range of versions: {part[:50]!r}", remedy=_REMEDY)
        bounds += _bounds(match)
        if match["pre"]:
            named.add(version_key(_full(match))[:3])
    return Range(text=text, bounds=tuple(bounds), named=frozenset(named))


def _in_order(match: re.Match[str]) -> bool:
    """No number behind a star, and a prerelease only behind three numbers, well written."""
    numbers = [match["major"], match["minor"], match["patch"]]
    given = [n for n in numbers if n is not None]
    stars = [n == "*" for n in given]
    if stars != sorted(stars):
        return False
    if match["pre"]:
        return len(given) == 3 and not any(stars) and re.fullmatch(VERSION_PATTERN, _full(match)) is not None
    return True


def _full(match: re.Match[str]) -> str:
    return f"{match['major']}.{match['minor']}.{match['patch']}{match['pre'] or ''}"


def _bounds(match: re.Match[str]) -> list[tuple[str, tuple[Any, ...]]]:
    how = match["how"] or "="
    given = [int(n) for n in (match["major"], match["minor"], match["patch"]) if n not in (None, "*")]
    low = version_key(_full(match)) if match["pre"] else _key(given)
    if not given:  # a star
        return [(">=", _floor([0]))] if how in ("^", "~", "=", ">=", "<=") else [("<", _floor([0]))]
    match how:
        case "^":
            first = next((i for i, n in enumerate(given) if n), len(given) - 1)
            return [(">=", low), ("<", _floor(_next(given[: first + 1])))]
        case "~":
            return [(">=", low), ("<", _floor(_next(given[:2])))]
        case "=" if len(given) < 3:
            return [(">=", low), ("<", _floor(_next(given)))]
        case "=":
            return [(">=", low), ("<=", low)]
        case ">" if len(given) < 3:  # >1.2 is past every 1.2
            return [(">=", _floor(_next(given)))]
        case "<=" if len(given) < 3:
            return [("<", _floor(_next(given)))]
        case "<" if not match["pre"]:
            return [("<", _floor(given))]
        case _:
            return [(how, low)]


def _next(numbers: list[int]) -> list[int]:
    return [*numbers[:-1], numbers[-1] + 1]


def _key(numbers: list[int]) -> tuple[Any, ...]:
    """Sort key of the release that begins so."""
    return (*numbers, *[0] * (3 - len(numbers)), 1, ())


def _floor(numbers: list[int]) -> tuple[Any, ...]:
    """Sort key before every prerelease of that release."""
    return (*numbers, *[0] * (3 - len(numbers)), 0, ())


def is_prerelease(version: str) -> bool:
    """Whether a version has a prerelease part."""
    return "-" in version


def order_key(version: str) -> str:
    """Text whose order (by code point) is the precedence of valid versions, as `manifest.version_key` has it.

    >>> order_key("1.0.0-rc.2") < order_key("1.0.0-rc.10") < order_key("1.0.0") < order_key("1.10.0")
    True
    """
    core, _, prerelease = version.partition("-")
    numbers = "".join(map(_number, core.split(".")))
    if not prerelease:
        return f"{numbers}~"
    # "!" closes an identifier and sorts before every character that one may hold; "0" and "1" rank the kinds.
    parts = (f"0{_number(p)}!" if p.isdigit() else f"1{p}!" for p in prerelease.split("."))
    return f"{numbers}!{''.join(parts)}"


def _number(digits: str) -> str:
    """Digits without leading zeros, headed by their count, so that the order of texts is that of numbers."""
    return f"{len(digits):02d}{digits}"
