"""What the cache keeps: a list, a check of every byte, and room for more."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse.client.cache import Cache
from neuraverse.errors import ContentError, IntegrityError
from neuraverse.storage import disk_errors

if TYPE_CHECKING:
    from neuraverse.trust import KeyStore

DAY_S = 86_400.0
_STALE_S = DAY_S  # partial downloads that nobody goes on with, and blobs that no skill uses


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A skill in the cache.

    Attributes:
        name: ``org/skill``; empty if its manifest cannot be read.
        version: Its version.
        digest: ``sha256:<hex>``.
        path: Its folder.
        size: Length of its files [bytes].
        used: When it was last used [s since 1970].
    """

    name: str
    version: str
    digest: str
    path: Path
    size: int
    used: float

    @property
    def ref(self) -> str:
        """``org/skill@version``, or the digest if there is no telling."""
        return f"{self.name}@{self.version}" if self.name else self.digest


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed.

    Attributes:
        skills: The skills.
        in_use: Skills that were to go, too, but are in use.
        files: Partial downloads, and blobs that no skill uses.
        size: Length of what is gone [bytes].
    """

    skills: tuple[Kept, ...]
    in_use: tuple[Kept, ...]
    files: int
    size: int


def kept(cache: Cache) -> list[Kept]:
    """The skills in the cache, the last used first.

    Raises:
        StorageError: The disk failed.
    """
    found = []
    folder = cache.root / "skills"
    with disk_errors("read", folder):
        paths = sorted(folder.glob("[!.]*"))
    for path in paths:
        try:
            used = path.stat().st_mtime
            size = sum(file.stat().st_size for file in path.iterdir())
        except FileNotFoundError:  # removed meanwhile
            continue
        digest = f"sha256:{path.name}"
        named = cache.name_of(digest)
        name, version = (named.name, named.version) if named is not None else ("", "")
        found.append(Kept(name=name, version=version, digest=digest, path=path, size=size, used=used))
    return sorted(found, key=lambda each: (-each.used, each.ref))


def verify(cache: Cache, keys: KeyStore) -> Iterator[tuple[Kept, ContentError | None]]:
    """Check every byte of each skill in the cache and that a trusted key signed it.

    Yields:
        Each skill, and what is wrong with it.
    """
    from neuraverse.skill import Skill
    from neuraverse.trust import verify_skill

    for each in kept(cache):
        try:
            skill = Skill.open(each.path, admit=lambda skill: verify_skill(skill, keys))
            if skill.digest != each.digest:
                raise IntegrityError(f"{each.path} holds {skill.digest}", remedy="pull it again")
        except ContentError as error:
            yield each, error
        else:
            yield each, None


def chosen(
    skills: Collection[Kept],
    *,
    unused_s: float | None = None,
    last: int | None = None,
    spared: Collection[str] = (),
    now: float | None = None,
) -> list[Kept]:
    """Those of the skills that may go: all that no condition spares.

    Args:
        skills: The last used first.
        unused_s: Spare what was used within so many seconds.
        last: Spare so many versions of each skill, those that were used last.
        spared: Spare these: ``org/skill``, ``org/skill@version`` or digests.
        now: Seconds since 1970; by the clock if not given. If it was set back, more is spared.
    """
    at = time.time() if now is None else now
    seen: dict[str, int] = {}
    gone = []
    for each in skills:
        seen[each.name] = seen.get(each.name, 0) + 1
        if last is not None and each.name and seen[each.name] <= last:
            continue
        if unused_s is not None and at - each.used < unused_s:
            continue
        if not {each.name, each.ref, each.digest}.isdisjoint(spared):
            continue
        gone.append(each)
    return gone


def prune(cache: Cache, skills: Collection[Kept], *, now: float | None = None) -> Pruned:
    """Remove skills, and what is left over from downloads and of removed skills; never what is in use.

    Args:
        cache: The cache.
        skills: Those to remove.
        now: Seconds since 1970; by the clock if not given.

    Raises:
        StorageError: The disk is read-only or gone.
    """
    at = time.time() if now is None else now
    gone: list[Kept] = []
    in_use: list[Kept] = []
    size, loosened = 0, set[int]()
    for each in skills:
        removed = cache.remove_skill(each.digest)
        if removed is None:
            in_use.append(each)
            continue
        gone.append(each)
        size += removed.size
        loosened |= removed.inodes
    sizes = cache.sweep(at - _STALE_S, loosened)
    return Pruned(skills=tuple(gone), in_use=tuple(in_use), files=len(sizes), size=size + sum(sizes))
