"""What this machine was told that references mean, so that it can go on without a network.

    $NEURAVERSE_HOME/cache/refs/<digest of registry and reference>.json

It also remembers which digest a version had: a version never changes, whoever says so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from neuraverse.client.refs import Ref, Resolved
from neuraverse.errors import IntegrityError, NeuraverseError
from neuraverse.storage import disk_errors, read_regular, write_atomic

_MAX_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Memory:
    """References of one registry.

    Attributes:
        home: The folder that holds ``cache``.
        registry: Address of the registry.
    """

    home: Path
    registry: str

    def recall(self, ref: Ref) -> Resolved | None:
        """What a reference meant when the registry was last asked."""
        try:
            plain = json.loads(read_regular(self._path(ref), _MAX_BYTES))
            if plain["ref"] == str(ref) and plain["registry"] == self.registry:
                name, version, digest = (str(plain[k]) for k in ("name", "version", "digest"))
                return Resolved(name=name, version=version, digest=digest)
        except (NeuraverseError, ValueError, LookupError, TypeError):
            pass
        return None

    def remember(self, ref: Ref, found: Resolved) -> None:
        """Keep what a reference means now, and the version's digest for good.

        Raises:
            IntegrityError: The version had another digest before.
            StorageError: The disk is full, read-only or gone.
        """
        exact = Ref(name=found.name, which=found.version)
        known = self.recall(exact)
        if known is not None and known.digest != found.digest:
            raise IntegrityError(
                f"the registry gives {found.ref} as {found.digest}; it was {known.digest} before",
                remedy="a version never changes: do not trust this registry",
            )
        for each in {ref, exact}:
            if self.recall(each) != found:
                self._write(each, found)

    def forget(self, ref: Ref) -> None:
        """The registry says that there is no such thing any more.

        Raises:
            StorageError: The disk is read-only or gone.
        """
        path = self._path(ref)
        with disk_errors("remove", path):
            path.unlink(missing_ok=True)

    def _write(self, ref: Ref, found: Resolved) -> None:
        path = self._path(ref)
        plain = {
            "ref": str(ref),
            "registry": self.registry,
            "name": found.name,
            "version": found.version,
            "digest": found.digest,
        }
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(plain).encode())

    def _path(self, ref: Ref) -> Path:
        name = hashlib.sha256(f"{self.registry} {ref}".encode()).hexdigest()
        return self.home / "cache" / "refs" / f"{name}.json"
