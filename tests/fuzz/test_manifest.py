"""manifest.json from strangers: refused in a sentence, or a manifest that reads back the same."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import strategies as st

from neuraverse.errors import ManifestError
from neuraverse.manifest import BLOBS, MAX_MANIFEST_BYTES, MAX_MARKS, SkillManifest
from tests.fuzz.hostile import any_bytes, assert_cheap, few_and_many, filled, for_each, places, spoilt


@pytest.fixture(scope="module")
def good(tiny) -> list[bytes]:
    files = {name: {"sha256": "0" * 64, "size": size} for size, name in enumerate(BLOBS)}
    plain = tiny.manifest(tiny.weights(), files=files)
    full = tiny.manifest(
        tiny.weights(),
        files=files,
        version="1.2.3-rc.1",
        description="a\nb é",
        parents=("sha256:" + "a" * 64, "sha256:" + "b" * 64),
        evaluation=plain.evaluation.model_copy(update={"source": plain.evaluation.score}),
    )
    return [plain.to_bytes(), full.to_bytes()]


def no_constant(name: str) -> None:
    pytest.fail(f"{name} was accepted")


def refused_or_sound(data: bytes) -> None:
    try:
        manifest = SkillManifest.parse(data)
    except ManifestError:
        with pytest.raises(ManifestError) as caught:
            SkillManifest.parse(data)
        assert len(str(caught.value)) < 1000
        return
    again = manifest.to_bytes()
    assert SkillManifest.parse(again) == manifest
    assert SkillManifest.parse(again).to_bytes() == again
    given = json.loads(data.decode(), parse_constant=no_constant)
    assert given["name"] == manifest.name
    assert manifest.files.keys() == set(BLOBS)
    json.loads(again.decode(), parse_constant=no_constant)


def test_what_the_project_writes_is_accepted(good):
    for data in good:
        assert SkillManifest.parse(data).to_bytes() == data
        refused_or_sound(data)


@few_and_many
def test_spoilt_files(examples, good):
    for_each(spoilt(good), examples, refused_or_sound)


@few_and_many
def test_any_bytes(examples, good):
    for_each(any_bytes(*(good[0][:at] for at in (1, 50, 500)), b"\xff\xfe{\0"), examples, refused_or_sound)


# Written into the JSON as they are.
HOSTILE = (
    *("null", "true", "false", "0", "-0", "-1", "1.0", "0.5", "1e308", "1e309", "-1e309", "5e-324"),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        str(2**53),
        str(2**63),
        str(2**64),
        str(-(2**63) - 1),
        "9" * 400,
        "9" * 5000,
    ),
    *("1" + "0" * 400 + ".5", "0." + "0" * 400 + "1", "1e99999999999", "01", "+1", ".5", "0x1", "1_000"),
    *(
        '""',
        '"\\u0000"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u202e"',
        '"\\ud83d\\ude00"',
        '"a\\nb"',
        '"\\x"',
        '"\t"',
    ),
    *(
        '"../x"',
        '"acme/weld-seam"',
        '"ACME/x"',
        '"1.0.0"',
        '"^1"',
        '"latest"',
        '"2026-01-02T03:04:05Z"',
        '"NaN"',
    ),
    *(
        '"2026-01-02T03:04:05+01:00"',
        '"0001-01-01T00:00:00+00:00"',
        '"9999-12-31T23:59:60Z"',
        '"' + "x" * 5000 + '"',
    ),
    *("[]", "{}", "[[]]", "[null]", '{"":0}', '{"a":1,"a":2}', '{"__proto__":{}}', "[" * 300 + "]" * 300),
    *('{"a":' * 250 + "0" + "}" * 250, "[" * 900, "[0" + ",0" * 300 + "]", '[""' + ',""' * 300 + "]"),
    *(
        "[1,2]",
        "[2,1]",
        "[0.0,0.0]",
        "[1e308,-1e308]",
        '["a"]',
        "[4096]",
        "[4097]",
        "[1,1,1,1,1,1,1,1,1]",
        "// x\n0",
    ),
)


def written(value, path, key: str, text: str, how: str) -> str:
    """A JSON value with `text` in place of, before, or beside the value at `path`."""
    marker = "\N{SNOWMAN} here"
    whole = json.loads(json.dumps(value))
    if not path:
        return text
    holder = whole
    for step in path[:-1]:
        holder = holder[step]
    last = path[-1]
    if isinstance(holder, dict) and how == "key":
        holder[marker] = holder.pop(last)
        return json.dumps(whole).replace(json.dumps(marker), json.dumps(key))
    if isinstance(holder, dict) and how == "twice":
        old = json.dumps(holder[last])
        holder[last] = marker
        return json.dumps(whole).replace(json.dumps(marker), f"{old}, {json.dumps(last)}: {text}")
    if how == "gone":
        del holder[last]
        return json.dumps(whole)
    if isinstance(holder, list) and how == "more":
        holder.insert(last, marker)
    else:
        holder[last] = marker
    return json.dumps(whole).replace(json.dumps(marker), text)


def edited(good: list[bytes]) -> st.SearchStrategy[bytes]:
    """A manifest with one value changed, doubled, renamed or taken out."""
    plain = [json.loads(data) for data in good]
    spots = [(value, path) for value in plain for path in places(value)]
    keys = st.sampled_from(
        ["", "name", "a b", "\0", "é", "\ud800", "x" * 101, "__class__", "noise", "latency_s"]
    )
    hows = st.sampled_from(["instead", "instead", "instead", "key", "twice", "gone", "more"])
    texts = st.sampled_from(HOSTILE)
    return st.builds(
        lambda spot, key, text, how: written(*spot, key, text, how).encode(),
        st.sampled_from(spots),
        keys,
        texts,
        hows,
    )


@few_and_many
def test_edited_files(examples, good):
    for_each(edited(good), examples, refused_or_sound)


@pytest.mark.slow
def test_every_value_replaced_by_everything(good):
    value = json.loads(good[1])
    for path in places(value):
        for text in HOSTILE:
            refused_or_sound(written(value, path, "", text, "instead").encode())


@pytest.mark.parametrize("protocol", range(6))
def test_fault_16_a_pickle_is_no_manifest(good, protocol):
    with pytest.raises(ManifestError):
        SkillManifest.parse(pickle.dumps(json.loads(good[0]), protocol))


# Part, what is before and behind it, and how many of them are allowed.
PARTS = {
    "keys": ("{", '"%x":0', "}", 3_990),
    "signals": ('{"interface":{"observation":[', "{}", "]}}", 1_990),
    "numbers for signals": ('{"interface":{"observation":[', "0", "]}}", 19_900),
    "limits": ('{"interface":{"observation":[{"low":[', '""', "]}]}}", 19_900),
    "parameters": ('{"task":{"parameters":{', '"!%x":null', "}}}", 3_990),
    "spans": ('{"randomised":{', '"!%x":[[],[]]', "}}", 660),
    "files": ('{"files":{', '"%x":{}', "}}", 1_990),
    "parents": ('{"parents":[', "0", "]}", 19_900),
    "seeds": ('{"training":{"seeds":[', "{}", "]}}", 1_990),
    "hidden": ('{"network":{"hidden":[', "0", "]}}", 19_900),
    "metrics": ('{"evaluation":{"metrics":{', '"!%x":""', "}}}", 3_990),
    "recipe": ('{"training":{"recipe":{"a":[', '{"":[]}', "]}}}", 1_980),
    "lists in the recipe": ('{"training":{"recipe":{"a":[', "[]", "]}}}", 1_980),
}


def test_fault_14_bombs_take_little_memory(tmp_path):
    found = {}
    for name, (head, part, tail, allowed) in PARTS.items():
        found[f"{name}, allowed"] = filled(head, part, tail, allowed)
        found[name] = filled(head, part, tail, (MAX_MANIFEST_BYTES - 100) // (len(part) + 4))
    kinds = ["signals", "numbers for signals", "parameters", "spans", "recipe"]
    found["everything"] = (
        b"[" + b",".join(filled(*PARTS[kind][:3], PARTS[kind][3] // 5) for kind in kinds) + b"]"
    )
    found["long key"] = b'{"' + b"x" * 1_000_000 + b'":0}'
    found["long text"] = b'{"description":"' + b"x" * 1_000_000 + b'"}'
    found["wide text"] = ('{"title":"' + "\N{GRINNING FACE}" * 260_000 + '"}').encode()
    found["a vast number"] = b"9" * 1_000_000
    found["deep"] = b"[" * 1_000_000
    found["deep, allowed"] = b'{"a":' * MAX_MARKS["{"]
    found["two bytes a character"] = filled("[", "[]", "]", 170_000).decode().encode("utf-16")
    assert all(len(data) <= MAX_MANIFEST_BYTES for data in found.values())
    assert_cheap("neuraverse.manifest:SkillManifest.parse", found, tmp_path)


def test_fault_14_thousands_of_signals_are_refused_at_once():
    """Names are compared with each other, which took longer with the square of their number."""
    signal = '{"name":"s%x","shape":[1],"unit":"1"}'
    data = filled('{"interface":{"observation":[', signal, '],"action":[],"rate_hz":1.0}}', 20_000)
    with pytest.raises(ManifestError, match="at most"):
        SkillManifest.parse(data)
