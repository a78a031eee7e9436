"""The client: search, resolve, pull, publish, watch.

A pull goes: resolve → manifest (bounded) → digest → signature and trust → does it fit the robot → files,
hashed while they stream → check of the whole → rename into the cache. Each step refuses before the next costs
anything, and no weight is read of a skill that is not signed by a trusted key or does not fit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from neuraverse.client.cache import Cache
from neuraverse.client.download import Progress, fetch
from neuraverse.client.refs import Event, Ref, Resolved, Summary, is_path, resolved_of
from neuraverse.client.transport import Transport
from neuraverse.client.watch import watch
from neuraverse.errors import (
    ContentError,
    IncompatibleError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    SignatureError,
)
from neuraverse.storage import disk_errors, new_folder, write_atomic

if TYPE_CHECKING:
    import httpx

    from neuraverse.interface import Offer
    from neuraverse.manifest import SkillManifest
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore


class Client:
    """A registry, seen from a robot or a script. Use it as a context manager, or call `close`.

    Args:
        url: Address of the registry; ``$NEURAVERSE_REGISTRY`` or http://127.0.0.1:8420 if not given.
        home: Where keys, trust and cache live; ``$NEURAVERSE_HOME`` or its default if not given.
        http: An httpx client to use instead of an own one; it stays open.
        token: Sent as a bearer token.

    Raises:
        UsageError: The address is no HTTP URL.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        home: Path | str | None = None,
        http: httpx.Client | None = None,
        token: str | None = None,
    ) -> None:
        from neuraverse.trust import KeyStore

        self._transport = Transport(url, http, token)
        self.keys: KeyStore = KeyStore(home)
        self.home: Path = self.keys.home
        self._cache = Cache(self.home)

    @property
    def url(self) -> str:
        """Address of the registry."""
        return self._transport.url

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(self, q: str = "") -> list[Summary]:
        """Every skill whose name, title, description, tags, robot or environment hold all words of `q`.

        Raises:
            NetworkError: The registry could not be asked.
            RegistryError: It refused.
        """
        found: list[Summary] = []
        cursor = ""
        while True:
            page = self._transport.json("GET", "/v1/skills", params={"q": q, "cursor": cursor, "limit": 100})
            skills = page.get("skills")
            if not isinstance(skills, list):
                raise NetworkError(f"{self.url} sent a list of skills that is none")
            found += map(Summary.of, skills)
            following = page.get("next")
            if not isinstance(following, str) or following <= cursor:
                return found
            cursor = following

    def resolve(self, ref: str | Ref) -> Resolved:
        """What a reference means now.

        Raises:
            UsageError: It is malformed.
            NotFoundError: There is no such skill, version or alias.
            NetworkError: The registry could not be asked.
            ContentError: The registry answered with something else than what was asked for.
        """
        wanted = Ref.parse(ref) if isinstance(ref, str) else ref
        if wanted.digest:
            from neuraverse.manifest import SkillManifest

            manifest = SkillManifest.parse(self.manifest(wanted.digest))
            return Resolved(name=manifest.name, version=manifest.version, digest=wanted.digest)
        answer = self._transport.json("GET", f"/v1/skills/{wanted.name}/{wanted.which}")
        found = resolved_of(answer)
        if found.name != wanted.name or (wanted.is_exact and found.version != wanted.which):
            raise IntegrityError(f"the registry answered {wanted} with {found.ref}", remedy="do not trust it")
        return found

    def manifest(self, digest: str) -> bytes:
        """The exact bytes of a manifest, which have this digest; who signed them is not looked at.

        Raises:
            IntegrityError: The registry sent other bytes.
            NotFoundError: It has none.
            NetworkError: It could not be asked, or sends more than a manifest may have.
        """
        from neuraverse.manifest import MAX_MANIFEST_BYTES, digest_of

        path = f"/v1/manifests/{digest.removeprefix('sha256:')}"
        data = self._transport.bytes(path, MAX_MANIFEST_BYTES, "a manifest")
        if digest_of(data) != digest:
            raise IntegrityError(
                f"the registry sent a manifest with the digest {digest_of(data)} for {digest}",
                remedy="do not trust this registry; ask its operator to check its disk",
            )
        return data

    def pull(
        self,
        ref: str | Ref,
        *,
        offer: Offer | None = None,
        trust: KeyStore | None = None,
        progress: Progress | None = None,
    ) -> Skill:
        """A skill on this machine: whole, signed by a trusted key, and fit for the robot.

        What is in the cache is not downloaded again, but checked again. A pull that was cut goes on where it
        was. Pulls in other processes do not disturb this one.

        Args:
            ref: ``org/skill``, ``org/skill@1.0.0``, ``org/skill@alias``, ``sha256:<hex>``, or a local folder.
            offer: What the robot can supply; None skips the question.
            trust: Keys to accept; those of `home` if not given.
            progress: Called with bytes done and bytes in total.

        Raises:
            UsageError: The reference is malformed.
            NotFoundError: There is no such skill.
            NetworkError: The registry could not be asked; a retry may work and goes on.
            ContentError: What it sent is wrong, unsigned, or signed by a key that is not trusted.
            IncompatibleError: The skill does not fit the robot; its weights were not loaded.
            StorageError: The disk is full, read-only or gone; nothing half-written is left.
        """
        keys = trust or self.keys
        if isinstance(ref, str) and is_path(ref):
            return _open_local(Path(ref).expanduser(), offer, keys)
        found = self.resolve(ref)
        with self._cache.working_on(f"skill-{found.digest.removeprefix('sha256:')}"):
            try:
                return self._cached(found, offer, keys) or self._download(found, offer, keys, progress)
            finally:
                self._cache.drop(f"skill-{found.digest.removeprefix('sha256:')}")

    def _cached(self, found: Resolved, offer: Offer | None, keys: KeyStore) -> Skill | None:
        """The skill from the cache, if it is there and still what it was."""
        from neuraverse.skill import Skill

        path = self._cache.skill(found.digest)
        if not path.exists():
            return None
        try:
            skill = Skill.open(path)
            if skill.digest != found.digest:
                raise IntegrityError(f"{path} holds {skill.digest}")
            manifest, signature = skill.read("manifest.json"), skill.read("signature.json")
        except ContentError:  # changed on disk, so not what was checked: fetch it again
            self._cache.discard_skill(found.digest)
            return None
        _admit(manifest, signature, found, offer, keys)
        return skill

    def _download(
        self, found: Resolved, offer: Offer | None, keys: KeyStore, progress: Progress | None
    ) -> Skill:
        from neuraverse.skill import MAX_SIGNATURE_BYTES, Skill

        data = self.manifest(found.digest)
        path = f"/v1/manifests/{found.digest.removeprefix('sha256:')}/signature"
        signature = self._transport.bytes(path, MAX_SIGNATURE_BYTES, "a signature")
        manifest = _admit(data, signature, found, offer, keys)
        total = sum(entry.size for entry in manifest.files.values())
        done = 0
        for entry in manifest.files.values():
            before = done

            def tick(here: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + here, total)

            fetch(self._transport, self._cache, entry.sha256, entry.size, tick)
            done += entry.size
        target = self._cache.skill(found.digest)
        with new_folder(target) as folder:
            for name, entry in manifest.files.items():
                self._cache.place(entry.sha256, folder / name)
            write_atomic(folder / "manifest.json", data, mode=0o444)
            write_atomic(folder / "signature.json", signature, mode=0o444)
            Skill.open(folder)  # every byte once more, as it lies on the disk
        return Skill(target, data)

    def publish(
        self, path: Path | str, *, key: str = "default", progress: Progress | None = None
    ) -> Resolved:
        """Check a skill directory, upload what the registry lacks, and make it visible.

        A publish that was cut can simply be run again. An unsigned skill is signed first.

        Args:
            path: The directory.
            key: Name of the own key that signs.
            progress: Called with bytes done and bytes in total.

        Raises:
            ContentError: The directory is no valid skill, or signed by another key.
            UnknownNameError: There is no such key.
            ConflictError: The version is taken by other bytes.
            RegistryError: The registry refused; the message says why.
            NetworkError: It could not be asked.
        """
        from neuraverse.skill import MANIFEST, SIGNATURE, Skill
        from neuraverse.trust import sign, verify_manifest

        public = self.keys.public_key(key)
        skill = Skill.open(path)
        if not (skill.path / SIGNATURE).exists():
            sign(skill.path, self.keys.private_key_path(key))
        manifest, signature = skill.read(MANIFEST), skill.read(SIGNATURE)
        try:
            verify_manifest(manifest, signature, [public])
        except SignatureError as error:
            raise SignatureError(
                f"{skill.path} is not signed by your key {key!r}: {error.message}",
                remedy=f"name the key that signed it, or remove its {SIGNATURE} to sign it with {key!r}",
            ) from error
        total = sum(entry.size for entry in skill.manifest.files.values())
        done = 0
        for name, entry in skill.manifest.files.items():
            self._upload(skill.path / name, entry.sha256)
            done += entry.size
            if progress is not None:
                progress(done, total)
        body = {
            "manifest": manifest.decode(),
            "signature": signature.decode(),
            "public_key": public.pem.decode(),
        }
        return resolved_of(self._transport.json("POST", "/v1/skills", ok=(200, 201), json=body))

    def _upload(self, file: Path, sha256: str) -> None:
        path = f"/v1/blobs/{sha256}"
        try:
            with self._transport.stream("HEAD", path):
                return
        except NotFoundError:
            pass
        with disk_errors("read", file), file.open("rb") as content:
            self._transport.json("PUT", path, ok=(200, 201), content=content)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version.

        Raises:
            NotFoundError: There is no such version.
            RegistryError: The alias is malformed or reserved.
            NetworkError: The registry could not be asked.
        """
        name = Ref.parse(name).name
        path = f"/v1/skills/{name}/aliases/{Ref.parse(f'{name}@{alias}').which}"
        self._transport.json("PUT", path, json={"version": version})

    def cursor(self) -> int:
        """Where the event feed stands now; `watch` and `events` from here miss nothing that comes later."""
        return self._events(None, 0.0)[1]

    def events(self, after: int = 0, wait: float = 0.0) -> list[Event]:
        """Events behind the cursor `after`, in order; waits up to `wait` seconds, at most 30, for the first."""
        return self._events(after, wait)[0]

    def _events(self, after: int | None, wait: float) -> tuple[list[Event], int, bool]:
        params = {"wait": str(wait), "limit": "1000"} | ({} if after is None else {"after": str(after)})
        page = self._transport.json("GET", "/v1/events", params=params, read_s=wait + 10.0)
        events, cursor = page.get("events"), page.get("next")
        if not isinstance(events, list) or type(cursor) is not int:
            raise NetworkError(f"{self.url} sent events that are none")
        return [Event.of(e) for e in events], cursor, page.get("reset") is True

    def watch(
        self, after: int | None = None, name: str | None = None, stop: threading.Event | None = None
    ) -> Iterator[Event]:
        """Events as they happen, each once and in order, for ever.

        Lost connections are made anew by themselves; where streams do not get through, it polls.

        Args:
            after: Cursor to begin behind; 0 is the beginning, None is now, for which the registry is asked.
            name: Only events of this skill, and resets.
            stop: Ends the iteration soon after it is set.

        Raises:
            NetworkError: The cursor of now could not be asked for. Later failures are waited out.
        """
        start = self.cursor() if after is None else after
        return watch(self._transport, self._events, start, name, stop)


def _admit(
    data: bytes, signature: bytes, found: Resolved, offer: Offer | None, keys: KeyStore
) -> SkillManifest:
    """Whether a manifest is what was asked for, is signed by a trusted key, and fits the robot."""
    from neuraverse.manifest import SkillManifest
    from neuraverse.trust import verify_manifest

    manifest = SkillManifest.parse(data)
    if (manifest.name, manifest.version) != (found.name, found.version):
        raise IntegrityError(
            f"the registry answered {found.ref} with the manifest of {manifest.ref}",
            remedy="do not trust it",
        )
    verify_manifest(data, signature, keys.trusted_for(manifest.org))
    _fit(manifest, offer)
    return manifest


def _fit(manifest: SkillManifest, offer: Offer | None) -> None:
    problems = manifest.interface.problems(offer) if offer is not None else []
    if offer is not None and problems:
        raise IncompatibleError(
            f"{manifest.ref} does not fit {offer.robot}",
            problems=problems,
            remedy="choose a skill whose interface the robot can supply",
        )


def _open_local(path: Path, offer: Offer | None, keys: KeyStore) -> Skill:
    from neuraverse.skill import Skill
    from neuraverse.trust import verify_skill

    skill = Skill.open(path)
    verify_skill(skill, keys)
    _fit(skill.manifest, offer)
    return skill
