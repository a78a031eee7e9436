"""Blobs on a local disk.

    DATA/blobs/sha256/7e/ab12….9f3c      a whole blob; read-only
    DATA/incoming/<upload>               a resumable upload on its way
    DATA/quarantine/ab12….9f3c           a blob that rotted

A blob is written under its final name, which nobody else knows yet; then file and folder are flushed, and
only then does a row of the database speak of it. Files without a row are what a crash left; the collector
removes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from neuraverse.errors import StorageError
from neuraverse.registry.stores import Blob, Incoming, Stored, new_key
from neuraverse.storage import disk_errors, flush, sync_folder

T = TypeVar("T")
_BUFFER_BYTES = 384 << 10  # of each download under way; less is slower, more is memory


class LocalStore:
    """Content-addressed files under one folder.

    Args:
        data_dir: The registry's data folder; it must exist.
    """

    def __init__(self, data_dir: Path) -> None:
        self.name = str(data_dir / "blobs")
        self._root = data_dir / "blobs"
        self._incoming = data_dir / "incoming"
        self._quarantine = data_dir / "quarantine"

    async def open(self) -> None:
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        with disk_errors("prepare", self._root):
            for folder in (self._root, self._incoming, self._quarantine):
                folder.mkdir(parents=True, exist_ok=True)
            top = self._root / "sha256"
            top.mkdir(exist_ok=True)
            for i in range(256):
                (top / f"{i:02x}").mkdir(exist_ok=True)
            for folder in (top, self._root, self._root.parent):
                sync_folder(folder)

    async def close(self) -> None:
        pass

    async def probe(self) -> None:
        def write() -> None:
            path = self._incoming / f".probe-{os.getpid()}"
            with disk_errors("write", path):
                path.write_bytes(b"x")
                path.unlink()

        await asyncio.to_thread(write)

    async def receive(self, sha256: str, body: AsyncIterator[bytes]) -> Incoming:
        key = new_key(sha256)
        path = self._root / key
        with self._new(path) as descriptor:
            found, size = await _write(descriptor, body)
        return Incoming(key=key, sha256=found, size=size)

    async def keep(self, files: Mapping[str, bytes]) -> list[Incoming]:
        return await off_loop(self._keep, files)

    def _keep(self, files: Mapping[str, bytes]) -> list[Incoming]:
        shard = secrets.token_hex(1)  # one for all of them: a folder is to be flushed, too
        made = [
            Incoming(key=new_key(sha256, shard), sha256=sha256, size=len(data))
            for sha256, data in files.items()
        ]

        try:
            for each in made:
                with self._new(self._root / each.key) as descriptor:
                    _write_all(descriptor, files[each.sha256])
            self._seal(made)
        except BaseException:
            for each in made:
                with contextlib.suppress(OSError):  # or the collector removes it
                    (self._root / each.key).unlink(missing_ok=True)
            raise
        return made

    @contextlib.contextmanager
    def _new(self, path: Path) -> Iterator[int]:
        """A file that is gone again if the block fails."""
        with disk_errors("write", path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                yield descriptor
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)

    async def seal(self, arrived: Sequence[Incoming]) -> None:
        await off_loop(self._seal, arrived)

    def _seal(self, arrived: Sequence[Incoming]) -> None:
        files = [self._root / each.key for each in arrived]
        if files:
            flush([*files, *{file.parent for file in files}])

    async def delete(self, key: str) -> None:
        path = self._root / key
        with disk_errors("remove", path):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def size(self, key: str) -> int | None:
        try:
            with disk_errors("read", self._root / key):
                return (self._root / key).stat().st_size
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    async def read(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Each piece is read while the one before it is sent."""
        path, loop = self._root / key, asyncio.get_running_loop()

        def piece() -> list[asyncio.Future[bytes]]:
            count = min(_BUFFER_BYTES, stop - start)
            return [loop.run_in_executor(None, os.pread, descriptor, count, start)] if count > 0 else []

        with disk_errors("read", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            coming = piece()
            try:
                while coming:
                    (data,) = await _all(coming)
                    if not data:
                        raise _short(path)
                    start += len(data)
                    coming = piece()
                    yield data
            finally:
                try:
                    with contextlib.suppress(OSError):  # nobody wants it any more
                        await _all(coming)
                finally:
                    os.close(descriptor)

    async def concat(self, parts: Sequence[bytes | Blob]) -> AsyncIterator[bytes]:
        pieces = self._pieces(parts)
        try:
            while data := await off_loop(next, pieces, b""):
                yield data
        finally:
            pieces.close()

    def _pieces(self, parts: Sequence[bytes | Blob]) -> Generator[bytes]:
        """The same, small objects put together: each piece costs a turn of the event loop."""
        buffer = bytearray()
        for part in parts:
            for data in [part] if isinstance(part, bytes) else self._chunks(part):
                if not buffer and len(data) >= _BUFFER_BYTES:
                    yield data
                    continue
                buffer += data
                if len(buffer) >= _BUFFER_BYTES:
                    yield bytes(buffer)
                    buffer.clear()
        yield bytes(buffer)

    def _chunks(self, blob: Blob) -> Iterator[bytes]:
        path, left = self._root / blob.key, blob.size
        with disk_errors("read", path), path.open("rb", buffering=0) as file:
            while left:
                data = file.read(min(_BUFFER_BYTES, left))
                if not data:
                    raise _short(path)
                left -= len(data)
                yield data

    def local(self, key: str) -> Path | None:
        return self._root / key

    async def url(self, key: str, seconds: int) -> str | None:
        return None

    async def objects(self) -> AsyncIterator[Stored]:
        for shard in await asyncio.to_thread(lambda: sorted((self._root / "sha256").iterdir())):
            for stored in await asyncio.to_thread(self._shard, shard):
                yield stored

    def _shard(self, folder: Path) -> list[Stored]:
        found = []
        with disk_errors("list", folder), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    key = f"sha256/{folder.name}/{entry.name}"
                    found.append(Stored(key=key, size=status.st_size, age_s=time.time() - status.st_mtime))
        return found

    async def quarantine(self, key: str) -> None:
        path = self._root / key
        with disk_errors("move", path):
            await asyncio.to_thread(os.replace, path, self._quarantine / path.name)

    async def append(self, upload: str, offset: int, body: AsyncIterator[bytes], limit: int) -> int:
        path = self._incoming / upload
        with disk_errors("write", path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # One writer at a time, in whatever process: a client that was cut may come back at once.
                await off_loop(fcntl.flock, descriptor, fcntl.LOCK_EX)
                os.lseek(descriptor, offset, os.SEEK_SET)
                os.ftruncate(descriptor, offset)
                await _write(descriptor, body, limit - offset)
            finally:
                os.close(descriptor)
        return await self.received(upload)

    async def received(self, upload: str) -> int:
        path = self._incoming / upload
        with disk_errors("read", path):
            return path.stat().st_size if path.exists() else 0

    async def finish(self, upload: str, sha256: str) -> Incoming:
        key, source = new_key(sha256), self._incoming / upload

        def settle() -> Incoming:
            with disk_errors("read", source), source.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            with disk_errors("write", self._root / key):
                source.chmod(0o444)
                os.rename(source, self._root / key)
            return Incoming(key=key, sha256=found, size=size)

        return await asyncio.to_thread(settle)

    async def discard(self, upload: str) -> None:
        path = self._incoming / upload
        with disk_errors("remove", path):
            await asyncio.to_thread(path.unlink, missing_ok=True)


def _short(path: Path) -> StorageError:
    return StorageError(f"{path} is shorter than it was", remedy="run `neuraverse registry check`")


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done:])


async def _write(descriptor: int, body: AsyncIterator[bytes], limit: int | None = None) -> tuple[str, int]:
    """Write and hash `body`, a buffer at a time and off the event loop; what is past `limit` is left out.

    Returns:
        The hex digest and the length of what was written.
    """
    sha256, size = hashlib.sha256(), 0

    def store(data: bytearray) -> None:
        sha256.update(data)
        _write_all(descriptor, data)
        data.clear()

    buffer = bytearray()
    try:
        async for chunk in body:
            buffer += chunk if limit is None else chunk[: limit - size]
            size += len(chunk)
            if len(buffer) >= _BUFFER_BYTES:
                await off_loop(store, buffer)
    finally:  # of an upload that is cut, what came is kept
        await off_loop(store, buffer)
    return sha256.hexdigest(), size


async def off_loop(function: Callable[..., T], *args: object) -> T:
    """Run in a thread; a cancelled caller still waits for it, since the thread works on the caller's file."""
    return (await _all([asyncio.get_running_loop().run_in_executor(None, function, *args)]))[0]


async def _all(waiting: list[asyncio.Future[T]]) -> list[T]:
    """Wait for all, however often the caller is cancelled: their threads use descriptors of the caller's.

    Raises:
        CancelledError: The caller was cancelled; all have ended.
        Exception: The first of theirs.
    """
    gathered = asyncio.gather(*waiting, return_exceptions=True)
    cancelled: asyncio.CancelledError | None = None
    while not gathered.done():
        try:
            await asyncio.shield(gathered)
        except asyncio.CancelledError as error:
            cancelled = error
    results = gathered.result()
    if cancelled is not None:
        raise cancelled
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
