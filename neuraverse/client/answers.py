"""What a registry says of a skill besides its bytes, checked as far as anyone reads it."""

from __future__ import annotations

from typing import Any

from neuraverse.errors import NetworkError

DIFF_PARTS = ("interface", "evaluation", "training", "files")
TEXT, COUNT, NUMBER, LIST, OBJECT = (str,), (int,), (int, float), (list,), (dict,)
MAYBE_TEXT, MAYBE_COUNT = (str, type(None)), (int, type(None))


def described(plain: dict[str, Any]) -> dict[str, Any]:
    """Versions, aliases, deprecation and serial number of a skill.

    Raises:
        NetworkError: It is malformed.
    """
    _fields(plain, name=TEXT, registry=TEXT, serial=COUNT)
    for version in _list(plain, "versions"):
        _fields(version, version=TEXT, digest=TEXT, state=TEXT)
    _need(isinstance(plain.get("aliases"), dict), "aliases")
    _fields(plain["aliases"], **dict.fromkeys(plain["aliases"], TEXT))
    return plain


def standing(plain: dict[str, Any]) -> dict[str, Any]:
    """Children of a version, and how it does in the field.

    Raises:
        NetworkError: It is malformed.
    """
    _need(all(isinstance(child, str) for child in _list(plain, "children")), "children")
    field = plain.get("field")
    if field is not None:
        _fields(field, n=COUNT, successes=COUNT)
        _need(0 <= field["successes"] <= field["n"] and field["n"] > 0, "field")
    return plain


def lineage(plain: dict[str, Any]) -> dict[str, Any]:
    """A graph of skills; each edge joins two of its nodes.

    Raises:
        NetworkError: It is malformed.
    """
    for node in _list(plain, "nodes"):
        _fields(node, digest=TEXT, name=TEXT, version=TEXT, state=TEXT, lower=NUMBER)
    known = {node["digest"] for node in plain["nodes"]}
    ends = [plain.get("root")]
    for edge in _list(plain, "edges"):
        _need(isinstance(edge, list) and len(edge) == 2, "edges")
        ends += edge
    _need(all(isinstance(end, str) and end in known for end in ends), "root or edges")
    return plain


def diff(plain: dict[str, Any]) -> dict[str, Any]:
    """What differs between two versions.

    Raises:
        NetworkError: It is malformed.
    """
    _fields(plain, **{"from": TEXT, "to": TEXT})
    for part in DIFF_PARTS:
        for each in _list(plain, part):
            _fields(each, field=TEXT)
            _need({"from", "to"} <= each.keys(), part)
    return plain


def moves(plain: dict[str, Any]) -> dict[str, Any]:
    """How an alias moved, the newest first.

    Raises:
        NetworkError: It is malformed.
    """
    for move in _list(plain, "moves"):
        _fields(move, version=MAYBE_TEXT, previous=MAYBE_TEXT, at=TEXT, by=TEXT)
    _need(len(plain["moves"]) > 0, "moves")
    return plain


def checked(plain: Any, /, **kinds: tuple[type, ...]) -> dict[str, Any]:
    """An object of which these fields are read.

    Raises:
        NetworkError: One is missing or of another kind.
    """
    _fields(plain, **kinds)
    return plain  # type: ignore[no-any-return]


def rows(plain: dict[str, Any], name: str, /, **kinds: tuple[type, ...]) -> list[dict[str, Any]]:
    """A list of objects of which these fields are read.

    Raises:
        NetworkError: It is none, or a field is missing or of another kind.
    """
    return [checked(each, **kinds) for each in _list(plain, name)]


def event_of(plain: dict[str, Any]) -> int:
    """The event that a statement became.

    Raises:
        NetworkError: It is malformed.
    """
    _fields(plain, event=COUNT)
    return int(plain["event"])


def _list(plain: dict[str, Any], name: str) -> list[Any]:
    value = plain.get(name)
    _need(isinstance(value, list), name)
    assert isinstance(value, list)
    return value


def _fields(plain: Any, /, **kinds: tuple[type, ...]) -> None:
    _need(isinstance(plain, dict), "an object")
    for name, kind in kinds.items():
        value = plain.get(name)
        _need(name in plain and isinstance(value, kind) and not isinstance(value, bool), name)


def _need(holds: bool, name: str) -> None:
    if not holds:
        raise NetworkError(f"the registry's answer is malformed: {name!r} is missing or of another kind")
