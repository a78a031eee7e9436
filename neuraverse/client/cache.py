"""What was pulled, on this machine's disk. Safe for several processes at once.

    $NEURAVERSE_HOME/cache/
        skills/<hex>/                whole, checked skill directories, by the digest of their manifest
        blobs/sha256/<hex>           files by their digest; hard links join them with the skills that use them
        partial/<hex>                a download on its way, locked by whoever writes it; goes on when cut

Nothing appears under ``skills`` or ``blobs`` before it is whole and checked: it is renamed there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from neuraverse.client.refs import Resolved
from neuraverse.storage import disk_errors, read_regular

_BUFFER_BYTES = 1 << 20


class Cache:
    """The cache under one home.

    Args:
        home: The folder that holds ``cache``; made when something is stored.
    """

    def __init__(self, home: Path) -> None:
        self._root = home / "cache"

    def skill(self, digest: str) -> Path:
        """Where the skill with this digest (``sha256:<hex>``) lives, whether it is there or not."""
        return self._root / "skills" / digest.removeprefix("sha256:")

    def name_of(self, digest: str) -> Resolved | None:
        """What the skill with this digest calls itself; None if it is not there."""
        from neuraverse.errors import ContentError
        from neuraverse.manifest import MAX_MANIFEST_BYTES, SkillManifest

        path = self.skill(digest) / "manifest.json"
        try:
            manifest = SkillManifest.parse(read_regular(path, MAX_MANIFEST_BYTES))
        except ContentError:
            return None
        return Resolved(name=manifest.name, version=manifest.version, digest=digest)

    def blob(self, sha256: str) -> Path:
        """Where the file with this hex digest lives, whether it is there or not."""
        return self._root / "blobs" / "sha256" / sha256

    def has_blob(self, sha256: str, size: int) -> bool:
        """Whether the file is there with the right bytes; a spoilt one is removed."""
        path = self.blob(sha256)
        with disk_errors("read", path):
            try:
                with path.open("rb") as file:
                    if os.fstat(file.fileno()).st_size == size and hash_of(file).hexdigest() == sha256:
                        return True
            except FileNotFoundError:
                return False
            path.unlink(missing_ok=True)
        return False

    @contextlib.contextmanager
    def working_on(self, name: str) -> Iterator[BinaryIO]:
        """The file ``partial/<name>``, held by this thread alone; others that ask for it wait.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        path = self._root / "partial" / name
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _locked(path)
        with file:
            yield file

    def drop(self, name: str) -> None:
        """Remove ``partial/<name>``; call it while working on it."""
        with contextlib.suppress(OSError):
            (self._root / "partial" / name).unlink()

    def keep(self, file: BinaryIO, sha256: str) -> None:
        """Make the partial file a blob; its bytes have been checked.

        It is not flushed to the disk: whoever takes it from the cache checks it again.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        target = self.blob(sha256)
        with disk_errors("write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._root / "partial" / sha256, target)
            os.fchmod(file.fileno(), 0o444)  # last: a partial file must stay one that can be written

    def place(self, sha256: str, target: Path) -> None:
        """Put a blob at `target`: a hard link, or a copy where there are none.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        source = self.blob(sha256)
        with disk_errors("write", target):
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)

    def discard_skill(self, digest: str) -> None:
        """Remove a skill whose files have changed; it vanishes at once.

        Raises:
            StorageError: The disk is read-only or gone.
        """
        path = self.skill(digest)
        grave = path.with_name(f".{path.name}.{os.getpid()}.old")
        with disk_errors("remove", path):
            os.rename(path, grave)
            shutil.rmtree(grave, ignore_errors=True)


def hash_of(file: BinaryIO) -> hashlib._Hash:
    """SHA-256 state over a whole file, which then is at its end."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while data := file.read(_BUFFER_BYTES):
        sha256.update(data)
    return sha256


def _locked(path: Path) -> BinaryIO:
    while True:
        file = open(path, "r+b", buffering=0, opener=_open_or_create)  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before may have renamed or removed the file that we opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _open_or_create(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
