"""Who signed a skill, and whether this machine trusts them.

Signatures are OpenSSF model-signing bundles with an EC P-256 key over the whole directory, so the stock
command ``model_signing verify key`` accepts them too. A key is trusted for an organisation, the part of
a skill's name before the slash. What you signed yourself is trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from neuraverse import bundle
from neuraverse.errors import IntegrityError, SignatureError, UsageError
from neuraverse.keys import MAX_KEY_BYTES, KeyStore, PublicKey, home
from neuraverse.manifest import SkillManifest
from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Skill
from neuraverse.storage import read_regular, write_atomic

__all__ = ["KeyStore", "PublicKey", "home", "sign", "verify", "verify_manifest", "verify_skill"]


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
    skill = skill_dir if isinstance(skill_dir, Skill) else Skill.open(skill_dir)
    data, fingerprint = signature_of(skill.manifest, skill.read(MANIFEST), private_key_path)
    write_atomic(skill.path / SIGNATURE, data)
    return fingerprint


def signature_of(
    manifest: SkillManifest, manifest_bytes: bytes, private_key_path: Path | str
) -> tuple[bytes, str]:
    """The content of signature.json for a skill whose files are known to match its manifest.

    Returns:
        It, and the fingerprint of the key.

    Raises:
        UsageError: The private key cannot be used.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    path = Path(private_key_path)
    try:
        key = load_pem_private_key(read_regular(path, MAX_KEY_BYTES), None)
    except IntegrityError as error:
        raise UsageError(error.message, remedy="make a key with `neuraverse keys new NAME`") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no unencrypted private key in PEM") from error
    public = PublicKey.parse(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # or its public half had been refused
    data = bundle.make(
        manifest.ref,
        _digests(manifest, manifest_bytes),
        SIGNATURE,
        _hint(public),
        lambda message: key.sign(message, ec.ECDSA(hashes.SHA256())),
    )
    return data, public.fingerprint


def verify_manifest(
    manifest_bytes: bytes,
    signature_bytes: bytes,
    keys: Iterable[PublicKey],
    *,
    manifest: SkillManifest | None = None,
) -> str:
    """Check the signature of a skill before its other files are there.

    The signature covers the digest of the manifest and of each file that the manifest lists, so a file that
    then matches the manifest is signed too.

    Args:
        manifest_bytes: Content of manifest.json.
        signature_bytes: Content of signature.json.
        keys: The keys to accept.
        manifest: What `manifest_bytes` say, if it is known.

    Returns:
        The fingerprint of the key that signed.

    Raises:
        ManifestError: manifest.json does not follow the schema.
        SignatureError: Malformed, of other content, or signed by none of the keys.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    manifest = manifest or SkillManifest.parse(manifest_bytes)
    signed = _bundle(signature_bytes)
    key = {_hint(key): key for key in keys}.get(signed.hint)
    if key is None:
        raise SignatureError(
            f"{manifest.ref} is signed by a key that is not trusted for {manifest.org}",
            remedy=f"if you know the publisher: neuraverse keys trust PUBLIC.pem --org {manifest.org}",
        )
    public = load_pem_public_key(key.pem)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    why = ""
    try:
        public.verify(signed.signature, bundle.signed_bytes(signed.payload), ec.ECDSA(hashes.SHA256()))
        if signed.digests() != _digests(manifest, manifest_bytes):
            why = "it was made for another skill, version or set of files"
    except InvalidSignature:
        why = "it was made over other bytes"
    except ValueError as error:
        why = str(error)[:300]
    if why:
        raise SignatureError(
            f"the signature of {manifest.ref} does not hold: {why}", remedy="do not use this skill"
        )
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
    return verify_manifest(skill.read(MANIFEST), signature, keys, manifest=skill.manifest)


def _digests(manifest: SkillManifest, manifest_bytes: bytes) -> dict[str, str]:
    """Hex SHA-256 of every file that a signature covers."""
    listed: dict[str, str] = {name: entry.sha256 for name, entry in manifest.files.items()}
    return listed | {MANIFEST: hashlib.sha256(manifest_bytes).hexdigest()}


def _hint(key: PublicKey) -> str:
    return hashlib.sha256(key.pem).hexdigest()


def _bundle(signature: bytes) -> bundle.Bundle:
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise SignatureError(
            f"{SIGNATURE} has {len(signature)} bytes; at most {MAX_SIGNATURE_BYTES} are allowed"
        )
    try:
        return bundle.Bundle.parse(signature)
    except ValueError as error:
        raise SignatureError(
            f"{SIGNATURE} is no signature made with a key: {error}"[:300], remedy="do not use this skill"
        ) from error
