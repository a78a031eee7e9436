"""Who signed a skill, and whether this machine trusts them.

Signatures are OpenSSF model-signing bundles with an EC P-256 key over the whole directory, so the stock
command ``model_signing verify key`` accepts them too. A key is trusted for an organisation, the part of
a skill's name before the slash. What you signed yourself is trusted.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from neuraverse.errors import IntegrityError, SignatureError, StorageError, UsageError
from neuraverse.keys import MAX_KEY_BYTES, KeyStore, PublicKey, home
from neuraverse.manifest import SkillManifest
from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Skill
from neuraverse.storage import disk_errors, read_regular, write_atomic

__all__ = ["KeyStore", "PublicKey", "home", "sign", "verify", "verify_manifest", "verify_skill"]


def warm_up() -> None:
    """Load the signing library, which takes a second; for who wants the first signature to be quick."""
    import importlib

    importlib.import_module("model_signing.verifying")


def sign(skill_dir: Skill | Path | str, private_key_path: Path | str) -> str:
    """Check a skill directory and sign it; signature.json is written, or replaced.

    Args:
        skill_dir: The directory, or a skill that was opened from it and so has been checked.
        private_key_path: PEM of an EC P-256 key.

    Returns:
        The fingerprint of the key.

    Raises:
        ContentError: The directory is no valid skill.
        UsageError: The private key cannot be used.
        StorageError: The disk is full, read-only or gone.
    """
    from model_signing import signing

    skill = skill_dir if isinstance(skill_dir, Skill) else Skill.open(skill_dir)
    public = _public_half(Path(private_key_path))
    with _scratch() as folder:
        target = folder / SIGNATURE
        config = signing.Config().use_elliptic_key_signer(private_key=private_key_path)
        config.set_hashing_config(_Digests(skill.manifest, skill.read(MANIFEST)))
        with disk_errors("write", target):
            config.sign(skill.path, target)
        data = read_regular(target, MAX_SIGNATURE_BYTES)
    write_atomic(skill.path / SIGNATURE, data)
    return public.fingerprint


def verify_manifest(manifest_bytes: bytes, signature_bytes: bytes, keys: Iterable[PublicKey]) -> str:
    """Check the signature of a skill before its other files are there.

    The signature covers the digest of the manifest and of each file that the manifest lists, so a file that
    then matches the manifest is signed too.

    Args:
        manifest_bytes: Content of manifest.json.
        signature_bytes: Content of signature.json.
        keys: The keys to accept.

    Returns:
        The fingerprint of the key that signed.

    Raises:
        ManifestError: manifest.json does not follow the schema.
        SignatureError: Malformed, of other content, or signed by none of the keys.
        StorageError: The temporary folder cannot be written.
    """
    from model_signing import verifying

    manifest = SkillManifest.parse(manifest_bytes)
    hint = _signer_hint(signature_bytes)
    accepted = {hashlib.sha256(key.pem).hexdigest(): key for key in keys}
    if hint not in accepted:
        raise SignatureError(
            f"{manifest.ref} is signed by a key that is not trusted for {manifest.org}",
            remedy=f"if you know the publisher: neuraverse keys trust PUBLIC.pem --org {manifest.org}",
        )
    key = accepted[hint]
    with _scratch() as folder:
        with disk_errors("write", folder):
            (folder / "public.pem").write_bytes(key.pem)
            (folder / SIGNATURE).write_bytes(signature_bytes)
        config = verifying.Config().use_elliptic_key_verifier(public_key=folder / "public.pem")
        config.set_hashing_config(_Digests(manifest, manifest_bytes))
        try:
            config.verify(folder, folder / SIGNATURE)
        except Exception as error:  # whatever a hostile bundle provokes in its parsers means: not verified
            raise SignatureError(
                f"the signature of {manifest.ref} does not hold: {_reason(error)}",
                remedy="do not use this skill",
            ) from error
    return key.fingerprint


def verify(skill_dir: Path | str, store: KeyStore | None = None) -> str:
    """Check a skill directory whole: every file, and that a trusted key signed it.

    The signature is checked before weights are parsed or the graph is run.

    Returns:
        The fingerprint of the key that signed.

    Raises:
        ContentError: Something is wrong; the message says what.
        StorageError: The disk failed.
    """
    signers: list[str] = []
    Skill.open(skill_dir, admit=lambda skill: signers.append(verify_skill(skill, store)))
    return signers[0]


def verify_skill(skill: Skill, store: KeyStore | None = None) -> str:
    """As `verify`, for a skill that is open."""
    try:
        signature = skill.read(SIGNATURE)
    except IntegrityError as error:
        raise SignatureError(
            f"{skill.ref} has no usable signature: {error.message}", remedy="ask its publisher to sign it"
        ) from error
    keys = (store or KeyStore()).trusted_for(skill.manifest.org)
    return verify_manifest(skill.read(MANIFEST), signature, keys)


class _Digests:
    """Hashing configuration for model-signing that takes the digests from the manifest, not from files."""

    def __init__(self, manifest: SkillManifest, manifest_bytes: bytes) -> None:
        self._name = manifest.ref
        self._digests: dict[str, str] = {name: entry.sha256 for name, entry in manifest.files.items()}
        self._digests[MANIFEST] = hashlib.sha256(manifest_bytes).hexdigest()

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        from model_signing import manifest

        kind = manifest.SerializationType.from_args(
            {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
        )
        items = [
            kind.new_item(name, manifest.hashing.Digest("sha256", bytes.fromhex(digest)))
            for name, digest in sorted(self._digests.items())
        ]
        return manifest.Manifest(self._name, items, kind)

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """A signature may not excuse any file."""


def _signer_hint(signature: bytes) -> str:
    """Which key a bundle claims to be signed by: SHA-256 of its PEM. Padding bits of base64 must be zero."""
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise SignatureError(
            f"{SIGNATURE} has {len(signature)} bytes; at most {MAX_SIGNATURE_BYTES} are allowed"
        )
    try:
        bundle = json.loads(signature)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        envelope = bundle["dsseEnvelope"]
        for text in (envelope["payload"], *(each["sig"] for each in envelope["signatures"])):
            if base64.b64encode(base64.b64decode(text)).decode() != text:
                raise ValueError
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise SignatureError(
            f"{SIGNATURE} is no signature made with a key", remedy="do not use this skill"
        ) from error
    return str(hint)


def _public_half(path: Path) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key = load_pem_private_key(read_regular(path, MAX_KEY_BYTES), None)
    except IntegrityError as error:
        raise UsageError(error.message, remedy="make a key with `neuraverse keys new NAME`") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no unencrypted private key in PEM") from error
    return PublicKey.parse(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    if text.startswith("Signature mismatch"):
        return "it was made for another skill, version or set of files"
    return text[:300] or "it was made over other bytes"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="neuraverse-")
    except OSError as error:
        raise StorageError(
            f"no temporary folder can be made: {error.strerror}", remedy="check TMPDIR"
        ) from error
    with folder as name:
        yield Path(name)
