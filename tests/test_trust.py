"""Who signed a skill, and whom this machine trusts."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from model_signing import hashing, signing, verifying

from neuraverse.client import Client
from neuraverse.errors import (
    IntegrityError,
    ManifestError,
    SignatureError,
    StorageError,
    UsageError,
    WeightsError,
)
from neuraverse.manifest import SkillManifest
from neuraverse.policy import Policy
from neuraverse.skill import MANIFEST, SIGNATURE
from neuraverse.trust import KeyStore, sign, signature_of, verify, verify_manifest


@pytest.fixture
def stranger(tmp_path) -> KeyStore:
    """Somebody else with a key of their own."""
    store = KeyStore(tmp_path / "stranger")
    store.new("default")
    return store


@pytest.fixture
def signed(tiny_skill):
    """Manifest and signature of a good skill."""
    return tiny_skill.read(MANIFEST), tiny_skill.read(SIGNATURE)


def edit(signature: bytes, change) -> bytes:
    bundle = json.loads(signature)
    change(bundle)
    return json.dumps(bundle).encode()


def pem_of(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key, password=None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


# --- verifying


def test_a_skill_signed_by_a_trusted_key_is_verified(tiny_skill, key_store, publisher, capsys):
    assert verify(tiny_skill.path, key_store) == publisher.public_key().fingerprint
    assert capsys.readouterr() == ("", "")


def test_what_i_signed_myself_i_trust(tiny_skill, publisher):
    assert verify(tiny_skill.path, publisher) == publisher.public_key().fingerprint


def test_the_manifest_is_verified_before_any_other_file_exists(signed, publisher):
    assert verify_manifest(*signed, [publisher.public_key()]) == publisher.public_key().fingerprint


def test_a_key_that_nobody_trusts_is_refused(tmp_path, make_skill, key_store, stranger):
    skill = make_skill(tmp_path / "skill", key=stranger.private_key_path())
    with pytest.raises(SignatureError, match="a key that is not trusted for acme") as caught:
        verify(skill.path, key_store)
    assert "neuraverse keys trust PUBLIC.pem --org acme" in caught.value.remedy
    key_store.trust(stranger.public_key().pem, "acme")
    assert verify(skill.path, key_store) == stranger.public_key().fingerprint


def test_a_key_trusted_for_one_organisation_does_not_sign_for_another(tmp_path, make_skill, key_store):
    skill = make_skill(tmp_path / "skill", org="globex")
    with pytest.raises(SignatureError, match="not trusted for globex"):
        verify(skill.path, key_store)


def test_without_any_key_nothing_is_trusted(signed):
    with pytest.raises(SignatureError, match="not trusted for acme"):
        verify_manifest(*signed, [])


def test_an_unsigned_skill_is_refused(tmp_path, make_skill, key_store):
    with pytest.raises(SignatureError, match="has no usable signature"):
        verify(make_skill(tmp_path / "skill", key=None).path, key_store)


@pytest.mark.parametrize(
    "changes", [{"name": "other"}, {"version": "1.0.1"}, {"seed": 1}, {"title": "Better"}]
)
def test_the_signature_of_another_skill_is_refused(tmp_path, tiny_skill, make_skill, key_store, changes):
    other = make_skill(tmp_path / "other", **changes)
    (tiny_skill.path / SIGNATURE).write_bytes(other.read(SIGNATURE))
    with pytest.raises(SignatureError, match="does not hold: it was made for another skill"):
        verify(tiny_skill.path, key_store)


def test_a_manifest_for_other_files_is_refused(tmp_path, signed, make_skill, publisher):
    other = make_skill(tmp_path / "other", seed=1, key=None)
    with pytest.raises(SignatureError, match="does not hold: it was made for another skill"):
        verify_manifest(other.read(MANIFEST), signed[1], [publisher.public_key()])


def test_a_stranger_who_claims_to_be_the_publisher_is_refused(tmp_path, make_skill, publisher, stranger):
    forged = make_skill(tmp_path / "skill", key=stranger.private_key_path())
    hint = hashlib.sha256(publisher.public_key().pem).hexdigest()
    signature = edit(
        forged.read(SIGNATURE), lambda b: b["verificationMaterial"]["publicKey"].update(hint=hint)
    )
    with pytest.raises(SignatureError, match="does not hold"):
        verify_manifest(forged.read(MANIFEST), signature, [publisher.public_key()])


def test_a_changed_statement_is_refused(signed, publisher):
    def rename(bundle):
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        statement["subject"][0]["name"] = "better"
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    with pytest.raises(SignatureError, match="does not hold: it was made over other bytes"):
        verify_manifest(signed[0], edit(signed[1], rename), [publisher.public_key()])


def test_a_signature_cannot_excuse_a_file(tiny_skill, publisher, key_store):
    config = signing.Config().use_elliptic_key_signer(private_key=publisher.private_key_path())
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE, "policy.onnx"]))
    config.sign(tiny_skill.path, tiny_skill.path / SIGNATURE)
    with pytest.raises(SignatureError, match="another skill, version or set of files"):
        verify(tiny_skill.path, key_store)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b["verificationMaterial"]["publicKey"].update(hint=None),
        lambda b: b["verificationMaterial"]["publicKey"].pop("hint"),
        lambda b: b.pop("verificationMaterial"),
        lambda b: b["verificationMaterial"].update(publicKey={}, certificate={"rawBytes": ""}),
        lambda b: b.pop("dsseEnvelope"),
        lambda b: b.update(mediaType="application/json"),
        lambda b: b["dsseEnvelope"].update(signatures=[]),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"].update(payload=""),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="!"),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=""),
    ],
)
def test_a_bundle_with_a_part_missing_or_strange_is_refused(signed, publisher, capsys, change):
    with pytest.raises(SignatureError) as caught:
        verify_manifest(signed[0], edit(signed[1], change), [publisher.public_key()])
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "signature",
    [b"", b"null", b"[]", b"{}", b"\xff", b"<html>", b"[" * 60_000, b" " * 70_000, b'{"a":1}' * 2],
)
def test_what_is_no_signature_is_refused(signed, publisher, signature):
    with pytest.raises(SignatureError, match=r"signature\.json"):
        verify_manifest(signed[0], signature, [publisher.public_key()])


def test_a_broken_manifest_is_refused_before_its_signature(signed, publisher):
    with pytest.raises(ManifestError):
        verify_manifest(b"{}", signed[1], [publisher.public_key()])


@settings(max_examples=100)
@given(st.data())
def test_a_spoilt_signature_never_holds(publisher, session_signed, data):
    manifest, signature = session_signed
    at = data.draw(st.integers(0, len(signature) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != signature[at]))
    spoilt = signature[:at] + bytes([byte]) + signature[at + 1 :]
    with pytest.raises(SignatureError):
        verify_manifest(manifest, spoilt, [publisher.public_key()])


def test_the_slack_of_base64_is_no_second_spelling(signed, publisher):
    manifest, signature, loosened = SkillManifest.parse(signed[0]), b"", ""
    while not loosened:  # a signature of 72 bytes has no slack; the next one is another
        signature, _ = signature_of(manifest, signed[0], publisher.private_key_path())
        tight = json.loads(signature)["dsseEnvelope"]["signatures"][0]["sig"]
        last = len(tight.rstrip("=")) - 1
        if tight.endswith("="):
            loosened = tight[:last] + chr(ord(tight[last]) + 1) + tight[last + 1 :]
            assert base64.b64decode(loosened) == base64.b64decode(tight)

    def loosen(bundle):
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = loosened

    verify_manifest(signed[0], signature, [publisher.public_key()])
    with pytest.raises(SignatureError, match="loose base64"):
        verify_manifest(signed[0], edit(signature, loosen), [publisher.public_key()])


@pytest.fixture(scope="module")
def session_signed(tmp_path_factory, make_skill):
    skill = make_skill(tmp_path_factory.mktemp("signed") / "skill")
    return skill.read(MANIFEST), skill.read(SIGNATURE)


# --- the stock tool


def test_the_stock_tool_verifies_what_we_sign(tiny_skill, publisher):
    public = publisher.home / "keys" / "default" / "public.pem"
    stock = verifying.Config().use_elliptic_key_verifier(public_key=public)
    stock.verify(tiny_skill.path, tiny_skill.path / SIGNATURE)
    (tiny_skill.path / "README.md").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"README\.md"):
        stock.verify(tiny_skill.path, tiny_skill.path / SIGNATURE)


def test_we_verify_what_the_stock_tool_signs(tmp_path, make_skill, publisher, key_store):
    skill = make_skill(tmp_path / "skill", key=None)
    stock = signing.Config().use_elliptic_key_signer(private_key=publisher.private_key_path())
    stock.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    stock.sign(skill.path, skill.path / SIGNATURE)
    assert verify(skill.path, key_store) == publisher.public_key().fingerprint


# --- signing


def test_signing_returns_the_fingerprint_and_changes_no_other_file(tmp_path, make_skill, publisher):
    skill = make_skill(tmp_path / "skill", key=None)
    before = {p.name: p.read_bytes() for p in skill.path.iterdir()}
    assert sign(skill.path, publisher.private_key_path()) == publisher.public_key().fingerprint
    after = {p.name: p.read_bytes() for p in skill.path.iterdir()}
    assert after.pop(SIGNATURE)
    assert after == before


def test_a_spoilt_skill_is_not_signed(tmp_path, make_skill, publisher):
    skill = make_skill(tmp_path / "skill", key=None)
    (skill.path / "README.md").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match=r"README\.md"):
        sign(skill.path, publisher.private_key_path())
    assert not (skill.path / SIGNATURE).exists()


def test_signing_on_a_full_disk_keeps_the_old_signature(tiny_skill, publisher, monkeypatch):
    before = tiny_skill.read(SIGNATURE)

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        sign(tiny_skill.path, publisher.private_key_path())
    monkeypatch.undo()
    assert tiny_skill.read(SIGNATURE) == before
    assert len(list(tiny_skill.path.iterdir())) == 7


def test_a_private_key_that_cannot_be_used_is_named(tiny_skill, tmp_path):
    p256 = ec.generate_private_key(ec.SECP256R1())
    cases = {
        "missing": None,
        "unencrypted": private_pem(p256, b"secret"),
        "private key in PEM": pem_of(p256),
        "EC P-256": private_pem(ec.generate_private_key(ec.SECP384R1())),
        "P-256": private_pem(rsa.generate_private_key(65537, 1024)),
    }
    for i, (says, pem) in enumerate(cases.items()):
        path = tmp_path / f"{i}.pem"
        if pem is not None:
            path.write_bytes(pem)
        with pytest.raises(UsageError) as caught:
            sign(tiny_skill.path, path)
        assert says in str(caught.value)


def test_a_broken_file_in_the_store_is_named(tiny_skill, key_store):
    (key_store.home / "trust" / "acme" / "broken.pem").write_bytes(b"?")
    with pytest.raises(UsageError, match=r"broken\.pem: this is no public key"):
        verify(tiny_skill.path, key_store)


def test_nothing_is_run_of_a_skill_that_is_not_trusted(tiny_skill, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "load", lambda *_: pytest.fail("the graph was loaded"))
    monkeypatch.setattr("neuraverse.skill.check_tensors", lambda *_: pytest.fail("the weights were parsed"))
    with pytest.raises(SignatureError, match="not trusted for acme"):
        verify(tiny_skill.path, KeyStore(tmp_path / "empty"))
    with Client(home=tmp_path / "empty") as client, pytest.raises(SignatureError, match="not trusted"):
        client.pull(str(tiny_skill.path))


def test_the_checks_of_a_skill_run_too(tiny_skill, key_store):
    path = tiny_skill.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xc0\x7f")
    with pytest.raises((IntegrityError, WeightsError), match=r"model\.safetensors"):
        verify(tiny_skill.path, key_store)
