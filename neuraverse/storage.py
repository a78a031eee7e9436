"""Files that are whole or absent: atomic writes, bounded reads, and disk errors as `StorageError`.

Everything is written to a temporary name in the same folder, flushed to the disk, and renamed. A crash, a
full disk or Ctrl-C at any instant leaves either the old state or the new one. What reads refuses anything
but a regular file below a size limit, without following a symbolic link and without waiting on a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from neuraverse.errors import IntegrityError, StorageError, UsageError

_PIECE_BYTES = 1 << 20
_REMEDY = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space in your quota and try again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "you have no permission there; choose another folder or change its owner",
    errno.EPERM: "you have no permission there; choose another folder or change its owner",
    errno.ENOENT: "check the path",
    errno.EISDIR: "a folder is there; move it away",
    errno.EMFILE: "too many open files; raise the limit with ulimit -n",
}


@contextlib.contextmanager
def disk_errors(action: str, path: Path) -> Iterator[None]:
    """Turn every `OSError` of the block into a `StorageError`.

    Args:
        action: What is tried, such as ``"write"``.
        path: The file or folder it is tried on.

    Raises:
        StorageError: The operating system refused.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = _REMEDY.get(error.errno or 0, "check the disk")
        raise StorageError(f"cannot {action} {path}: {reason}", remedy=remedy) from error


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        IntegrityError: It is missing, larger, or something else than a regular file.
        StorageError: The disk failed.
    """
    with _regular(path, limit) as (file, size):
        data = file.read(size)
        while data and len(data) < size and (part := file.read(size - len(data))):
            data += part
        if len(data) != size or file.read(1):
            raise IntegrityError(f"{path} changed its size while it was read")
    return data


def hash_regular(path: Path, limit: int, look: Callable[[memoryview], object]) -> tuple[int, str]:
    """Length and hex SHA-256 of a regular file of at most `limit` bytes, without holding it in memory.

    Args:
        path: The file.
        limit: Its length at most [bytes].
        look: Called with each piece, in order, while it is hashed; the piece is valid until it returns.

    Raises:
        IntegrityError: It is missing, larger, or something else than a regular file.
        StorageError: The disk failed.
    """
    sha256, at = hashlib.sha256(), 0
    with _regular(path, limit) as (file, size), ThreadPoolExecutor(1, "hash") as pool:
        buffers = [
            memoryview(bytearray(min(size + 1, _PIECE_BYTES)))
            for _ in range(2 if size >= _PIECE_BYTES else 1)
        ]
        hashing = None
        while count := file.readinto(buffers[0]):
            part = buffers[0][:count]
            if hashing is not None:
                hashing.result()
            if len(buffers) == 1:
                sha256.update(part)
            else:
                hashing = pool.submit(sha256.update, part)
            look(part)
            at += count
            if at > size:  # it grows, perhaps for ever
                break
            buffers.reverse()
        if hashing is not None:
            hashing.result()
        if at != size:
            raise IntegrityError(f"{path} changed its size while it was read")
    return size, sha256.hexdigest()


@contextlib.contextmanager
def _regular(path: Path, limit: int) -> Iterator[tuple[FileIO, int]]:
    """A regular file, open, and its size."""
    with disk_errors("read", path):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise IntegrityError(f"{path.name} is missing in {path.parent}") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise IntegrityError(f"{path} is a symbolic link, not a file") from None
            raise
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise IntegrityError(f"{path} is not a regular file")
            if status.st_size > limit:
                raise IntegrityError(f"{path} has {status.st_size} bytes; at most {limit} are allowed")
            with open(handle, "rb", buffering=0, closefd=False) as file:
                yield file, status.st_size
        finally:
            os.close(handle)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file, whole or not at all; an existing one is replaced.

    Args:
        path: Where.
        data: What.
        mode: Its permissions.
        durable: Whether it must survive a power cut from then on; see `flush`.

    Raises:
        StorageError: The disk is full, read-only or gone. The old file, if any, is still there.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    with disk_errors("write", path):
        try:
            _write_new(temporary, data, mode, durable)
            os.replace(temporary, path)
            if durable:
                sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def put_link(path: Path, target: Path | str) -> None:
    """Make a symbolic link, in the place of one that is there: at every instant it is the old or the new one.

    It survives a power cut from then on.

    Args:
        path: Where; its folder is made if need be.
        target: What it points to.

    Raises:
        StorageError: The disk is full, read-only or gone, or a folder is there. What was there still is.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    with disk_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(target, temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_link(path: Path) -> None:
    """Remove a symbolic link, if there is one, for good.

    Raises:
        StorageError: The disk is read-only or gone.
    """
    with disk_errors("remove", path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A folder that appears at `path`, whole, when the block ends without an error.

    Args:
        path: Where.
        durable: Whether it must survive a power cut from then on; see `flush`.

    Yields:
        A temporary folder beside `path`, on the same file system, to be filled with plain files.

    Raises:
        UsageError: Something exists at `path` already.
        StorageError: The disk is full, read-only or gone. Nothing was left at `path`.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already", remedy="choose another folder or remove it")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        yield temporary
        with disk_errors("write", path):
            if durable:
                _sync_all([*temporary.iterdir(), temporary])
            os.rename(temporary, path)
            try:
                if durable:
                    sync_folder(path.parent)
            except OSError:
                os.rename(path, temporary)
                raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def flush(paths: Sequence[Path]) -> None:
    """Make files durable that were written without, and folders; whether they were flushed already or not.

    Raises:
        StorageError: The disk is full, read-only or gone.
    """
    with disk_errors("flush", paths[0]):
        _sync_all(paths)


def sync_folder(path: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_all(paths: Sequence[Path]) -> None:
    """Let the writing of all begin, then wait for each: they share one commit of the file system's journal.

    Linux begins to write what is advised not to be needed. Threads that wait together share the commit, too,
    at several times the CPU (`docs/decisions/what-a-publish-and-a-pull-cost.md`).
    """
    with contextlib.ExitStack() as stack:
        handles = []
        for path in paths:
            handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            stack.callback(os.close, handles[-1])
            with contextlib.suppress(OSError, AttributeError):  # advice alone, and not to be had everywhere
                os.posix_fadvise(handles[-1], 0, 0, os.POSIX_FADV_DONTNEED)
        for handle in handles:
            os.fsync(handle)


def _write_new(path: Path, data: bytes, mode: int, durable: bool) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(handle, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
