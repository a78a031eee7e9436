"""A skill as it comes in one answer: an archive, taken apart and checked while it streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from neuraverse.client.refs import Resolved
from neuraverse.errors import IntegrityError


class Parcel:
    """Manifest and signature are read at once, the files when they are asked for.

    Args:
        chunks: The archive, in pieces.

    Attributes:
        manifest_bytes: The exact bytes of the manifest.
        signature: Those of the signature, which is for others to check.
        manifest: What the manifest says.
        means: Which skill that is.
        total: Length of all files [bytes].

    Raises:
        ContentError: It begins with something else than a manifest and a signature.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        from neuraverse.archive import Reader
        from neuraverse.manifest import BLOBS, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, SkillManifest, digest_of
        from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE

        self._reader = Reader(chunks, (MANIFEST, SIGNATURE, *BLOBS), limit=MAX_FILE_BYTES)
        self._members = self._reader.members()
        self.manifest_bytes = self._document(MAX_MANIFEST_BYTES)
        self.signature = self._document(MAX_SIGNATURE_BYTES)
        self.manifest = SkillManifest.parse(self.manifest_bytes)
        digest = digest_of(self.manifest_bytes)
        self.means = Resolved(name=self.manifest.name, version=self.manifest.version, digest=digest)
        self.total = sum(entry.size for entry in self.manifest.files.values())

    def _document(self, limit: int) -> bytes:
        name, size = next(self._members)
        if size > limit:
            raise IntegrityError(f"the registry sends {size} bytes for {name}; at most {limit} are allowed")
        return self._reader.data()

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
