"""One file from a registry into the cache: hashed as it streams, resumed when cut, never longer than said."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from neuraverse.client.cache import Cache, hash_of
from neuraverse.client.transport import LEAST_RATE, Transport
from neuraverse.errors import IntegrityError, NetworkError, StorageError
from neuraverse.storage import disk_errors

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in total."""

FRUITLESS_TRIES = 4  # in a row, without new bytes worth the time


def fetch(
    transport: Transport,
    cache: Cache,
    sha256: str,
    size: int,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Bring a blob into the cache, unless it is there.

    Args:
        transport: The registry.
        cache: Where to.
        sha256: Hex digest that it must have.
        size: Length that it must have [bytes].
        progress: Called with the bytes of this blob that are here.

    Raises:
        IntegrityError: The registry sent other bytes; nothing of them is kept.
        NetworkError: It was cut too often; what came is kept, and the next call goes on from there.
        NotFoundError: The registry does not have it.
        StorageError: The disk is full, read-only or gone; nothing half-written is kept.
    """
    if cache.has_blob(sha256, size):
        progress(size)
        return
    with cache.working_on(sha256) as file:
        if cache.has_blob(sha256, size):  # another process brought it while we waited
            cache.drop(sha256)
            progress(size)
            return
        try:
            _Download(transport, file, sha256, size, progress).run()
            cache.keep(file, sha256)
        except (IntegrityError, StorageError):
            cache.drop(sha256)
            raise


class _Download:
    def __init__(
        self, transport: Transport, file: BinaryIO, sha256: str, size: int, progress: Callable[[int], None]
    ) -> None:
        self._transport = transport
        self._file = file
        self._path = Path(file.name)
        self._sha256 = sha256
        self._size = size
        self._progress = progress
        self._have = 0
        self._hash = hashlib.sha256()

    def run(self) -> None:
        with disk_errors("read", self._path):
            self._hash = hash_of(self._file)
            self._have = self._file.tell()
        resumed = self._have > 0
        if self._have > self._size:
            self._restart()
        self._transfer()
        if self._hash.hexdigest() != self._sha256 and resumed:  # what an earlier run left may be to blame
            self._restart()
            self._transfer()
        actual = self._hash.hexdigest()
        if actual != self._sha256:
            raise IntegrityError(
                f"the registry sent bytes with the SHA-256 {actual} for the blob {self._sha256}",
                remedy="do not trust this registry; ask its operator to check its disk",
            )

    def _transfer(self) -> None:
        """Go on until all bytes are there, as long as tries bring new ones."""
        fruitless = 0
        while self._have < self._size:
            before, begun = self._have, time.monotonic()
            try:
                self._once()
            except NetworkError as error:
                enough = max(1.0, LEAST_RATE * (time.monotonic() - begun))  # who drips is not waited for
                fruitless = 0 if self._have - before >= enough else fruitless + 1
                if fruitless >= FRUITLESS_TRIES:
                    raise NetworkError(
                        f"{error.message} (blob {self._sha256[:12]}, {self._have} of {self._size} bytes)",
                        remedy="run it again: it goes on from there",
                    ) from error
                time.sleep(random.uniform(0.0, 0.1 * 2**fruitless))

    def _once(self) -> None:
        # No If-Range: the address is the digest, and nginx or an object store have entity tags of their own.
        headers = {"Range": f"bytes={self._have}-"} if self._have else {}
        path = f"/v1/blobs/{self._sha256}"
        with self._transport.blob(path, headers, (200, 206, 416)) as response:
            if response.status_code == 416:
                self._restart()
                raise NetworkError(f"the registry refused to go on with the blob {self._sha256}")
            if response.status_code == 200 and self._have:
                self._restart()
            elif response.status_code == 206:
                self._check_start(response)
            for chunk in self._transport.chunks(response):
                self._append(chunk)
        if self._have < self._size:
            raise NetworkError("the answer ended early")

    def _check_start(self, response: httpx.Response) -> None:
        got = response.headers.get("content-range", "")
        if not got.startswith(f"bytes {self._have}-"):
            self._restart()
            raise NetworkError(f"the registry sent the range {got[:100]!r}, which was not asked for")

    def _append(self, chunk: bytes) -> None:
        if self._have + len(chunk) > self._size:
            raise IntegrityError(
                f"the registry sends more than the {self._size} bytes of the blob {self._sha256}",
                remedy="do not trust this registry",
            )
        with disk_errors("write", self._path), memoryview(chunk) as view:
            done = 0
            while done < len(view):
                done += os.write(self._file.fileno(), view[done:])
        self._hash.update(chunk)
        self._have += len(chunk)
        self._progress(self._have)

    def _restart(self) -> None:
        with disk_errors("write", self._path):
            self._file.seek(0)
            self._file.truncate()
        self._have = 0
        self._hash = hashlib.sha256()
