"""One skill from a registry into the cache, refused as early as anything is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse.client.cache import Cache
from neuraverse.client.download import Progress, fetch
from neuraverse.client.refs import Resolved
from neuraverse.client.transport import Transport
from neuraverse.errors import ContentError, IncompatibleError, IntegrityError
from neuraverse.storage import disk_errors, new_folder

if TYPE_CHECKING:
    from neuraverse.interface import Offer
    from neuraverse.manifest import SkillManifest
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore


class Pull:
    """A pull for one robot.

    Args:
        transport: The registry.
        cache: Where skills are kept.
        keys: Keys to accept.
        offer: What the robot can supply; None skips the question.
        progress: Called with bytes done and bytes in total.
    """

    def __init__(
        self,
        transport: Transport,
        cache: Cache,
        keys: KeyStore,
        offer: Offer | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._transport = transport
        self._cache = cache
        self._keys = keys
        self._offer = offer
        self._progress = progress

    def run(self, found: Resolved) -> Skill:
        """The skill, from the cache or else from the registry; see `Client.pull` for the errors."""
        name = f"skill-{found.digest.removeprefix('sha256:')}"
        with self._cache.working_on(name):
            try:
                return self._cached(found) or self._download(found)
            finally:
                self._cache.drop(name)

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
            self._admit(skill.read(MANIFEST), skill.read(SIGNATURE), found)
        except ContentError:  # changed on the disk, or not trusted any more: the registry's copy will tell
            return None
        return skill

    def _download(self, found: Resolved) -> Skill:
        from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Skill

        data = fetch_manifest(self._transport, found.digest)
        path = f"/v1/manifests/{found.digest.removeprefix('sha256:')}/signature"
        signature = self._transport.bytes(path, MAX_SIGNATURE_BYTES, "a signature")
        manifest = self._admit(data, signature, found)
        self._fetch_files(manifest)
        target = self._cache.skill(found.digest)
        if target.exists():
            self._cache.discard_skill(found.digest)
        with new_folder(target) as folder:
            for name, entry in manifest.files.items():
                self._cache.place(entry.sha256, folder / name)
            with disk_errors("write", target):
                (folder / MANIFEST).write_bytes(data)
                (folder / SIGNATURE).write_bytes(signature)
            Skill.open(folder)  # every byte once more, as it lies on the disk
        return Skill(target, data)

    def _fetch_files(self, manifest: SkillManifest) -> None:
        total = sum(entry.size for entry in manifest.files.values())
        done = 0

        def tick(here: int) -> None:
            if self._progress is not None:
                self._progress(done + here, total)

        for entry in manifest.files.values():
            fetch(self._transport, self._cache, entry.sha256, entry.size, tick)
            done += entry.size

    def _admit(self, data: bytes, signature: bytes, found: Resolved) -> SkillManifest:
        """Whether a manifest is what was asked for, is signed by a trusted key, and fits the robot."""
        from neuraverse.manifest import SkillManifest
        from neuraverse.trust import verify_manifest

        manifest = SkillManifest.parse(data)
        if (manifest.name, manifest.version) != (found.name, found.version):
            raise IntegrityError(
                f"the registry answered {found.ref} with the manifest of {manifest.ref}",
                remedy="do not trust it",
            )
        verify_manifest(data, signature, self._keys.trusted_for(manifest.org))
        _fit(manifest, self._offer)
        return manifest


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
