"""What this machine was told that references mean, so that it can go on without a network.

    $NEURAVERSE_HOME/cache/refs/<digest of registry and reference>.json

It also remembers which digest a version had, since a version never changes, whoever says so; and which
versions were revoked, so that they are not used without a network either. Only what a trusted key has signed
is remembered: else one lie would be believed for ever.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from neuraverse.client.refs import Ref, Resolved
from neuraverse.errors import IntegrityError, NeuraverseError, RevokedError
from neuraverse.storage import disk_errors, read_regular, write_atomic

_MAX_BYTES = 8192
_REASON_CHARACTERS = 1000


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
        found = self._read(ref)
        return None if found is None else found[0]

    def check(self, found: Resolved) -> None:
        """Whether a version still has the digest that it had.

        Raises:
            IntegrityError: It had another one.
        """
        known = self.recall(_exact(found))
        if known is not None and known.digest != found.digest:
            raise IntegrityError(
                f"the registry gives {found.ref} as {found.digest}; it was {known.digest} before",
                remedy="a version never changes: do not trust this registry",
            )

    def remember(self, ref: Ref, found: Resolved) -> None:
        """Keep what a reference means, and the version's digest for good.

        Args:
            ref: The reference.
            found: What it means; signed by a trusted key.

        Raises:
            IntegrityError: The version had another digest before.
            StorageError: The disk is full, read-only or gone.
        """
        self.check(found)
        bare = Resolved.of(found)
        for each in {ref, _exact(found)}:
            if self._read(each) != (bare, ""):
                self._write(each, bare)

    def revoke(self, ref: Ref, reason: str) -> None:
        """The registry says that a version was revoked; without a network, it stays so.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        known = self.recall(ref)
        if known is not None:
            self._write(ref, known, reason or f"{known.ref} was revoked")

    def refuse_revoked(self, found: Resolved) -> None:
        """Refuse a skill that was revoked when the registry was last asked.

        Raises:
            RevokedError: It was.
        """
        known = self._read(_exact(found))
        if known is not None and known[0].digest == found.digest and known[1]:
            raise RevokedError(known[1], remedy="use another version")

    def _read(self, ref: Ref) -> tuple[Resolved, str] | None:
        """What a reference means, and why that was revoked."""
        try:
            plain = json.loads(read_regular(self._path(ref), _MAX_BYTES))
            if plain["ref"] == str(ref) and plain["registry"] == self.registry:
                name, version, digest = (str(plain[k]) for k in ("name", "version", "digest"))
                return Resolved(name=name, version=version, digest=digest), str(plain.get("revoked", ""))
        except (NeuraverseError, ValueError, LookupError, TypeError):
            pass  # unreadable is as good as unknown
        return None

    def files(self, ref: Ref, found: Resolved) -> list[Path]:
        """The files that hold what was remembered, and their folder: flushed, they survive a power cut."""
        paths = [path for path in {self._path(ref), self._path(_exact(found))} if path.exists()]
        return [*paths, paths[0].parent] if paths else []

    def _write(self, ref: Ref, found: Resolved, revoked: str = "") -> None:
        path = self._path(ref)
        plain = {
            "ref": str(ref),
            "registry": self.registry,
            "name": found.name,
            "version": found.version,
            "digest": found.digest,
        }
        if revoked:
            plain["revoked"] = revoked[:_REASON_CHARACTERS]
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(plain).encode(), durable=bool(revoked))

    def _path(self, ref: Ref) -> Path:
        name = hashlib.sha256(f"{self.registry} {ref}".encode()).hexdigest()
        return self.home / "cache" / "refs" / f"{name}.json"


def _exact(found: Resolved) -> Ref:
    return Ref(name=found.name, which=found.version)
