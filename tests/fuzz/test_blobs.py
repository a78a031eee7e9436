"""The other files from strangers: text that is text, JSON that is JSON, in little memory."""

from __future__ import annotations

import json
import pickle
import zipfile
from io import BytesIO

import pytest

from neuraverse.errors import ContentError, IntegrityError
from neuraverse.manifest import BLOBS
from neuraverse.skill import MAX_JSON_BYTES, MAX_JSON_PARTS, check_blob
from tests.fuzz.hostile import any_bytes, assert_cheap, few_and_many, filled, for_each, spoilt

GOOD = [
    json.dumps({"env_steps": [0, 1000], "success": [0.0, 0.95], "é": None}).encode(),
    b"# T\n\xc3\xa9 [a](b)\n",
]


def refused_or_sound(data: bytes) -> None:
    for name in ("curve.json", "README.md"):
        try:
            check_blob(name, data, None)
        except IntegrityError:
            continue
        text = data.decode()
        if name == "curve.json":
            json.loads(text)


@few_and_many
def test_spoilt_files(examples):
    for_each(spoilt(GOOD), examples, refused_or_sound)


@few_and_many
def test_any_bytes(examples):
    for_each(any_bytes(b'{"a":', b"[", b'"'), examples, refused_or_sound)


def curve(data: bytes) -> None:
    """`check_blob` of a curve, for the measuring process."""
    check_blob("curve.json", data, None)


def test_fault_14_bombs_take_little_memory(tmp_path):
    most = MAX_JSON_BYTES
    found = {
        "lists": filled("[", "[]", "]", most // 3 - 1),
        "lists as many as allowed": filled("[", "[0]", "]", MAX_JSON_PARTS - 1),
        "objects": filled("[", '{"":0}', "]", most // 7 - 1),
        "objects as many as allowed": filled("[", '{"":0}', "]", MAX_JSON_PARTS - 1),
        "keys": filled("{", '"%x":0', "}", 100_000),
        "numbers": filled("[", "1e1", "]", most // 4 - 1),
        "nested": b"[" + (b"[" * 900 + b"]" * 900 + b",") * 500 + b"0]",
        "deep": b"[" * most,
        "deep as allowed": b"[" * MAX_JSON_PARTS,
        "wide text": ('"' + "\N{GRINNING FACE}" * (most // 4 - 1) + '"').encode(),
        "a vast number": b"9" * most,
        "too many bytes": b"[" + b"0," * 8_000_000 + b"0]",
    }
    fine = {"lists as many as allowed", "objects as many as allowed", "keys", "numbers", "wide text"}
    assert_cheap("tests.fuzz.test_blobs:curve", found, tmp_path, accepted=fine)


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("curve.json", bytes(10_000_000))
    return file.getvalue()


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("data", [*(pickle.dumps({"w": [1.0]}, p) for p in range(6)), zipped()])
def test_fault_16_a_pickle_or_an_archive_is_none_of_the_files(tiny, name, data):
    if name == "README.md" and data.isascii():
        return  # protocol 0 is text, and nobody unpickles a page
    with pytest.raises(ContentError):
        check_blob(name, data, tiny.manifest(tiny.weights()))
