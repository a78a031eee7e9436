"""Where bytes lie: a local disk or an S3-compatible store.

A key is ``sha256/<2 hex>/<64 hex>.<random>`` and never used twice; the two digits spread them over folders.
So an upload that races another, or the removal of an older copy of the same bytes, cannot touch what it did
not make. Whether bytes are part of the registry is said by a row of ``blobs``, written once they are durable.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Blob", "Incoming", "Store", "Stored", "new_key", "sha256_of"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object of a store.

    Attributes:
        key: Its name.
        size: Length [bytes].
        age_s: Time since it was written [s], by the store's clock.
    """

    key: str
    size: int
    age_s: float


@dataclass(frozen=True, kw_only=True)
class Blob:
    """An object that a row of ``blobs`` speaks of.

    Attributes:
        sha256: Hex digest.
        size: Length [bytes].
        key: Its name in the store.
    """

    sha256: str
    size: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """Bytes that have arrived and are hashed; they become an object when `Store.seal` is called.

    Attributes:
        key: The name that they will have.
        sha256: Hex digest.
        size: Length [bytes].
    """

    key: str
    sha256: str
    size: int


class Store(Protocol):
    """What the registry asks of a store. Every method raises `StorageError` when the store fails."""

    name: str

    async def open(self) -> None:
        """Make ready."""

    async def close(self) -> None:
        """Let go."""

    async def probe(self) -> None:
        """Raise unless the store can be written."""

    async def receive(self, sha256: str, body: AsyncIterator[bytes]) -> Incoming:
        """Take a stream in under a new key for `sha256`; the digest found is in the answer."""

    async def seal(self, arrived: Sequence[Incoming]) -> None:
        """Make them durable, all at once."""

    async def keep(self, files: Mapping[str, bytes]) -> list[Incoming]:
        """Take in bytes in memory by their digest, which the caller has checked; durable, all or none."""

    async def delete(self, key: str) -> None:
        """Remove an object; one that is gone is no error."""

    async def size(self, key: str) -> int | None:
        """Length of an object, or None if it is not there."""

    def read(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Its bytes from `start` up to `stop`."""

    def concat(self, parts: Sequence[bytes | Blob]) -> AsyncIterator[bytes]:
        """Bytes and whole objects, one after the other."""

    def local(self, key: str) -> Path | None:
        """Its path, if it is a file on this machine."""

    async def url(self, key: str, seconds: int) -> str | None:
        """An address where anybody can read it for some time, if the store has such a thing."""

    def objects(self) -> AsyncIterator[Stored]:
        """Every object."""

    async def quarantine(self, key: str) -> None:
        """Take a rotten object out of the way, but keep it for people to look at."""

    async def append(self, upload: str, offset: int, body: AsyncIterator[bytes], limit: int) -> int:
        """Add to an upload at `offset`, `limit` bytes in total at most; the new length, however it ended."""

    async def received(self, upload: str) -> int:
        """How many bytes of an upload are here."""

    async def finish(self, upload: str, sha256: str) -> Incoming:
        """Turn an upload into an object, hashing all of it; the upload itself is used up."""

    async def discard(self, upload: str) -> None:
        """Remove what there is of an upload."""


def new_key(sha256: str, shard: str = "") -> str:
    """A name that was never used before.

    Args:
        sha256: Hex digest of the object.
        shard: Two hexadecimal digits; those of the digest if not given.
    """
    return f"sha256/{shard or sha256[:2]}/{sha256}.{secrets.token_hex(6)}"


def sha256_of(key: str) -> str:
    """The digest in a key; the first release left out the random part."""
    return key.rsplit("/", 1)[-1].partition(".")[0]
