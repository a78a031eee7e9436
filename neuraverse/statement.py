"""What a publisher says about a skill after publishing it, signed: aliases, yanked versions, deprecation.

A statement is a JSON object. It names the registry that it is for and the skill's next serial number, so that
it can neither be used elsewhere nor a second time, nor undo what its author had not seen. The signature is
ECDSA with P-256 and SHA-256, in DER, over a prefix and the exact text.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from neuraverse.errors import ManifestError, SignatureError, UsageError
from neuraverse.keys import MAX_KEY_BYTES, PublicKey
from neuraverse.manifest import NAME_PATTERN, VERSION_PATTERN, Line
from neuraverse.storage import read_regular

MAX_STATEMENT_BYTES = 8192
_PREFIX = b"neuraverse.statement/1\n"
Action = Literal["alias", "unalias", "yank", "unyank", "revoke", "deprecate", "undeprecate"]
_NEEDS: dict[str, tuple[set[str], set[str]]] = {
    "alias": ({"alias", "version"}, set()),
    "unalias": ({"alias"}, set()),
    "yank": ({"version"}, {"reason"}),
    "unyank": ({"version"}, {"reason"}),
    "revoke": ({"version"}, {"reason"}),
    "deprecate": ({"message"}, {"successor"}),
    "undeprecate": (set(), set()),
}
"""What an action must say, and what it may."""


class Statement(BaseModel):
    """One change.

    Attributes:
        registry: Id of the registry that it is for.
        name: ``org/skill``.
        serial: The skill's serial number after this change.
        action: What changes.
        alias: The alias that is moved or removed.
        version: The version that is meant.
        reason: Why it is yanked or revoked.
        message: Why the skill is deprecated.
        successor: ``org/skill`` to use instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    registry: Annotated[str, StringConstraints(pattern="^[0-9a-f-]{36}$")]
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    serial: Annotated[int, Field(ge=1, le=2**31 - 1)]
    action: Action
    alias: Annotated[str, StringConstraints(pattern="^([a-z][a-z0-9-]{0,63})?$")] = ""
    version: Annotated[str, StringConstraints(pattern=f"^$|{VERSION_PATTERN}", max_length=64)] = ""
    reason: Line = ""
    message: Line = ""
    successor: Annotated[str, StringConstraints(pattern=f"^$|{NAME_PATTERN}")] = ""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        must, may = _NEEDS[self.action]
        fields = ("alias", "version", "reason", "message", "successor")
        said = {field for field in fields if getattr(self, field)}
        for field in sorted(must - said):
            raise ValueError(f"{self.action} needs {field!r}")
        for field in sorted(said - must - may):
            raise ValueError(f"{self.action} has no {field!r}")
        return self

    def text(self) -> str:
        """The text to sign."""
        return json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True, ensure_ascii=False)


def build(**fields: Any) -> str:
    """The text of a statement.

    Raises:
        ManifestError: A field is malformed, missing or too many; the message names it.
    """
    try:
        return Statement(**fields).text()
    except ValidationError as error:
        raise _sentence(error) from error


def parse(text: str) -> Statement:
    """Read a statement; who signed it is for `verify`.

    Raises:
        ManifestError: It is malformed; the message names the field.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ManifestError("the statement is no text: it holds half a surrogate pair") from error
    if len(data) > MAX_STATEMENT_BYTES:
        raise ManifestError(f"the statement has more than {MAX_STATEMENT_BYTES} bytes")
    try:
        return Statement.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise _sentence(error) from error


def _sentence(error: ValidationError) -> ManifestError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return ManifestError(f"statement: {where}: {what}" if where else f"statement: {what}")


def sign(text: str, private_key_path: Path) -> str:
    """Base64 of the signature over a statement.

    Raises:
        UsageError: The private key cannot be used.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_regular(private_key_path, MAX_KEY_BYTES), None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{private_key_path} is no unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            f"{private_key_path} is no EC key", remedy="make one with `neuraverse keys new NAME`"
        )
    return base64.b64encode(key.sign(_PREFIX + text.encode(), ec.ECDSA(hashes.SHA256()))).decode()


def verify(text: str, signature: str, keys: Iterable[PublicKey]) -> str:
    """The fingerprint of the key that signed a statement.

    Raises:
        SignatureError: None of the keys did.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    for key in keys:
        public = load_pem_public_key(key.pem)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        try:
            public.verify(raw, _PREFIX + text.encode(errors="surrogatepass"), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return key.fingerprint
    raise SignatureError(
        "the statement is not signed by a key of the organisation",
        remedy="sign it with the key that the skill was published with",
    )
