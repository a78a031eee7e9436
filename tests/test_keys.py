"""The store of keys."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from neuraverse.errors import StorageError, UnknownNameError, UsageError
from neuraverse.keys import KeyStore, PublicKey, home


def pem_of(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_home_is_the_variable_or_a_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURAVERSE_HOME", str(tmp_path / "robot"))
    assert home() == KeyStore().home == tmp_path / "robot"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NEURAVERSE_HOME", "~/robot")
    assert home() == tmp_path / "robot"
    monkeypatch.delenv("NEURAVERSE_HOME")
    assert home() == tmp_path / ".local" / "share" / "neuraverse"


def test_a_new_key_pair_is_p256_and_its_private_half_is_mine_alone(tmp_path):
    store = KeyStore(tmp_path)
    key = store.new("line-3")
    private = store.private_key_path("line-3")
    assert private == tmp_path / "keys" / "line-3" / "private.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    loaded = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(loaded.curve, ec.SECP256R1)
    assert pem_of(loaded) == key.pem == private.with_name("public.pem").read_bytes()
    assert store.public_key("line-3") == key


def test_the_fingerprint_is_sha256_of_the_der(publisher):
    key = publisher.public_key()
    der = base64.b64decode("".join(key.pem.decode().splitlines()[1:-1]))
    assert key.fingerprint == hashlib.sha256(der).hexdigest()


def test_a_key_is_never_replaced(tmp_path):
    store = KeyStore(tmp_path)
    key = store.new("a")
    with pytest.raises(UsageError, match="a key named 'a' already"):
        store.new("a")
    assert store.public_key("a") == key


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a b", "-a", "a\n", "x" * 65])
def test_names_of_keys_and_organisations_are_plain(tmp_path, publisher, name):
    store = KeyStore(tmp_path / "store")
    with pytest.raises(UsageError, match="is no name for a key"):
        store.new(name)
    with pytest.raises(UsageError, match="is no name for an organisation"):
        store.trust(publisher.public_key().pem, name)
    with pytest.raises(UsageError, match="is no name for an organisation"):
        store.trusted_for(name)
    with pytest.raises(UnknownNameError):
        store.private_key_path(name)
    assert not store.home.exists()


def test_an_unknown_key_is_answered_with_those_there_are(publisher):
    with pytest.raises(UnknownNameError, match="did you mean default"):
        publisher.private_key_path("defualt")
    with pytest.raises(UnknownNameError, match="no key named 'x'"):
        publisher.public_key("x")


def test_trust_takes_a_path_or_bytes(tmp_path, publisher):
    store = KeyStore(tmp_path / "store")
    path = publisher.home / "keys" / "default" / "public.pem"
    assert (
        store.trust(path, "acme") == store.trust(str(path), "acme") == store.trust(path.read_bytes(), "acme")
    )
    (key,) = store.trusted_for("acme")
    assert (key.org, key.name, key.fingerprint) == ("acme", "", publisher.public_key().fingerprint)
    assert store.trusted_for("globex") == ()


def test_own_keys_are_trusted_for_every_organisation(publisher):
    assert publisher.trusted_for("anyone") == (publisher.public_key(),)


def test_list_shows_own_keys_then_those_of_others(tmp_path, publisher):
    store = KeyStore(tmp_path)
    assert store.list() == ()
    store.new("b")
    store.trust(publisher.public_key().pem, "globex")
    store.trust(publisher.public_key().pem, "acme")
    store.new("a")
    assert [(key.name, key.org) for key in store.list()] == [
        ("a", ""),
        ("b", ""),
        ("", "acme"),
        ("", "globex"),
    ]


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "private key"),
        (pem_of(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (pem_of(rsa.generate_private_key(65537, 1024)), "P-256"),
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (b"\xff" * 100, "no public key"),
    ],
)
def test_only_a_p256_public_key_can_be_trusted(tmp_path, pem, says):
    store = KeyStore(tmp_path / "store")
    with pytest.raises(UsageError, match=says):
        store.trust(pem, "acme")
    assert not store.home.exists()


def test_a_file_that_is_no_key_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.pem is missing"):
        KeyStore(tmp_path).trust(tmp_path / "none.pem", "acme")
    with pytest.raises(UsageError, match="not a regular file"):
        KeyStore(tmp_path).trust(tmp_path, "acme")


def test_keys_survive_a_full_disk(tmp_path, monkeypatch, publisher):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = KeyStore(tmp_path / "store")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        store.new("a")
    with pytest.raises(StorageError):
        store.trust(publisher.public_key().pem, "acme")
    monkeypatch.undo()
    assert store.list() == ()
    assert store.new("a").name == "a"


def test_the_same_key_spelt_differently_is_one_key(publisher):
    key = publisher.public_key()
    windows = key.pem.replace(b"\n", b"\r\n")
    assert PublicKey.parse(windows).pem == key.pem
