"""One skill from a registry into the cache, refused as early as anything is wrong with it.

A small skill comes whole in one answer, an archive; a large one file by file, each of which goes on where it
was cut. Either way the manifest comes first: signature, trust and interface are checked before any file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse import archive
from neuraverse.client.cache import Cache
from neuraverse.client.download import Progress, fetch
from neuraverse.client.memory import Memory
from neuraverse.client.parcel import Parcel
from neuraverse.client.refs import LATEST, Ref, Resolved, printable, resolved_of, texts_of
from neuraverse.client.transport import TAR, Transport
from neuraverse.errors import (
    ContentError,
    IncompatibleError,
    IntegrityError,
    NetworkError,
    RegistryError,
    RevokedError,
)
from neuraverse.storage import disk_errors, new_folder

if TYPE_CHECKING:
    import httpx

    from neuraverse.interface import Offer
    from neuraverse.manifest import SkillManifest
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

log = logging.getLogger("neuraverse.client")
ARCHIVE_BYTES = archive.SMALL_BYTES  # a skill whose files are larger than this in all comes file by file


class Pull:
    """A pull for one robot.

    Args:
        transport: The registry.
        cache: Where skills are kept.
        memory: What references meant before.
        keys: Keys to accept.
        offer: What the robot can supply; None skips the question.
        progress: Called with bytes done and bytes in total.
    """

    def __init__(
        self,
        transport: Transport,
        cache: Cache,
        memory: Memory,
        keys: KeyStore,
        offer: Offer | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._transport = transport
        self._cache = cache
        self._memory = memory
        self._keys = keys
        self._offer = offer
        self._progress = progress

    def named(self, ref: Ref) -> Skill:
        """What a reference by name means now; what it meant before, if the registry cannot be asked.

        See `Client.pull` for the errors.
        """
        skill = self.if_wanted(ref)
        assert skill is not None
        return skill

    def if_wanted(
        self,
        ref: Ref,
        wants: Callable[[Resolved], bool] = lambda _: True,
        held: Resolved | None = None,
        known: Iterable[Resolved] = (),
    ) -> Skill | None:
        """As `named`, if it is wanted; see `Client.pull_if`."""
        before = self._memory.recall(ref)
        if before is not None and not self._cache.skill(before.digest).exists():
            before = None
        here = [each for each in (held, *known, before) if each is not None and each.name == ref.name]
        try:
            skill = self._whole(ref, here=here, held=held, wants=wants)
        except _Unanswered as error:
            if before is None:
                raise error.why from None
            log.warning("%s - going on with %s, which it meant before", error.why, before.ref)
            self._memory.refuse_revoked(before)
            stale = dataclasses.replace(before, asked=str(ref), fresh=False)
            return self._here(ref, before) if wants(stale) else None
        if skill is not None:
            self._keep_in_mind(ref, Resolved.of(skill))
        return skill

    def settled(self, found: Resolved) -> Skill:
        """A skill by its digest, from the cache or else from the registry.

        See `Client.pull` for the errors.
        """
        with self._alone(found):
            skill = self._cached(found)
        if skill is None:
            try:
                skill = self._whole(Ref(name=found.name, which=found.version), wanted=found)
            except _Unanswered as error:
                raise error.why from None
            assert skill is not None
        self._memory.remember(Ref.parse(found.asked or found.ref), found)
        return skill

    def offline(self, ref: Ref) -> Skill:
        """What a reference meant when the registry was last asked, from the cache alone.

        Raises:
            RevokedError: It was revoked.
            NetworkError: It is not in the cache, whole and trusted.
            IncompatibleError: It does not fit the robot.
        """
        held = self._cache.name_of(ref.digest) if ref.digest else self._memory.recall(ref)
        if held is not None:
            self._memory.refuse_revoked(held)
        return self._here(ref, held)

    def _here(self, ref: Ref, held: Resolved | None) -> Skill:
        """The skill that a reference means, from the cache alone."""
        if held is not None:
            with self._alone(held):
                skill = self._cached(held)
            if skill is not None:
                return skill
        raise NetworkError(f"{ref} is not in the cache", remedy="pull it when the registry can be reached")

    def _alone(self, found: Resolved) -> AbstractContextManager[None]:
        """Among all that pull this skill or would remove it."""
        return self._cache.alone_with(found.digest)

    def _cached(self, found: Resolved) -> Skill | None:
        """The skill from the cache, if it is there and still what it was."""
        from neuraverse.skill import MANIFEST, SIGNATURE, Skill

        path = self._cache.skill(found.digest)
        if not path.exists():
            return None
        try:
            skill = Skill.open(path)
            if skill.digest != found.digest:
                raise IntegrityError(f"{path} holds {skill.digest}")
            self._admit(skill.manifest, skill.read(MANIFEST), skill.read(SIGNATURE), found)
        except ContentError:  # changed on the disk, or not trusted any more: the registry's copy will tell
            return None
        return self._cache.hold(skill)

    def _whole(
        self,
        ref: Ref,
        *,
        wanted: Resolved | None = None,
        here: Sequence[Resolved] = (),
        held: Resolved | None = None,
        wants: Callable[[Resolved], bool] = lambda _: True,
    ) -> Skill | None:
        """Ask for all of a skill at once; what is in the cache is not sent again.

        Args:
            ref: Its name.
            wanted: What it must mean.
            here: What need not be sent.
            held: Of what the registry is to tell, too.
            wants: Whether to go on, once it is known what the reference means.

        Raises:
            _Unanswered: The registry could not be asked what it means.
        """
        found: Resolved | None = None
        skill: Skill | None = None
        path = f"{ref.path}/archive"
        tags = dict.fromkeys(archive.etag(each.digest) for each in here)
        headers = {"If-None-Match": ", ".join(tags)} if here else {}
        params = {"held": held.version} if held is not None and held.name == ref.name else None
        try:
            with self._transport.stream("GET", path, headers=headers, params=params, ok=(200, 304)) as answer:
                _warn(answer)
                parcel: Parcel | None = None
                means = self._told(answer, here, ref)
                if means is None:
                    parcel = self._opened(answer, path)
                    means = parcel.means
                _expect(ref, means, wanted)
                self._memory.check(means)
                state = answer.headers.get("neuraverse-held") if params else None
                gone = None if state is None else state == "revoked"
                found = dataclasses.replace(Resolved.of(means), asked=str(ref), gone=gone)
                if not wants(found):
                    return None
                if answer.status_code == 200 and not self._cache.skill(found.digest).exists():
                    parcel = parcel or self._opened(answer, path)
                    _expect(ref, parcel.means, found)
                    self._admit(parcel.manifest, parcel.manifest_bytes, parcel.signature, found)
                    skill = self._unpack(found, parcel)
        except NetworkError as error:
            if found is None:
                raise _Unanswered(error) from error
            log.debug("%s: going on file by file", error)
        except RevokedError as error:
            if found is None:
                note_revoked(self._transport, self._memory, ref, error)
            raise
        if skill is None:  # large, or in the cache already, or spoilt there, or cut
            with self._alone(found):
                skill = self._cached(found) or self._download(found)
        return skill

    def _told(self, answer: httpx.Response, here: Sequence[Resolved], ref: Ref) -> Resolved | None:
        """What the head of an answer says that a reference means; older registries leave that to the body."""
        headers = answer.headers
        if answer.status_code == 304:
            tag, digest = headers.get("etag", "").removeprefix("W/"), headers.get("neuraverse-digest", "")
            if not tag and not digest and len({each.digest for each in here}) == 1:
                return here[0]  # a proxy passes no headers on
            found = next((e for e in here if archive.etag(e.digest) == tag or e.digest == digest), None)
            if found is None:
                raise NetworkError(f"{self._transport.url} says that {ref} is here, which it is not")
            return found
        if "neuraverse-version" not in headers:
            return None
        means = {"version": headers["neuraverse-version"], "digest": headers.get("neuraverse-digest", "")}
        return resolved_of({"name": ref.name, **means})

    def _opened(self, answer: httpx.Response, path: str) -> Parcel:
        """The body of an answer, whose manifest is the one that its head names."""
        self._transport.expect(answer, TAR, path)
        parcel, digest = Parcel(self._transport.chunks(answer)), answer.headers.get("neuraverse-digest", "")
        if parcel.means.digest != digest:
            raise IntegrityError(
                f"the registry sent {parcel.means.ref} ({parcel.means.digest}) as {printable(digest)!r}",
                remedy="do not trust it",
            )
        return parcel

    def _keep_in_mind(self, ref: Ref, found: Resolved) -> None:
        from neuraverse.manifest import version_key

        before = self._memory.recall(ref)
        fell = before is not None and version_key(found.version) < version_key(before.version)
        if before is not None and fell and ref.which == LATEST:
            log.warning("%s means %s now; it meant %s before", ref, found.ref, before.ref)
        self._memory.remember(ref, found)

    def _unpack(self, found: Resolved, parcel: Parcel) -> Skill | None:
        """The skill, out of its archive into the cache; None if it is better fetched file by file."""
        if parcel.total > ARCHIVE_BYTES:
            return None
        with self._alone(found):
            if self._cache.skill(found.digest).exists():  # or another process has brought it meanwhile
                return None
            return self._write(found, parcel)

    def _write(self, found: Resolved, parcel: Parcel) -> Skill:
        """What is checked is what came; whoever takes it from the cache checks what lies there."""
        from neuraverse.skill import MANIFEST, SIGNATURE, Skill, check_blob

        target, done = self._cache.skill(found.digest), 0
        with new_folder(target, durable=False) as folder:
            for name, content in parcel.files():
                check_blob(name, content, parcel.manifest)
                with disk_errors("write", target):
                    (folder / name).write_bytes(content)
                done += len(content)
                if self._progress is not None:
                    self._progress(done, parcel.total)
            with disk_errors("write", target):
                (folder / MANIFEST).write_bytes(parcel.manifest_bytes)
                (folder / SIGNATURE).write_bytes(parcel.signature)
        return self._cache.hold(Skill(target, parcel.manifest_bytes, parcel.manifest))

    def _download(self, found: Resolved) -> Skill:
        from neuraverse.manifest import SkillManifest
        from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Skill

        data = fetch_manifest(self._transport, found.digest)
        path = f"/v1/manifests/{found.digest.removeprefix('sha256:')}/signature"
        signature = self._transport.bytes(path, MAX_SIGNATURE_BYTES, "a signature")
        manifest = SkillManifest.parse(data)
        self._admit(manifest, data, signature, found)
        self._fetch_files(manifest)
        target = self._cache.skill(found.digest)
        if target.exists():
            self._cache.discard_skill(found.digest)
        with new_folder(target, durable=False) as folder:
            for name, entry in manifest.files.items():
                self._cache.place(entry.sha256, folder / name)
            with disk_errors("write", target):
                (folder / MANIFEST).write_bytes(data)
                (folder / SIGNATURE).write_bytes(signature)
            Skill.open(folder)  # every byte once more, as it lies on the disk
        return self._cache.hold(Skill(target, data, manifest))

    def _fetch_files(self, manifest: SkillManifest) -> None:
        total = sum(entry.size for entry in manifest.files.values())
        done = 0

        def tick(here: int) -> None:
            if self._progress is not None:
                self._progress(done + here, total)

        for entry in manifest.files.values():
            fetch(self._transport, self._cache, entry.sha256, entry.size, tick)
            done += entry.size

    def _admit(self, manifest: SkillManifest, data: bytes, signature: bytes, found: Resolved) -> None:
        """Whether a manifest is what was asked for, is signed by a trusted key, and fits the robot."""
        from neuraverse.trust import verify_manifest

        if (manifest.name, manifest.version) != (found.name, found.version):
            raise IntegrityError(
                f"the registry answered {found.ref} with the manifest of {manifest.ref}",
                remedy="do not trust it",
            )
        verify_manifest(data, signature, self._keys.trusted_for(manifest.org), manifest=manifest)
        _fit(manifest, self._offer)


class _Unanswered(Exception):  # noqa: N818 - it never leaves this module
    """The registry could not be asked what a reference means."""

    def __init__(self, why: NetworkError) -> None:
        super().__init__(str(why))
        self.why = why


def _expect(ref: Ref, means: Resolved, wanted: Resolved | None) -> None:
    """Whether a registry may answer so.

    Raises:
        IntegrityError: It may not.
    """
    if wanted is not None and (means.ref, means.digest) != (wanted.ref, wanted.digest):
        raise IntegrityError(
            f"the registry answered {wanted.ref} ({wanted.digest}) with {means.ref} ({means.digest})",
            remedy="do not trust it",
        )
    ref.expect(means)


def note_revoked(transport: Transport, memory: Memory, ref: Ref, error: RevokedError) -> None:
    """Remember that what a reference means was revoked.

    Of an alias the registry does not say what it means now; it is asked for the version that it meant before.
    """
    if ref.is_exact:
        memory.revoke(ref, error.message)
        return
    known = memory.recall(ref)
    if known is not None:
        exact = Ref(name=known.name, which=known.version)
        try:
            transport.json("GET", exact.path)
        except RevokedError as now:
            memory.revoke(exact, now.message)
        except (RegistryError, NetworkError):
            pass


def fetch_manifest(transport: Transport, digest: str) -> bytes:
    """The exact bytes of a manifest; see `Client.manifest`."""
    from neuraverse.manifest import MAX_MANIFEST_BYTES, digest_of

    path = f"/v1/manifests/{digest.removeprefix('sha256:')}"
    data = transport.bytes(path, MAX_MANIFEST_BYTES, "a manifest")
    if digest_of(data) != digest:
        raise IntegrityError(
            f"the registry sent a manifest with the digest {digest_of(data)} for {digest}",
            remedy="do not trust this registry; ask its operator to check its disk",
        )
    return data


def open_local(path: Path, offer: Offer | None, keys: KeyStore) -> Skill:
    """A skill from a folder, under the same conditions as from a registry."""
    from neuraverse.skill import Skill
    from neuraverse.trust import verify_skill

    def admit(skill: Skill) -> None:
        verify_skill(skill, keys)
        _fit(skill.manifest, offer)

    return Skill.open(path, admit=admit)


def _fit(manifest: SkillManifest, offer: Offer | None) -> None:
    problems = manifest.interface.problems(offer) if offer is not None else []
    if offer is not None and problems:
        raise IncompatibleError(
            f"{manifest.ref} does not fit {offer.robot}",
            problems=problems,
            remedy="choose a skill whose interface the robot can supply",
        )


def _warn(answer: httpx.Response) -> None:
    """Pass on what the publisher wants to be known."""
    with contextlib.suppress(ValueError, RecursionError, NetworkError):
        for text in texts_of(json.loads(answer.headers.get("neuraverse-warnings", "[]"))):
            log.warning("%s", text)
