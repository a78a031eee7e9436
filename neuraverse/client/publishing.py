"""One skill from a folder into a registry: what it lacks of the files, and the manifest.

A small skill goes in one piece. Of a large one, the files go first, several at a time; each goes on where it
was cut, as long as this process lives. Another one sends again the files that had not arrived whole.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraverse.client.download import FRUITLESS_TRIES, Progress
from neuraverse.client.refs import Resolved, resolved_of
from neuraverse.client.transport import TAR, Transport
from neuraverse.errors import ConflictError, IntegrityError, NetworkError, SignatureError
from neuraverse.storage import disk_errors, write_atomic

if TYPE_CHECKING:
    from neuraverse.manifest import FileEntry
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

PARCEL_BYTES = 8 << 20  # what is larger than this in all goes file by file
PIECE_BYTES = 8 << 20
_AT_ONCE = 4
_PAUSE_S = 0.1  # the first pause after a failure is half as long on average; each next one is twice that
_FRUITLESS = 2 * FRUITLESS_TRIES  # a try is two requests: where it stands, and the next piece


def publish(
    transport: Transport,
    keys: KeyStore,
    path: Path,
    key: str,
    progress: Progress | None,
    visibility: str | None = None,
) -> Resolved:
    """Check, sign if need be, upload and publish; see `Client.publish`."""
    from neuraverse.skill import MANIFEST, SIGNATURE, Skill
    from neuraverse.trust import signature_of, verify_manifest

    public, private = keys.public_key(key), keys.private_key_path(key)
    held: dict[str, bytes] = {}
    skill = Skill.open(path, keep=held if _size(path) <= PARCEL_BYTES else None)
    manifest = held.get(MANIFEST) or skill.read(MANIFEST)
    if (path / SIGNATURE).exists():
        signature = skill.read(SIGNATURE)
        try:
            verify_manifest(manifest, signature, [public], manifest=skill.manifest)
        except SignatureError as error:
            raise SignatureError(
                f"{path} is not signed by your key {key!r}: {error.message}",
                remedy=f"name the key that signed it, or remove its {SIGNATURE} to sign it with {key!r}",
            ) from error
    else:
        signature, _ = signature_of(skill.manifest, manifest, private)
        write_atomic(path / SIGNATURE, signature)
    return _Publish(transport, skill, held, progress, visibility).run(manifest, signature, public.pem)


def _size(path: Path) -> int:
    """Bytes of the files in a folder."""
    with disk_errors("read", path):
        return sum(entry.lstat().st_size for entry in path.iterdir()) if path.is_dir() else 0


class _Publish:
    def __init__(
        self,
        transport: Transport,
        skill: Skill,
        held: Mapping[str, bytes],
        progress: Progress | None,
        visibility: str | None,
    ) -> None:
        self._transport = transport
        self._skill = skill
        self._held = held
        self._files = {str(name): entry for name, entry in skill.manifest.files.items()}
        self._total = sum(entry.size for entry in self._files.values())
        self._sent: dict[str, int] = {}
        self._progress = progress
        self._org = {"org": skill.manifest.org}
        self._seen = {} if visibility is None else {"visibility": visibility}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self, manifest: bytes, signature: bytes, pem: bytes) -> Resolved:
        from neuraverse.archive import pack
        from neuraverse.skill import MANIFEST, SIGNATURE

        # A small skill that is nobody's child has nothing in common with others: asking would take longer.
        asked = self._skill.manifest.parents or self._total > PARCEL_BYTES
        lacking = self._lacking() if asked else list(self._files)
        for name in self._files.keys() - set(lacking):
            self._tick(name, self._files[name].size)
        documents = [(MANIFEST, manifest), (SIGNATURE, signature), ("public.pem", pem)]
        if sum(self._files[name].size for name in lacking) <= PARCEL_BYTES:
            files = ((name, self._held.get(name) or self._skill.read(name)) for name in lacking)
            parts = [*documents, *files]
            request: dict[str, Any] = {
                "content": b"".join(pack(parts)),
                "headers": {"Content-Type": TAR},
            }
        else:
            self._upload_all(lacking)
            texts = [data.decode() for _, data in documents]
            request = {"json": dict(zip(("manifest", "signature", "public_key"), texts, strict=True))}
        found = resolved_of(
            self._transport.json("POST", "/v1/skills", ok=(200, 201), params=self._seen, **request)
        )
        ours = (self._skill.name, self._skill.version, self._skill.digest)
        if (found.name, found.version, found.digest) != ours:
            raise IntegrityError(
                f"the registry says that it has published {found.ref} ({found.digest}); this is not what was"
                f" sent",
                remedy="do not trust this registry",
            )
        for name in lacking:
            self._tick(name, self._files[name].size)
        return found

    def _lacking(self) -> list[str]:
        """Names of the files that the registry does not have."""
        wanted = {"sha256": sorted({entry.sha256 for entry in self._files.values()})}
        missing = self._transport.json("POST", "/v1/blobs/missing", json=wanted, params=self._org).get(
            "missing"
        )
        if not isinstance(missing, list):
            raise NetworkError(f"{self._transport.url} sent a list of missing blobs that is none")
        return [name for name, entry in self._files.items() if entry.sha256 in missing]

    def _upload_all(self, names: list[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, "upload") as pool:
            running = [pool.submit(self._upload, name) for name in names]
            try:
                for each in as_completed(running):
                    each.result()
            except BaseException:  # Ctrl-C, too: the others end with the piece that they are sending
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _upload(self, name: str) -> None:
        """One file, from where the last try left it."""
        entry, path = self._files[name], ""
        offset = best = fruitless = 0
        lost = False  # whether we do not know how much has arrived
        while not self._stopped.is_set():
            try:
                path = path or self._begin(entry)
                if not path:
                    return
                if lost:
                    offset, lost = self._offset(self._transport.json("GET", path)), False
                elif offset < entry.size:
                    offset = self._piece(name, path, offset)
                else:
                    self._transport.json("PUT", path, ok=(200, 201))
                    return
            except (NetworkError, ConflictError):
                lost = bool(path)
                if fruitless + 1 >= _FRUITLESS:
                    raise
                self._stopped.wait(random.uniform(0.0, _PAUSE_S * 2**fruitless))
            fruitless = 0 if offset > best else fruitless + 1
            best = max(best, offset)
            if fruitless >= _FRUITLESS:
                raise NetworkError(f"{self._transport.url} does not take {name}: it stays at byte {offset}")
            self._tick(name, min(offset, entry.size))

    def _begin(self, entry: FileEntry) -> str:
        """Where to upload a file to; empty if the registry has it by now."""
        wanted = {"sha256": entry.sha256, "size": entry.size}
        begun = self._transport.json("POST", "/v1/uploads", ok=(200, 201), json=wanted, params=self._org)
        return "" if begun.get("exists") is True else f"/v1/uploads/{begun.get('id')}"

    def _piece(self, name: str, path: str, offset: int) -> int:
        with disk_errors("read", self._skill.path / name), (self._skill.path / name).open("rb") as file:
            file.seek(offset)
            data = file.read(PIECE_BYTES)
        answer = self._transport.json("PATCH", path, headers={"Upload-Offset": str(offset)}, content=data)
        return self._offset(answer)

    def _offset(self, answer: dict[str, Any]) -> int:
        offset = answer.get("offset")
        if type(offset) is not int or offset < 0:
            raise NetworkError(f"{self._transport.url} sent an offset that is none")
        return offset

    def _tick(self, name: str, done: int) -> None:
        with self._lock:
            self._sent[name] = done
            if self._progress is not None:
                self._progress(sum(self._sent.values()), self._total)
