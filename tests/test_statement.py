"""Statements: only what the key's owner said, about this registry and this skill, once."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuraverse.errors import ManifestError, SignatureError, UsageError
from neuraverse.statement import MAX_STATEMENT_BYTES, Statement, build, parse, sign, verify
from neuraverse.trust import KeyStore

REGISTRY = "01234567-89ab-cdef-0123-456789abcdef"
HEAD = {"registry": REGISTRY, "name": "acme/weld-seam", "serial": 3}
YANK = HEAD | {"action": "yank", "version": "1.2.0", "reason": "too fast on thin sheet"}

lines = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50)


@given(st.integers(1, 2**31 - 1), lines)
def test_what_is_built_is_read(serial, message):
    text = build(**HEAD | {"serial": serial}, action="deprecate", message=message, successor="acme/weld")
    assert parse(text) == Statement(
        **HEAD | {"serial": serial}, action="deprecate", message=message, successor="acme/weld"
    )
    assert parse(text).text() == text


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "alias", "alias": "stable", "version": "1.0.0"},
        {"action": "unalias", "alias": "stable"},
        {"action": "yank", "version": "1.0.0"},
        {"action": "unyank", "version": "1.0.0-rc.1"},
        {"action": "revoke", "version": "1.0.0", "reason": "burns through"},
        {"action": "deprecate", "message": "no longer kept"},
        {"action": "undeprecate"},
    ],
)
def test_actions(fields):
    assert json.loads(build(**HEAD, **fields)) == HEAD | fields


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"action": "explode"}, "action"),
        ({"action": "alias"}, "alias needs 'alias'"),
        ({"alias": "stable"}, "yank has no 'alias'"),
        ({"version": ""}, "yank needs 'version'"),
        ({"version": "^1.2"}, "version"),
        ({"version": "1.2"}, "version"),
        ({"serial": 0}, "serial"),
        ({"serial": 2**31}, "serial"),
        ({"serial": True}, "serial"),
        ({"serial": 1.5}, "serial"),
        ({"serial": "3"}, "serial"),
        ({"registry": "here"}, "registry"),
        ({"registry": REGISTRY + "\n"}, "registry"),
        ({"name": "weld-seam"}, "name"),
        ({"name": "acme/../x"}, "name"),
        ({"reason": "two\nlines"}, "reason"),
        ({"reason": "\x1b[31mred"}, "reason"),
        ({"reason": "x" * 5_000}, "reason"),
        ({"later": 1}, "later"),
    ],
)
def test_malformed_statements(changes, why):
    fields = YANK | changes
    with pytest.raises(ManifestError, match=why):
        parse(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 5000, "{}", '"x"', "{" * 5000])
def test_what_is_no_statement(text):
    with pytest.raises(ManifestError):
        parse(text)


def test_a_statement_is_not_long():
    with pytest.raises(ManifestError, match="more than"):
        parse(json.dumps(YANK) + " " * MAX_STATEMENT_BYTES)


def test_who_signed_it_is_told(publisher, tmp_path):
    other = KeyStore(tmp_path)
    stranger = other.new("default")
    text = build(**YANK)
    signature = sign(text, publisher.private_key_path())
    mine = publisher.public_key()
    assert verify(text, signature, [mine]) == mine.fingerprint
    assert verify(text, signature, [stranger, mine]) == mine.fingerprint
    for keys in ([], [stranger]):
        with pytest.raises(SignatureError, match="not signed by a key of the organisation"):
            verify(text, signature, keys)


@pytest.fixture(scope="module")
def signed(publisher):
    text = build(**YANK)
    return text, sign(text, publisher.private_key_path())


@given(st.data())
def test_any_change_is_found(publisher, signed, data):
    text, signature = signed
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(exclude_categories=["Cs"]))
    changed = text[:at] + letter + text[at + 1 :]
    if changed != text:
        with pytest.raises(SignatureError):
            verify(changed, signature, [publisher.public_key()])
    raw = bytearray(base64.b64decode(signature))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SignatureError):
        verify(text, base64.b64encode(raw).decode(), [publisher.public_key()])


@pytest.mark.parametrize("signature", ["", "no base64!", "AAAA", "MEUCIQ==", "ü", "A" * 100_000])
def test_what_is_no_signature(publisher, signature):
    with pytest.raises(SignatureError):
        verify(build(**YANK), signature, [publisher.public_key()])


def test_a_signature_over_the_bare_text_is_none(publisher):
    """What is signed begins with a prefix, so that a signature made for something else cannot be used."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = build(**YANK)
    key = load_pem_private_key(publisher.private_key_path().read_bytes(), None)
    bare = key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(SignatureError):
        verify(text, base64.b64encode(bare).decode(), [publisher.public_key()])


def test_keys_that_cannot_sign(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = tmp_path / "private.pem"
    for content in (b"", b"no key", b"\xff\xff"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="no unencrypted private key"):
            sign("{}", path)
    other = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UsageError, match="is no EC key"):
        sign("{}", path)
