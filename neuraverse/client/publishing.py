"""One skill from a folder into a registry: what it lacks of the files, and the manifest.

A small skill goes in one piece. Of a large one, the files go first, several at a time, each of which goes on
where it was cut.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraverse.client.download import FRUITLESS_TRIES, Progress
from neuraverse.client.refs import Resolved, resolved_of
from neuraverse.client.transport import Transport
from neuraverse.errors import ConflictError, NetworkError, SignatureError
from neuraverse.storage import disk_errors

if TYPE_CHECKING:
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

PARCEL_BYTES = 8 << 20  # what is larger than this in all goes file by file
PIECE_BYTES = 8 << 20
_AT_ONCE = 4


def publish(
    transport: Transport, keys: KeyStore, path: Path, key: str, progress: Progress | None
) -> Resolved:
    """Check, sign if need be, upload and publish; see `Client.publish`."""
    from neuraverse.skill import MANIFEST, SIGNATURE, Skill
    from neuraverse.trust import sign, verify_manifest

    public = keys.public_key(key)
    skill = Skill.open(path)
    if not (path / SIGNATURE).exists():
        sign(skill, keys.private_key_path(key))
    manifest, signature = skill.read(MANIFEST), skill.read(SIGNATURE)
    try:
        verify_manifest(manifest, signature, [public])
    except SignatureError as error:
        raise SignatureError(
            f"{path} is not signed by your key {key!r}: {error.message}",
            remedy=f"name the key that signed it, or remove its {SIGNATURE} to sign it with {key!r}",
        ) from error
    return _Publish(transport, skill, progress).run(manifest, signature, public.pem)


class _Publish:
    def __init__(self, transport: Transport, skill: Skill, progress: Progress | None) -> None:
        self._transport = transport
        self._skill = skill
        self._files = {str(name): entry for name, entry in skill.manifest.files.items()}
        self._total = sum(entry.size for entry in self._files.values())
        self._sent: dict[str, int] = {}
        self._progress = progress

    def run(self, manifest: bytes, signature: bytes, pem: bytes) -> Resolved:
        from neuraverse.archive import pack
        from neuraverse.skill import MANIFEST, SIGNATURE

        lacking = self._lacking()
        for name in self._files.keys() - set(lacking):
            self._tick(name, self._files[name].size)
        documents = [(MANIFEST, manifest), (SIGNATURE, signature), ("public.pem", pem)]
        if sum(self._files[name].size for name in lacking) <= PARCEL_BYTES:
            parts = [*documents, *((name, self._skill.read(name)) for name in lacking)]
            request: dict[str, Any] = {
                "content": b"".join(pack(parts)),
                "headers": {"Content-Type": "application/x-tar"},
            }
        else:
            with ThreadPoolExecutor(_AT_ONCE, "upload") as pool:
                list(pool.map(self._upload, lacking))
            texts = [data.decode() for _, data in documents]
            request = {"json": dict(zip(("manifest", "signature", "public_key"), texts, strict=True))}
        found = resolved_of(self._transport.json("POST", "/v1/skills", ok=(200, 201), **request))
        for name in lacking:
            self._tick(name, self._files[name].size)
        return found

    def _lacking(self) -> list[str]:
        """Names of the files that the registry does not have."""
        wanted = {"sha256": sorted({entry.sha256 for entry in self._files.values()})}
        missing = self._transport.json("POST", "/v1/blobs/missing", json=wanted).get("missing")
        if not isinstance(missing, list):
            raise NetworkError(f"{self._transport.url} sent a list of missing blobs that is none")
        return [name for name, entry in self._files.items() if entry.sha256 in missing]

    def _upload(self, name: str) -> None:
        """One file, from where the last try left it."""
        entry, fruitless = self._files[name], 0
        begun = self._transport.json(
            "POST", "/v1/uploads", ok=(200, 201), json={"sha256": entry.sha256, "size": entry.size}
        )
        if begun.get("exists") is True:
            return
        path = f"/v1/uploads/{begun.get('id')}"
        offset = 0
        while offset < entry.size:
            try:
                reached = self._piece(name, path, offset)
                fruitless = 0 if reached > offset else fruitless + 1
                offset = reached
            except (NetworkError, ConflictError):
                fruitless += 1
                if fruitless >= FRUITLESS_TRIES:
                    raise
                time.sleep(0.1 * 2**fruitless)
                offset = self._offset(self._transport.json("GET", path))
            self._tick(name, offset)
        self._transport.json("PUT", path, ok=(200, 201))

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
        self._sent[name] = done
        if self._progress is not None:
            self._progress(sum(self._sent.values()), self._total)
