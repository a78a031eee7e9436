"""One skill from a folder into a registry: the files that it lacks, then the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neuraverse.client.download import Progress
from neuraverse.client.refs import Resolved, resolved_of
from neuraverse.client.transport import Transport
from neuraverse.errors import NotFoundError, SignatureError
from neuraverse.storage import disk_errors

if TYPE_CHECKING:
    from neuraverse.trust import KeyStore


def publish(
    transport: Transport, keys: KeyStore, path: Path, key: str, progress: Progress | None
) -> Resolved:
    """Check, sign if need be, upload and publish; see `Client.publish`."""
    from neuraverse.skill import MANIFEST, SIGNATURE, Skill
    from neuraverse.trust import sign, verify_manifest

    public = keys.public_key(key)
    skill = Skill.open(path)
    if not (path / SIGNATURE).exists():
        sign(path, keys.private_key_path(key))
    manifest, signature = skill.read(MANIFEST), skill.read(SIGNATURE)
    try:
        verify_manifest(manifest, signature, [public])
    except SignatureError as error:
        raise SignatureError(
            f"{path} is not signed by your key {key!r}: {error.message}",
            remedy=f"name the key that signed it, or remove its {SIGNATURE} to sign it with {key!r}",
        ) from error
    total = sum(entry.size for entry in skill.manifest.files.values())
    done = 0
    for name, entry in skill.manifest.files.items():
        _upload(transport, path / name, entry.sha256)
        done += entry.size
        if progress is not None:
            progress(done, total)
    body = {
        "manifest": manifest.decode(),
        "signature": signature.decode(),
        "public_key": public.pem.decode(),
    }
    return resolved_of(transport.json("POST", "/v1/skills", ok=(200, 201), json=body))


def _upload(transport: Transport, file: Path, sha256: str) -> None:
    path = f"/v1/blobs/{sha256}"
    try:
        with transport.stream("HEAD", path):
            return
    except NotFoundError:
        pass
    with disk_errors("read", file), file.open("rb") as content:
        transport.json("PUT", path, ok=(200, 201), content=content)
