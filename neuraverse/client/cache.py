"""What was pulled, on this machine's disk. Safe for several processes at once.

    $NEURAVERSE_HOME/cache/
        skills/<hex>/                whole, checked skill directories, by the digest of their manifest
        blobs/sha256/<hex>           files by their digest; hard links join them with the skills that use them
        partial/<hex>                a download on its way, locked by whoever writes it; goes on when cut
        refs/                        what references meant (`neuraverse.client.memory`)
        links/<digest of a path>     points to a link outside that points to a skill, which therefore stays

Nothing appears under ``skills`` or ``blobs`` before it is whole and checked: it is renamed there. The time of
a skill's folder is when it was last used, and whoever uses it holds a shared lock on it. Whoever pulls holds
one on the folder ``partial``; who removes blobs holds it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

from neuraverse.client.refs import Resolved
from neuraverse.storage import disk_errors, put_link, read_regular

if TYPE_CHECKING:
    from neuraverse.skill import Skill

_BUFFER_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What the removal of a skill freed.

    Attributes:
        size: Bytes.
        inodes: Of its files; those that are blobs, too, are not freed yet.
    """

    size: int
    inodes: frozenset[int]


class Cache:
    """The cache under one home.

    Args:
        home: The folder that holds ``cache``; made when something is stored.
    """

    def __init__(self, home: Path) -> None:
        self.root = home / "cache"

    def skill(self, digest: str) -> Path:
        """Where the skill with this digest (``sha256:<hex>``) lives, whether it is there or not."""
        return self.root / "skills" / digest.removeprefix("sha256:")

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

    @contextlib.contextmanager
    def alone_with(self, digest: str) -> Iterator[None]:
        """Nobody else pulls or removes the skill with this digest meanwhile, nor removes any blob.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        path = self._lock_of(digest)
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        with lock, self.pulling():
            yield

    def _lock_of(self, digest: str) -> Path:
        """The lock of a skill, which it shares with one in sixteen others.

        A file for each, made and removed, would slow down the next ones: for half a minute, ext4 passes over
        the place of what was removed whenever it looks for a free one.
        """
        return self.root / "locks" / digest.removeprefix("sha256:")[:1]

    @contextlib.contextmanager
    def pulling(self) -> Iterator[None]:
        """Nobody removes blobs meanwhile.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        path = self.root / "partial"
        with disk_errors("write", path):
            path.mkdir(parents=True, exist_ok=True)
        with _opened(path) as folder:
            with contextlib.suppress(OSError):  # where there are no locks, nobody can remove a blob either
                fcntl.flock(folder, fcntl.LOCK_SH)
            yield

    def hold(self, skill: Skill) -> Skill:
        """Keep a skill from being removed for as long as the object lives, and note that it was used now."""
        with contextlib.suppress(OSError):  # where there are no locks, or the disk is read-only
            handle = os.open(skill.path, _FOLDER)
            weakref.finalize(skill, os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(skill.path)
        return skill

    def keep_linked(self, link: Path) -> None:
        """Keep whatever skill `link` points to from being removed, for as long as it does.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        name = hashlib.sha256(os.fsencode(link.absolute())).hexdigest()
        put_link(self.root / "links" / name, link.absolute())

    def linked(self) -> set[str]:
        """Digests of the skills that links outside point to."""
        found = set()
        for path in sorted((self.root / "links").glob("*")):
            with contextlib.suppress(OSError):  # the link is gone, or no link any more
                found.add(f"sha256:{Path(os.readlink(os.readlink(path))).name}")
        return found

    def blob(self, sha256: str) -> Path:
        """Where the file with this hex digest lives, whether it is there or not."""
        return self.root / "blobs" / "sha256" / sha256

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
        path = self.root / "partial" / name
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _locked(path)
        with file:
            yield file

    def drop(self, name: str) -> None:
        """Remove ``partial/<name>``; call it while working on it."""
        with contextlib.suppress(OSError):
            (self.root / "partial" / name).unlink()

    def keep(self, file: BinaryIO, sha256: str) -> None:
        """Make the partial file a blob; its bytes have been checked.

        It is not flushed to the disk: whoever takes it from the cache checks it again.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        target = self.blob(sha256)
        with disk_errors("write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / "partial" / sha256, target)
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

    def remove_skill(self, digest: str) -> Removed | None:
        """Remove a skill, unless somebody uses or links to it, or pulls it or one that shares its lock.

        Returns:
            What that freed; None if it is in use.

        Raises:
            StorageError: The disk is read-only or gone.
        """
        path = self.skill(digest)
        if digest in self.linked():
            return None
        with disk_errors("remove", path):
            self._lock_of(digest).parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(self._lock_of(digest), wait=False)
            if lock is None:
                return None
            with lock:
                try:
                    with _opened(path) as folder:
                        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        files = [file.lstat() for file in path.iterdir()]
                        self.discard_skill(digest)
                except BlockingIOError:
                    return None
                except FileNotFoundError:  # another process was quicker
                    files = []
        size = sum(file.st_size for file in files if file.st_nlink == 1)
        return Removed(size=size, inodes=frozenset(file.st_ino for file in files))

    def sweep(self, before: float, loosened: Collection[int] = ()) -> list[int]:
        """Remove what nobody needs: cut downloads, half-written folders, blobs that no skill uses.

        Args:
            before: What was written later than this stays [s since 1970]: somebody may go on with it.
            loosened: Inodes of blobs that go at any age.

        Returns:
            The size of each file and folder that is gone [bytes].

        Raises:
            StorageError: The disk is read-only or gone.
        """
        sizes = []
        with disk_errors("remove", self.root):
            for path in _older(self.root / "partial", before):
                file = _locked(path, wait=False)
                if file is not None:
                    with file:
                        sizes.append(os.fstat(file.fileno()).st_size)
                        path.unlink()
            for path in (*_older(self.root / "skills", before), *_older(self.root / "refs", before)):
                if path.name.startswith("."):
                    sizes.append(path.lstat().st_size)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            return sizes + self._sweep_blobs(before, loosened)

    def _sweep_blobs(self, before: float, loosened: Collection[int]) -> list[int]:
        sizes: list[int] = []
        blobs, partial = self.root / "blobs" / "sha256", self.root / "partial"
        if not blobs.is_dir() or not partial.is_dir():
            return sizes
        with _opened(partial) as folder:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # somebody pulls, and may be about to use one of them
                return sizes
            for path in sorted(blobs.iterdir()):
                status = path.stat()
                if status.st_nlink == 1 and (status.st_mtime < before or status.st_ino in loosened):
                    path.unlink()
                    sizes.append(status.st_size)
        return sizes


def hash_of(file: BinaryIO) -> hashlib._Hash:
    """SHA-256 state over a whole file, which then is at its end."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while data := file.read(_BUFFER_BYTES):
        sha256.update(data)
    return sha256


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, _FOLDER)
    try:
        yield handle
    finally:
        os.close(handle)


@overload
def _locked(path: Path) -> BinaryIO: ...


@overload
def _locked(path: Path, *, wait: bool) -> BinaryIO | None: ...


def _locked(path: Path, *, wait: bool = True) -> BinaryIO | None:
    """A file that nobody else has locked, made if need be; None if it is locked and we do not wait."""
    while True:
        file = open(path, "r+b", buffering=0, opener=_open_or_create)  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Who held it before may have renamed or removed the file that we opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()


def _older(folder: Path, before: float) -> list[Path]:
    """What lies in a folder, last changed before a time."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # another process is at work there
            if path.lstat().st_mtime < before:
                found.append(path)
    return found


def _open_or_create(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
