"""The order of semantic versions, as text that a database can sort and index."""

from __future__ import annotations


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
