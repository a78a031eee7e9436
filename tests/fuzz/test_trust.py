"""signature.json from strangers: it holds only if it signs this manifest, and anything else is one error."""

from __future__ import annotations

import base64
import json
import pickle

import pytest
from hypothesis import strategies as st

from neuraverse.errors import ContentError, SignatureError
from neuraverse.skill import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE
from neuraverse.trust import KeyStore, verify_manifest
from tests.fuzz.hostile import any_bytes, assert_cheap, few_and_many, filled, for_each, places, spoilt


@pytest.fixture(scope="module")
def signed(tmp_path_factory, make_skill) -> tuple[bytes, bytes]:
    skill = make_skill(tmp_path_factory.mktemp("signed") / "skill")
    return skill.read(MANIFEST), skill.read(SIGNATURE)


@pytest.fixture(scope="module")
def another(tmp_path_factory, make_skill) -> tuple[bytes, bytes]:
    """Another skill of the same publisher."""
    skill = make_skill(tmp_path_factory.mktemp("another") / "skill", version="1.0.1", seed=1)
    return skill.read(MANIFEST), skill.read(SIGNATURE)


@pytest.fixture(scope="module")
def keys(publisher, tmp_path_factory) -> list:
    stranger = KeyStore(tmp_path_factory.mktemp("stranger"))
    stranger.new("default")
    return [stranger.public_key(), publisher.public_key()]


@pytest.fixture(scope="module")
def refused_or_same(signed, keys, publisher):
    """The property: what holds, signs the same statement with the same key as the bundle that was made."""
    manifest, signature = signed
    made = json.loads(signature)["dsseEnvelope"]

    def check(data: bytes) -> None:
        try:
            signer = verify_manifest(manifest, data, keys)
        except SignatureError:
            with pytest.raises(SignatureError) as caught:
                verify_manifest(manifest, data, keys)
            assert len(str(caught.value)) < 1000
            return
        assert signer == publisher.public_key().fingerprint
        envelope = json.loads(data)["dsseEnvelope"]
        assert envelope["payload"] == made["payload"]

    return check


def test_what_the_project_writes_holds(signed, refused_or_same, keys):
    verify_manifest(*signed, keys)
    refused_or_same(signed[1])


@few_and_many
def test_spoilt_bundles(examples, signed, another, refused_or_same):
    for_each(spoilt([signed[1], another[1]]), examples, refused_or_same)


@few_and_many
def test_any_bytes(examples, signed, refused_or_same):
    for_each(any_bytes(signed[1][:100], b"{", b"\xff\xfe{\0"), examples, refused_or_same)


HOSTILE = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1e999",
        "NaN",
        "9" * 4000,
        "9" * 5000,
        "[]",
        "{}",
        "[[]]",
        "[{}]",
        "[null]",
    ),
    *(
        '""',
        '"a"',
        '"A"',
        '"AAAA"',
        '"AA=="',
        '"AB=="',
        '"\\u0000"',
        '"\\ud800"',
        '"é"',
        '"' + "A" * 40_000 + '"',
    ),
    *(
        '{"a":1,"a":2}',
        "[" * 300 + "]" * 300,
        '{"a":' * 200 + "0" + "}" * 200,
        "[" * 20_000,
        '"../x"',
        '"1.0.0"',
    ),
)


def written(value, path, text: str, how: str) -> str:
    """A JSON value with `text` instead of, or as a second of the key of, what is at `path`."""
    if not path:
        return text
    whole = json.loads(json.dumps(value))
    holder = whole
    for step in path[:-1]:
        holder = holder[step]
    old = json.dumps(holder[path[-1]])
    holder[path[-1]] = "\N{SNOWMAN}"
    if isinstance(holder, dict) and how != "instead":
        key = json.dumps(path[-1])
        first, second = (old, text) if how == "after" else (text, old)
        return json.dumps(whole).replace('"\\u2603"', f"{first}, {key}: {second}")
    return json.dumps(whole).replace('"\\u2603"', text)


@few_and_many
def test_edited_bundles(examples, signed, refused_or_same):
    bundle = json.loads(signed[1])
    edits = st.builds(
        lambda path, text, how: written(bundle, path, text, how).encode(),
        st.sampled_from(list(places(bundle))),
        st.sampled_from(HOSTILE),
        st.sampled_from(["instead", "before", "after"]),
    )
    for_each(edits, examples, refused_or_same)


@few_and_many
def test_edited_statements(examples, signed, refused_or_same):
    """The signed statement within the bundle, with one value changed: the signature is of another then."""
    bundle = json.loads(signed[1])
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))

    def edit(path, text, how) -> bytes:
        payload = base64.b64encode(written(statement, path, text, how).encode()).decode()
        envelope = bundle["dsseEnvelope"] | {"payload": payload}
        return json.dumps(bundle | {"dsseEnvelope": envelope}).encode()

    edits = st.builds(
        edit,
        st.sampled_from(list(places(statement))),
        st.sampled_from(HOSTILE),
        st.sampled_from(["instead", "before", "after"]),
    )
    for_each(edits, examples, refused_or_same)


def test_a_signature_of_another_skill_does_not_hold(signed, another, keys):
    for manifest, signature in ((signed[0], another[1]), (another[0], signed[1])):
        with pytest.raises(SignatureError):
            verify_manifest(manifest, signature, keys)


@few_and_many
def test_spoilt_manifests(examples, signed, keys):
    """A signed manifest of which one byte is another is not signed."""
    manifest, signature = signed

    def check(data: bytes) -> None:
        if data != manifest:
            with pytest.raises(ContentError):
                verify_manifest(data, signature, keys)

    for_each(spoilt([manifest]), examples, check)


@pytest.mark.parametrize("protocol", range(6))
def test_fault_16_a_pickle_is_no_signature(signed, keys, protocol):
    with pytest.raises(SignatureError):
        verify_manifest(signed[0], pickle.dumps(json.loads(signed[1]), protocol), keys)


def bombs(signature: bytes) -> dict[str, bytes]:
    bundle = json.loads(signature)
    size = MAX_SIGNATURE_BYTES - len(signature) - 200

    def within(path, text: str) -> bytes:
        return written(bundle, path, text, "instead").encode()

    payload, signatures = ("dsseEnvelope", "payload"), ("dsseEnvelope", "signatures")
    statement = base64.b64encode(b"[" * (size * 3 // 4 - 3)).decode()
    return {
        "lists": filled("[", "[]", "]", MAX_SIGNATURE_BYTES // 3 - 1),
        "objects": filled("[", '{"":0}', "]", MAX_SIGNATURE_BYTES // 7 - 1),
        "keys": filled("{", '"%x":0', "}", 7000),
        "signatures": within(signatures, filled("[", '{"sig":""}', "]", size // 11 - 1).decode()),
        "unknown": within(("verificationMaterial",), filled("{", '"%x":{}', "}", size // 9 - 300).decode()),
        "a payload of lists": within(payload, f'"{statement}"'),
        "too many bytes": bytes(50_000_000),
    }


def test_fault_14_bombs_take_little_memory(tmp_path, signed, publisher, monkeypatch):
    monkeypatch.setenv("FUZZ_MANIFEST", str(tmp_path / "manifest"))
    monkeypatch.setenv("FUZZ_KEY", str(tmp_path / "key"))
    (tmp_path / "manifest").write_bytes(signed[0])
    (tmp_path / "key").write_bytes(publisher.public_key().pem)
    found = bombs(signed[1])
    assert all(len(data) <= MAX_SIGNATURE_BYTES for name, data in found.items() if name != "too many bytes")
    assert_cheap("tests.fuzz.test_trust:ask", found, tmp_path)


def ask(data: bytes) -> None:
    """`verify_manifest` of the skill and the key in the environment, for the measuring process."""
    import os
    from pathlib import Path

    from neuraverse.keys import PublicKey

    manifest, pem = (Path(os.environ[name]).read_bytes() for name in ("FUZZ_MANIFEST", "FUZZ_KEY"))
    verify_manifest(manifest, data, [PublicKey.parse(pem)])
