"""Blobs in an S3-compatible store, through obstore.

    PREFIX/blobs/sha256/ab/ab12….9f3c               a whole blob
    PREFIX/incoming/<upload>/<offset>-<length>      pieces of a resumable upload
    PREFIX/quarantine/ab12….9f3c                    a blob that rotted

A put is durable when it returns, so `seal` has nothing to do. Downloads are answered with a presigned URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import obstore.store
from obstore.exceptions import BaseError

from neuraverse.errors import ConfigError, StorageError
from neuraverse.registry.limits import MIB
from neuraverse.registry.stores import Blob, Incoming, Stored, new_key

if TYPE_CHECKING:
    from neuraverse.registry.config import Settings

_PART_BYTES = 8 * MIB
_PIECE_BYTES = 8 * MIB


class S3Store:
    """Objects in one bucket, under one prefix.

    Args:
        settings: ``blobs`` is ``s3://bucket/prefix``; endpoint, region and credentials are read from it, too.

    Raises:
        ConfigError: The address is malformed.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = settings.blobs
        bucket, _, prefix = settings.blobs.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"{settings.blobs!r} names no bucket", remedy="write it as s3://bucket/prefix")
        options = {
            "endpoint": settings.s3_endpoint,
            "region": settings.s3_region,
            "access_key_id": settings.s3_access_key_id and settings.s3_access_key_id.get_secret_value(),
            "secret_access_key": settings.s3_secret_access_key
            and settings.s3_secret_access_key.get_secret_value(),
        }
        plain = (settings.s3_endpoint or "").startswith("http://")
        self._bucket = obstore.store.S3Store(
            bucket,
            prefix=prefix.strip("/") or None,
            client_options={"allow_http": plain, "timeout": "60s", "connect_timeout": "5s"},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
            **{name: value for name, value in options.items() if value},  # type: ignore[arg-type]
        )

    async def open(self) -> None:
        await self.probe()

    async def close(self) -> None:
        pass

    async def probe(self) -> None:
        name = f"incoming/.probe-{secrets.token_hex(6)}"
        with self._errors("write to"):
            await obstore.put_async(self._bucket, name, b"x")
            await obstore.delete_async(self._bucket, name)

    @contextlib.contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            reason = str(error).strip().partition("\n")[0][:300]
            raise StorageError(
                f"cannot {action} {self.name}: {reason}",
                remedy="check that the object store runs, the bucket exists and the credentials hold",
            ) from error

    async def receive(self, sha256: str, body: AsyncIterator[bytes]) -> Incoming:
        key, found, size = new_key(sha256), hashlib.sha256(), 0

        async def hashed() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in body:
                found.update(chunk)
                size += len(chunk)
                yield chunk

        with self._errors("write to"):
            await obstore.put_async(
                self._bucket, f"blobs/{key}", hashed(), use_multipart=True, chunk_size=_PART_BYTES
            )
        return Incoming(key=key, sha256=found.hexdigest(), size=size)

    async def keep(self, files: Mapping[str, bytes]) -> list[Incoming]:
        made = [
            Incoming(key=new_key(sha256), sha256=sha256, size=len(data)) for sha256, data in files.items()
        ]
        coming = (obstore.put_async(self._bucket, f"blobs/{each.key}", files[each.sha256]) for each in made)
        try:
            with self._errors("write to"):
                for result in await asyncio.gather(*coming, return_exceptions=True):
                    if isinstance(result, BaseException):
                        raise result
        except BaseException:
            for each in made:
                await self.delete(each.key)
            raise
        return made

    async def seal(self, arrived: Sequence[Incoming]) -> None:
        pass

    async def delete(self, key: str) -> None:
        with self._errors("write to"), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._bucket, f"blobs/{key}")

    async def size(self, key: str) -> int | None:
        with self._errors("read"):
            try:
                return int((await obstore.head_async(self._bucket, f"blobs/{key}"))["size"])
            except FileNotFoundError:
                return None

    async def concat(self, parts: Sequence[bytes | Blob]) -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, bytes):
                yield part
            else:
                async for chunk in self.read(part.key, 0, part.size):
                    yield chunk

    async def read(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        with self._errors("read"):
            while start < stop:
                until = min(start + _PIECE_BYTES, stop)
                data = await obstore.get_range_async(self._bucket, f"blobs/{key}", start=start, end=until)
                yield bytes(data)
                start = until

    def local(self, key: str) -> Path | None:
        return None

    async def url(self, key: str, seconds: int) -> str | None:
        with self._errors("sign for"):
            return await obstore.sign_async(
                self._bucket, "GET", f"blobs/{key}", expires_in=timedelta(seconds=seconds)
            )

    async def objects(self) -> AsyncIterator[Stored]:
        with self._errors("list"):
            async for page in obstore.list(self._bucket, prefix="blobs/sha256"):
                for each in page:
                    age = datetime.now(UTC) - each["last_modified"]
                    key = each["path"].removeprefix("blobs/")
                    yield Stored(key=key, size=each["size"], age_s=age.total_seconds())

    async def quarantine(self, key: str) -> None:
        with self._errors("move in"):
            name = key.rsplit("/", 1)[-1]
            await obstore.rename_async(self._bucket, f"blobs/{key}", f"quarantine/{name}")

    async def append(self, upload: str, offset: int, body: AsyncIterator[bytes], limit: int) -> int:
        buffer, at = bytearray(), offset
        try:
            async for chunk in body:
                buffer += chunk[: limit - at - len(buffer)]
                while len(buffer) >= _PIECE_BYTES:
                    at += await self._piece(upload, at, bytes(buffer[:_PIECE_BYTES]))
                    del buffer[:_PIECE_BYTES]
        finally:  # of an upload that is cut, what came is kept
            if buffer:
                await asyncio.shield(self._piece(upload, at, bytes(buffer)))
        return await self.received(upload)

    async def _piece(self, upload: str, offset: int, data: bytes) -> int:
        with self._errors("write to"):
            await obstore.put_async(self._bucket, f"incoming/{upload}/{offset:015d}-{len(data)}", data)
        return len(data)

    async def _pieces(self, upload: str) -> list[tuple[str, int]]:
        """Names and lengths of the pieces that follow each other from the first byte on."""
        found: dict[int, int] = {}
        with self._errors("list"):
            async for page in obstore.list(self._bucket, prefix=f"incoming/{upload}"):
                for each in page:
                    offset, _, length = each["path"].rsplit("/", 1)[-1].partition("-")
                    found[int(offset)] = max(int(length), found.get(int(offset), 0))
        pieces, at = [], 0
        while (size := found.get(at, 0)) > 0:
            pieces.append((f"incoming/{upload}/{at:015d}-{size}", size))
            at += size
        return pieces

    async def received(self, upload: str) -> int:
        return sum(length for _, length in await self._pieces(upload))

    async def finish(self, upload: str, sha256: str) -> Incoming:
        pieces = await self._pieces(upload)

        async def body() -> AsyncIterator[bytes]:
            for name, _ in pieces:
                with self._errors("read"):
                    answer = await obstore.get_async(self._bucket, name)
                    yield bytes(await answer.bytes_async())

        arrived = await self.receive(sha256, body())
        await self.discard(upload)
        return arrived

    async def discard(self, upload: str) -> None:
        names: list[str] = []
        with self._errors("list"):
            async for page in obstore.list(self._bucket, prefix=f"incoming/{upload}"):
                names += (each["path"] for each in page)
            if names:
                await obstore.delete_async(self._bucket, names)
