"""The registry itself, without HTTP: blobs, index and feed, and what a publish must pass."""

from __future__ import annotations

import asyncio
from pathlib import Path

from neuraverse.graph import check_graph
from neuraverse.manifest import SkillManifest, digest_of
from neuraverse.registry.blobs import BlobStore
from neuraverse.registry.database import Database
from neuraverse.registry.feed import Feed
from neuraverse.registry.index import Index, Submission
from neuraverse.registry.problems import Problem
from neuraverse.skill import check_blob
from neuraverse.storage import read_regular


class Registry:
    """One registry in one folder.

    Args:
        data_dir: The folder; it must exist. ``registry.db`` is the index, ``blobs`` holds the files.
    """

    def __init__(self, data_dir: Path) -> None:
        self.blobs = BlobStore(data_dir)
        self.feed = Feed()
        self._database = Database(data_dir / "registry.db")
        self.index = Index(self._database)
        self._one_check = asyncio.Lock()
        self._opened = False

    async def open(self) -> None:
        """Make ready; calling it again does nothing.

        Raises:
            StorageError: The folder or the database cannot be used.
        """
        if not self._opened:
            self.blobs.open()
            await self._database.open()
            self._opened = True

    async def close(self) -> None:
        """Send waiting readers home and close the database."""
        self.feed.close()
        await self._database.close()
        self._opened = False

    async def publish(self, manifest: bytes, signature: bytes, public_key: bytes) -> tuple[Submission, bool]:
        """Check a skill whose blobs are here, and make it visible.

        Returns:
            What was published, and whether it is new (False: the same bytes were there).

        Raises:
            ContentError: The manifest, the signature, the weights or the graph are wrong.
            Problem: A blob is missing, the organisation belongs to another key, the version is taken, or a
                parent does not exist.
        """
        new = await asyncio.to_thread(_checked, manifest, signature, public_key)
        await asyncio.to_thread(self._need_blobs, new.manifest)
        async with self._one_check:  # it holds a file in memory
            await asyncio.to_thread(self._check_content, new.manifest)
        created = await self.index.publish(new)
        self.feed.wake()
        return new, created

    async def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version.

        Raises:
            Problem: There is no such version.
        """
        if await self.index.set_alias(name, alias, version):
            self.feed.wake()

    def _need_blobs(self, manifest: SkillManifest) -> None:
        for name, entry in manifest.files.items():
            size = self.blobs.size(entry.sha256)
            if size is None:
                raise Problem(
                    422,
                    "missing-blob",
                    f"the blob of {name}, {entry.sha256}, has not been uploaded",
                    remedy="PUT it under /v1/blobs first",
                )
            if size != entry.size:
                raise Problem(
                    422,
                    "size",
                    f"{name} has {size} bytes; the manifest says {entry.size}",
                    remedy="mend the manifest",
                )
            self.blobs.settle(entry.sha256)

    def _check_content(self, manifest: SkillManifest) -> None:
        """Weights and graph, as every client will check them, but nothing is run."""

        def read(name: str) -> bytes:
            entry = manifest.files[name]  # type: ignore[index]
            return read_regular(self.blobs.path(entry.sha256), entry.size)

        check_blob("model.safetensors", read("model.safetensors"), manifest)
        check_graph(read("policy.onnx"))


def _checked(manifest: bytes, signature: bytes, public_key: bytes) -> Submission:
    from neuraverse import trust  # loads the signing library, which is slow to import

    parsed = SkillManifest.parse(manifest)
    key = trust.PublicKey.parse(public_key)
    return Submission(
        manifest=parsed,
        data=manifest,
        digest=digest_of(manifest),
        signature=signature,
        fingerprint=trust.verify_manifest(manifest, signature, [key]),
        pem=key.pem.decode(),
    )
