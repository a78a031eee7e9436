"""Who signed a skill, and whom this machine trusts.

Signatures are OpenSSF model-signing bundles with an EC P-256 key over the whole directory, so the stock
command ``model_signing verify key`` accepts them too. A key is trusted for an organisation, the part of
a skill's name before the slash. What you signed yourself is trusted.

    $NEURAVERSE_HOME/                    (default ~/.local/share/neuraverse)
        keys/NAME/private.pem            mode 0600
        keys/NAME/public.pem             give this one away
        trust/ORG/<fingerprint>.pem      keys of others
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from neuraverse.errors import IntegrityError, SignatureError, StorageError, UnknownNameError, UsageError
from neuraverse.manifest import SkillManifest
from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Skill
from neuraverse.storage import disk_errors, new_folder, read_regular, write_atomic

_LABEL = re.compile("[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_MAX_KEY_BYTES = 16 << 10


def home() -> Path:
    """Folder of keys, trust and cache: ``$NEURAVERSE_HOME`` or ``~/.local/share/neuraverse``."""
    chosen = os.environ.get("NEURAVERSE_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".local" / "share" / "neuraverse"


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """An EC P-256 public key.

    Attributes:
        fingerprint: SHA-256 of its DER SubjectPublicKeyInfo, 64 hexadecimal digits.
        pem: The key, in canonical PEM.
        name: Name of the own key pair; empty for a key of others.
        org: Organisation that the key is trusted for; empty for an own key.
    """

    fingerprint: str
    pem: bytes
    name: str = ""
    org: str = ""

    @classmethod
    def parse(cls, pem: bytes, *, name: str = "", org: str = "") -> Self:
        """Read a PEM.

        Raises:
            UsageError: It is no P-256 public key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

        if b"PRIVATE KEY" in pem:
            raise UsageError(
                "this is a private key", remedy="use the public.pem beside it, and share only that"
            )
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError("this is no public key in PEM", remedy="use a public.pem") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise UsageError(
                "the key is not of type EC P-256", remedy="make one with `neuraverse keys new NAME`"
            )
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        canonical = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return cls(fingerprint=hashlib.sha256(der).hexdigest(), pem=canonical, name=name, org=org)


class KeyStore:
    """The own key pairs and the trusted keys of others, as files.

    Args:
        folder: Where; `home()` if not given.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.home = Path(folder) if folder is not None else home()

    def new(self, name: str = "default") -> PublicKey:
        """Make a key pair.

        Raises:
            UsageError: The name is malformed or taken.
            StorageError: The disk is full, read-only or gone.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )

        _check_label("key", name)
        private = ec.generate_private_key(ec.SECP256R1())
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        folder = self.home / "keys" / name
        if folder.exists():
            raise UsageError(
                f"there is a key named {name!r} already", remedy=f"use it, or choose a name other than {name}"
            )
        with new_folder(folder) as fresh:
            pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_atomic(fresh / "private.pem", pem, mode=0o600)
            write_atomic(fresh / "public.pem", public)
        return PublicKey.parse(public, name=name)

    def trust(self, pem: Path | str | bytes, org: str) -> PublicKey:
        """Trust a public key for every skill of an organisation.

        Args:
            pem: The file, or its bytes.
            org: The part of a skill's name before the slash.

        Raises:
            UsageError: No such file, no P-256 public key, or a malformed organisation.
            StorageError: The disk is full, read-only or gone.
        """
        _check_label("organisation", org)
        if not isinstance(pem, bytes):
            try:
                pem = read_regular(Path(pem), _MAX_KEY_BYTES)
            except IntegrityError as error:
                raise UsageError(error.message, remedy="name a public.pem") from error
        key = PublicKey.parse(pem, org=org)
        folder = self.home / "trust" / org
        with disk_errors("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{key.fingerprint}.pem", key.pem)
        return key

    def list(self) -> tuple[PublicKey, ...]:
        """Every key: own ones first, then trusted ones, each by name."""
        return self._read("keys", "*/public.pem") + self._read("trust", "*/*.pem")

    def trusted_for(self, org: str) -> tuple[PublicKey, ...]:
        """The keys accepted for skills of `org`: those trusted for it, and the own ones."""
        _check_label("organisation", org)
        return self._read("trust", f"{org}/*.pem") + self._read("keys", "*/public.pem")

    def public_key(self, name: str = "default") -> PublicKey:
        """The public half of an own key pair.

        Raises:
            UnknownNameError: There is none of that name.
        """
        path = self.private_key_path(name).with_name("public.pem")
        return PublicKey.parse(read_regular(path, _MAX_KEY_BYTES), name=name)

    def private_key_path(self, name: str = "default") -> Path:
        """Path of the private half of an own key pair.

        Raises:
            UnknownNameError: There is none of that name.
        """
        path = self.home / "keys" / name / "private.pem"
        if not _LABEL.fullmatch(name) or not path.is_file():
            raise UnknownNameError("key", name, [key.name for key in self._read("keys", "*/public.pem")])
        return path

    def _read(self, folder: str, pattern: str) -> tuple[PublicKey, ...]:
        found = []
        with disk_errors("read", self.home / folder):
            paths = sorted((self.home / folder).glob(pattern))
        for path in paths:
            if path.parent.name.startswith(".") or path.name.startswith("."):
                continue
            owner = {"name" if folder == "keys" else "org": path.parent.name}
            try:
                found.append(PublicKey.parse(read_regular(path, _MAX_KEY_BYTES), **owner))
            except UsageError as error:
                raise UsageError(f"{path}: {error.message}", remedy="remove or replace that file") from error
        return tuple(found)


def sign(skill_dir: Path | str, private_key_path: Path | str) -> str:
    """Check a skill directory and sign it; signature.json is written, or replaced.

    Returns:
        The fingerprint of the key.

    Raises:
        ContentError: The directory is no valid skill.
        UsageError: The private key cannot be used.
        StorageError: The disk is full, read-only or gone.
    """
    from model_signing import signing

    skill = Skill.open(skill_dir)
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

    Returns:
        The fingerprint of the key that signed.

    Raises:
        ContentError: Something is wrong; the message says what.
        StorageError: The disk failed.
    """
    skill = Skill.open(skill_dir)
    return verify_skill(skill, store)


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
        key = load_pem_private_key(read_regular(path, _MAX_KEY_BYTES), None)
    except IntegrityError as error:
        raise UsageError(error.message, remedy="make a key with `neuraverse keys new NAME`") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no unencrypted private key in PEM") from error
    return PublicKey.parse(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _check_label(kind: str, label: str) -> None:
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"{label!r} is no name for a{'n' if kind[0] in 'aeiou' else ''} {kind}",
            remedy="use 1 to 64 lower-case letters, digits and inner hyphens",
        )


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
