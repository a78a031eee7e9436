"""Blobs on a local disk, addressed by SHA-256, durable before they are visible.

    DATA/incoming/<random>             an upload on its way; removed at the next start if the server dies
    DATA/blobs/sha256/ab/ab12…         a whole blob; read-only

The order is: write and hash into ``incoming``, fsync the file, rename, fsync the folder. A blob that can be
seen therefore has the right bytes, and survives a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from neuraverse.errors import IntegrityError
from neuraverse.registry.limits import MIB
from neuraverse.storage import disk_errors, sync_folder

_BUFFER_BYTES = MIB


class BlobStore:
    """Content-addressed files under one folder.

    Args:
        data_dir: The registry's data folder; it must exist.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "blobs" / "sha256"
        self._incoming = data_dir / "incoming"

    def open(self) -> None:
        """Create the folders and drop what an interrupted server left of uploads.

        Raises:
            StorageError: The folder cannot be written.
        """
        with disk_errors("prepare", self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._incoming, ignore_errors=True)
            self._incoming.mkdir(exist_ok=True)
            for folder in (self._root.parent, self._root.parent.parent):
                sync_folder(folder)

    def path(self, digest: str) -> Path:
        """Where the blob with this hex digest lives, whether it is there or not."""
        return self._root / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        """Length in bytes; None if there is no such blob."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def settle(self, digest: str) -> None:
        """Make the name of a blob that is there durable, however far the upload that brought it has come.

        Raises:
            StorageError: The disk is failing.
        """
        folder = self.path(digest).parent
        with disk_errors("write", folder):
            sync_folder(folder)
            sync_folder(self._root)

    async def put(self, digest: str, body: AsyncIterator[bytes]) -> bool:
        """Store a body under the digest that it claims.

        Args:
            digest: Hex SHA-256 that the bytes must have.
            body: The bytes, in chunks of any size; not read if the blob is already there.

        Returns:
            True if it is new, False if it was there.

        Raises:
            IntegrityError: The bytes have another digest; nothing is kept.
            StorageError: The disk is full, read-only or failing; nothing is kept.
        """
        target = self.path(digest)
        if target.exists():
            return False
        with disk_errors("write", target):
            descriptor, name = tempfile.mkstemp(dir=self._incoming)
            try:
                actual = await _write(descriptor, body)
                if actual != digest:
                    raise IntegrityError(
                        f"the body has the digest {actual}, not {digest}",
                        remedy="send the bytes that the digest names",
                    )
                await _off_loop(_seal, descriptor, Path(name), target)
            finally:
                os.close(descriptor)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        return True


async def _write(descriptor: int, body: AsyncIterator[bytes]) -> str:
    """Write and hash `body`, a buffer at a time and off the event loop.

    Returns:
        The hex digest of all of it.
    """
    sha256 = hashlib.sha256()

    def flush(data: bytearray) -> None:
        sha256.update(data)
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.write(descriptor, view[done:])
        data.clear()

    buffer = bytearray()
    async for chunk in body:
        buffer += chunk
        if len(buffer) >= _BUFFER_BYTES:
            await _off_loop(flush, buffer)
    await _off_loop(flush, buffer)
    return sha256.hexdigest()


def _seal(descriptor: int, temporary: Path, target: Path) -> None:
    os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)
    if not target.parent.exists():
        target.parent.mkdir(exist_ok=True)
        sync_folder(target.parent.parent)
    temporary.replace(target)
    sync_folder(target.parent)


async def _off_loop(function: Callable[..., None], *args: object) -> None:
    """Run in a thread; a cancelled caller still waits for it, since the thread works on the caller's file."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
