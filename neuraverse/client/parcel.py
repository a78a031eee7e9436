"""A skill as it comes in one answer: an archive, taken apart and checked while it streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from neuraverse.client.refs import Ref, Resolved
from neuraverse.errors import IntegrityError


class Parcel:
    """Manifest and signature are read at once, the files when they are asked for.

    Args:
        chunks: The archive, in pieces.
        ref: What was asked for.

    Attributes:
        manifest_bytes: The exact bytes of the manifest.
        signature: Those of the signature, which is for others to check.
        manifest: What the manifest says.
        digest: ``sha256:<hex>`` of it.
        total: Length of all files [bytes].

    Raises:
        ContentError: It begins with something else than a manifest and a signature.
    """

    def __init__(self, chunks: Iterator[bytes], ref: Ref) -> None:
        from neuraverse.archive import Reader
        from neuraverse.manifest import BLOBS, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, SkillManifest, digest_of
        from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE

        self._ref = ref
        self._reader = Reader(chunks, (MANIFEST, SIGNATURE, *BLOBS), limit=MAX_FILE_BYTES)
        self._members = self._reader.members()
        self.manifest_bytes = self._document(MAX_MANIFEST_BYTES)
        self.signature = self._document(MAX_SIGNATURE_BYTES)
        self.manifest = SkillManifest.parse(self.manifest_bytes)
        self.digest = digest_of(self.manifest_bytes)
        self.total = sum(entry.size for entry in self.manifest.files.values())

    def _document(self, limit: int) -> bytes:
        name, size = next(self._members)
        if size > limit:
            raise IntegrityError(f"the registry sends {size} bytes for {name}; at most {limit} are allowed")
        return self._reader.data()

    def found(self, said: str, wanted: Resolved | None) -> Resolved:
        """What the registry answers the reference with, if it can be that.

        Args:
            said: The digest that it says it sends.
            wanted: What it must be.

        Raises:
            IntegrityError: It cannot.
        """
        ref, manifest = self._ref, self.manifest
        found = Resolved(name=manifest.name, version=manifest.version, digest=self.digest)
        wrong = manifest.name != ref.name or said != self.digest or not ref.admits(manifest.version)
        if wanted is not None:
            wrong = wrong or found.digest != wanted.digest
        if wrong:
            meant = ref if wanted is None else f"{wanted.ref} ({wanted.digest})"
            raise IntegrityError(
                f"the registry answered {meant} with {manifest.ref} ({self.digest})", remedy="do not trust it"
            )
        return found

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file, as the manifest lists it.

        Raises:
            IntegrityError: The registry sends something else.
        """
        for name, size in self._members:
            entry = self.manifest.files[name]  # type: ignore[index]
            content = self._reader.data() if size == entry.size else b""
            if size != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
                raise IntegrityError(
                    f"the registry sent other bytes for {name} than the manifest lists",
                    remedy="do not trust this registry; ask its operator to check its disk",
                )
            yield name, content
