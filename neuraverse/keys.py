"""Keys as files: the own key pairs, and the public keys of others with the organisations they speak for.

$NEURAVERSE_HOME/                    (default ~/.local/share/neuraverse)
keys/NAME/private.pem            mode 0600
keys/NAME/public.pem             give this one away
trust/ORG/<fingerprint>.pem      keys of others
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from neuraverse.errors import IntegrityError, UnknownNameError, UsageError
from neuraverse.storage import disk_errors, new_folder, read_regular, write_atomic

MAX_KEY_BYTES = 16 << 10
_LABEL = re.compile("[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


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
                pem = read_regular(Path(pem), MAX_KEY_BYTES)
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
        return PublicKey.parse(read_regular(path, MAX_KEY_BYTES), name=name)

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
                found.append(PublicKey.parse(read_regular(path, MAX_KEY_BYTES), **owner))
            except UsageError as error:
                raise UsageError(f"{path}: {error.message}", remedy="remove or replace that file") from error
        return tuple(found)


def _check_label(kind: str, label: str) -> None:
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"{label!r} is no name for a{'n' if kind[0] in 'aeiou' else ''} {kind}",
            remedy="use 1 to 64 lower-case letters, digits and inner hyphens",
        )
