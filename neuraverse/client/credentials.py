"""Tokens of registries, one for each, in a file that nobody else may read.

``$NEURAVERSE_HOME/credentials.json``, mode 0600. ``$NEURAVERSE_TOKEN`` counts more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from neuraverse.errors import IntegrityError, UsageError
from neuraverse.storage import disk_errors, read_regular, write_atomic

FILE = "credentials.json"
VARIABLE = "NEURAVERSE_TOKEN"
_MAX_BYTES = 1 << 20


def token_for(home: Path, url: str) -> str | None:
    """The token to send to a registry; None if there is none.

    Raises:
        UsageError: The file of tokens is broken.
    """
    given = os.environ.get(VARIABLE, "").strip()
    return given or kept_for(home, url)


def kept_for(home: Path, url: str) -> str | None:
    """The token of a registry in the file, whatever the environment says; None if there is none.

    Raises:
        UsageError: The file of tokens is broken.
    """
    found = _read(home).get(url)
    return found["token"] if found else None


def remember(home: Path, url: str, token: str, account: str, expires: str) -> None:
    """Keep the token of a registry; one that was kept for it before is forgotten.

    Raises:
        UsageError: The file of tokens is broken.
        StorageError: The disk is full or read-only.
    """
    _write(home, _read(home) | {url: {"token": token, "account": account, "expires": expires}})


def ready(home: Path) -> None:
    """Make sure that a token can be kept, before there is one that would be lost.

    Raises:
        UsageError: The file of tokens is broken.
        StorageError: The disk is full or read-only.
    """
    _write(home, _read(home))


def forget(home: Path, url: str) -> bool:
    """Remove the token of a registry; whether there was one.

    Raises:
        UsageError: The file of tokens is broken.
        StorageError: The disk is read-only.
    """
    held = _read(home)
    if held.pop(url, None) is None:
        return False
    _write(home, held)
    return True


def _read(home: Path) -> dict[str, dict[str, Any]]:
    path = home / FILE
    if not path.exists():
        return {}
    try:
        held = json.loads(read_regular(path, _MAX_BYTES))
        if not all(isinstance(each["token"], str) for each in held.values()):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IntegrityError) as error:
        raise UsageError(
            f"{path} holds no tokens of registries", remedy="remove it, and `neuraverse login` again"
        ) from error
    return held  # type: ignore[no-any-return]


def _write(home: Path, held: dict[str, dict[str, Any]]) -> None:
    with disk_errors("make", home):
        home.mkdir(parents=True, exist_ok=True)
    write_atomic(home / FILE, json.dumps(held, indent=2).encode() + b"\n", mode=0o600)
