"""signature.json: a Sigstore bundle with a DSSE envelope, which holds an in-toto statement of digests.

It is what OpenSSF model-signing 1.x writes and reads for an EC key, and tests hold it against the library.
The library itself takes a second to import and many times as long as the signature, and works on folders
alone; a robot checks a skill before it has one.

Sources: DSSE v1.0.2 (PAE, ``protocol.md``), in-toto Statement v1, Sigstore bundle v0.3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A signature and what it signs.

    Attributes:
        hint: SHA-256 of the signer's public key as PEM, in hexadecimal; only a claim.
        payload: The statement.
        signature: ECDSA, DER, over `signed_bytes` of it.
    """

    hint: str
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Bundle:
        """Read signature.json.

        Raises:
            ValueError: It is no such bundle, or is spelt in another way than it need be.
        """
        try:
            bundle = _only(json.loads(data), {"mediaType", "verificationMaterial", "dsseEnvelope"})
            material = _only(bundle["verificationMaterial"], {"publicKey", "tlogEntries"})
            envelope = _only(bundle["dsseEnvelope"], {"payload", "payloadType", "signatures"})
            (signed,) = envelope["signatures"]
            hint = _only(material["publicKey"], {"hint"})["hint"]
            kinds = bundle["mediaType"], envelope["payloadType"]
            if kinds != (_MEDIA_TYPE, _PAYLOAD_TYPE) or material["tlogEntries"] or not isinstance(hint, str):
                raise ValueError("it is of another kind")
            raw = _only(signed, {"sig"}, {"keyid"})["sig"]
            return cls(hint=hint, payload=_exact(envelope["payload"]), signature=_exact(raw))
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError("it lacks a part") from error

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of each file, by name, as the statement says.

        Raises:
            ValueError: It is no statement about files.
        """
        try:
            statement = json.loads(self.payload)
            if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE):
                raise ValueError("it holds another kind of statement")
            (subject,) = statement["subject"]
            resources = statement["predicate"]["resources"]
            found = {each["name"]: each["digest"] for each in resources}
            whole = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
            plain = all(each["algorithm"] == "sha256" for each in resources)
            if not plain or len(found) != len(resources) or subject["digest"]["sha256"] != whole:
                raise ValueError("its digests contradict each other")
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("its statement lacks a part") from error
        return found


def make(
    name: str, digests: Mapping[str, str], ignored: str, hint: str, sign: Callable[[bytes], bytes]
) -> bytes:
    """signature.json over some files.

    Args:
        name: What is signed, for people.
        digests: Hex SHA-256 of each file by name.
        ignored: Name of the file that will hold the signature.
        hint: SHA-256 of the signer's public key as PEM, in hexadecimal.
        sign: Gives the DER signature over its argument.
    """
    names = sorted(digests)
    whole = hashlib.sha256(b"".join(bytes.fromhex(digests[each]) for each in names)).hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": whole}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [ignored],
            },
            "resources": [{"name": each, "algorithm": "sha256", "digest": digests[each]} for each in names],
        },
    }
    payload = json.dumps(statement).encode()
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(sign(signed_bytes(payload))).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def signed_bytes(payload: bytes) -> bytes:
    """The pre-authentication encoding of DSSE: what is signed in place of the statement alone."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _only(value: Any, must: Set[str], may: Set[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(value, dict) or not must <= value.keys() <= must | may:
        raise ValueError("it has other parts")
    return value


def _exact(text: str) -> bytes:
    """Bytes from base64, whose padding bits must be zero, so that each bundle has one spelling."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, AttributeError, UnicodeEncodeError) as error:
        raise ValueError("it holds broken base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("it holds loose base64")
    return data
