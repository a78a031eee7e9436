"""manifest.json: what is accepted, what is refused, and how the refusal names the field."""

from __future__ import annotations

import contextlib
import itertools
import json
import string
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuraverse.errors import ManifestError
from neuraverse.manifest import (
    BLOBS,
    MAX_MANIFEST_BYTES,
    Body,
    Evaluation,
    FileEntry,
    Network,
    Score,
    SkillManifest,
    TaskInfo,
    Training,
    digest_of,
    version_key,
    wilson_lower,
)


@pytest.fixture(scope="module")
def whole(tiny):
    """A manifest with every field filled."""
    entries = {name: FileEntry(sha256=f"{i:064x}", size=i) for i, name in enumerate(BLOBS)}
    return tiny.manifest(
        tiny.weights(), files=entries, parents=("sha256:" + "ab" * 32,), description="Two\nlines."
    )


@pytest.fixture
def plain(whole):
    """The same as JSON types, to be spoilt."""
    return json.loads(whole.to_bytes())


def refuse(content, *says):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(ManifestError) as caught:
        SkillManifest.parse(data)
    for part in ("manifest.json", *says):
        assert part in str(caught.value)


def test_parse_reads_back_what_to_bytes_wrote(whole):
    assert SkillManifest.parse(whole.to_bytes()) == whole
    assert SkillManifest.parse(whole.to_bytes()).to_bytes() == whole.to_bytes()


def test_the_bytes_are_readable_utf8_in_the_order_of_the_schema(whole):
    text = whole.to_bytes().decode()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == list(SkillManifest.model_fields)


def test_the_interface_survives_with_its_digest(whole, interface):
    assert SkillManifest.parse(whole.to_bytes()).interface.digest() == interface.digest()


def test_the_digest_is_sha256_of_the_bytes():
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_ref_and_org(whole):
    assert (whole.ref, whole.org) == ("acme/weld-seam@1.0.0", "acme")


def objects(value, path=()):
    """Path of every JSON object whose keys the schema fixes."""
    free = {"randomised", "parameters", "metrics", "recipe", "seed_scores", "versions"}
    if isinstance(value, dict):
        if not path or path[-1] not in free:
            yield path
            for key, inner in value.items():
                if key not in free:
                    yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from objects(inner, (*path, i))


def at(value, path):
    for part in path:
        value = value[part]
    return value


def test_an_unknown_key_anywhere_is_named(plain, whole):
    paths = list(objects(plain))
    assert {(), ("interface",), ("interface", "action", 0), ("evaluation",), ("files", "policy.onnx")} <= set(
        paths
    )
    for path in paths:
        spoilt = json.loads(whole.to_bytes())
        at(spoilt, path)["surprise"] = 1
        refuse(spoilt, "surprise")


def test_a_missing_key_is_named(plain, whole):
    for key in ("name", "version", "interface", "body", "evaluation", "files", "created"):
        spoilt = json.loads(whole.to_bytes())
        del spoilt[key]
        refuse(spoilt, key)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", "neuraverse.manifest/2"),
        ("name", "weld-seam"),
        ("name", "acme/Weld"),
        ("name", "acme/../etc"),
        ("name", "acme/weld\n"),
        ("name", "-acme/weld"),
        ("name", f"{'a' * 65}/weld"),
        ("name", "acme/ｗeld"),
        ("version", "1.0"),
        ("version", "01.0.0"),
        ("version", "1.0.0-"),
        ("version", "1.0.0-01"),
        ("version", "v1.0.0"),
        ("version", "1.0.٣"),
        ("version", f"1.0.0-{'a' * 64}"),
        ("title", "\x1b[2Jcleared"),
        ("title", "two\nlines"),
        ("title", "‮reversed"),
        ("title", "x" * 301),
        ("title", 7),
        ("license", None),
        ("created", "yesterday"),
        ("created", "2026-01-02T03:04:05"),
        ("created", "2026-01-02T03:04:05+02:00"),
        ("created", 1_700_000_000),
        ("interface.rate_hz", "50"),
        ("interface.rate_hz", -1.0),
        ("interface.action.0.unit", "furlong"),
        ("interface.action.0.shape", [7]),
        ("interface.action.0.shape", [6.0]),
        ("interface.observation", []),
        ("interface.requires.reach_m", -1),
        ("body.dof", 0),
        ("body.dof", 7.0),
        ("body.servo_hz", -1),
        ("body.servo_hz", True),
        ("randomised.servo_hz", [3.0]),
        ("randomised.servo_hz", [8.0, 4.0]),
        ("task.success", "\x00"),
        ("network.kind", "transformer"),
        ("network.hidden", [0]),
        ("network.hidden", "64"),
        ("network.parameters", -1),
        ("network.parameters", 2**63),
        ("evaluation.successes", 101),
        ("evaluation.successes", 94),
        ("evaluation.rate", 0.96),
        ("evaluation.lower", 0.95),
        ("evaluation.episodes", 0),
        ("evaluation.deterministic", False),
        ("evaluation.source", {"rate": 0.5, "lower": 0.4}),
        ("training.seeds", [-1]),
        ("training.wall_s", "1.5"),
        ("parents.0", "sha256:" + "AB" * 32),
        ("parents.0", "ab" * 32),
        ("files.policy^onnx.sha256", "00"),
        ("files.policy^onnx.size", -1),
        ("files.policy^onnx.size", 2**40),
        ("tags", ["x" * 101]),
        ("tags", "welding"),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(plain, path, value):
    *front, last = [int(p) if p.isdigit() else p.replace("^", ".") for p in path.split(".")]
    at(plain, front)[last] = value
    refuse(plain, front[0] if front else last)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "policy.onnx/..", "model.pkl", "signature.json", "manifest.json"]
)
def test_only_the_files_of_a_skill_can_be_listed(plain, name):
    plain["files"][name] = {"sha256": "0" * 64, "size": 1}
    refuse(plain, "files")


def test_every_file_must_be_listed(plain):
    del plain["files"]["curve.json"]
    refuse(plain, "files", "curve.json")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "JSON"),
        (b"\x80\x04pickle", "JSON"),
        (b"<!doctype html>", "JSON"),
        (b"null", ""),
        (b"[]", ""),
        (b"[" * 2_000, "JSON"),
        (b'{"a":' * 2_000, "JSON"),
        (b"[" * 200_000, "200000 times '['"),
        (b'{"a":' * 100_000, "100000 times ':'"),
        (b'{"a": [' + b"0," * 20_000 + b"0, 0]}", "20001 times ','"),
        (b'{"a": [' + b"0," * 19_000 + b"0]}", "required"),
        (b'{"name": "a", "name": "b"}', "'name' occurs twice"),
        (b'{"a": ' + b"9" * 10_000 + b"}", ""),
        (b'{"title": "\\ud800"}', ""),
        ('{"title": "é"}'.encode("latin-1"), "JSON"),
        ("﻿{}".encode(), ""),
    ],
    ids=lambda v: repr(v[:12]),
)
def test_what_is_no_manifest_is_refused(data, says):
    refuse(data, says)


def test_a_key_twice_deep_inside_is_refused(whole):
    refuse(whole.to_bytes().replace(b'"dof": 7,', b'"dof": 7, "dof": 6,'), "'dof' occurs twice")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_figures_are_finite(whole, number):
    refuse(whole.to_bytes().replace(b'"lateral_mm": 0.41', b'"lateral_mm": ' + number))


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_the_recipe_is_finite_too(whole, tiny, number):
    old = b'"lr": 0.001'
    assert old in whole.to_bytes()
    refuse(whole.to_bytes().replace(old, b'"lr": [1, {"x": ' + number + b"}]"), "recipe", "not finite")


def test_a_long_value_makes_no_long_message(plain):
    plain["interface"]["schema"] = "x" * 100_000
    refuse(plain, "interface schema")
    del plain["interface"]["schema"]
    plain["x" * 100_000] = 0
    with pytest.raises(ManifestError) as caught:
        SkillManifest.parse(json.dumps(plain).encode())
    assert len(str(caught.value)) < 1000


def test_many_errors_are_counted_and_not_listed(plain):
    plain |= {f"x{number}": 0 for number in range(200)}
    refuse(plain, "200 fields")


def test_a_manifest_beyond_the_limit_is_not_parsed(whole):
    data = whole.to_bytes()
    fits = data + b" " * (MAX_MANIFEST_BYTES - len(data))
    assert SkillManifest.parse(fits) == whole
    refuse(fits + b" ", str(MAX_MANIFEST_BYTES))


def test_build_names_the_field(tiny):
    with pytest.raises(ManifestError, match=r"network\.hidden\.0"):
        tiny.manifest(
            tiny.weights(), network={"hidden": (0,), "activation": "elu", "parameters": 1, "opset": 20}
        )
    with pytest.raises(ManifestError, match="name: must be org/skill"):
        tiny.manifest(tiny.weights(), name="weld")


def test_wilson_by_hand():
    # 95 of 100, z = 1.96: (0.95 + 0.0192 - 1.96 * sqrt(0.95 * 0.05 / 100 + 0.0000960)) / 1.0384 = 0.8882
    assert wilson_lower(95, 100) == pytest.approx(0.8882, abs=5e-5)
    # All of n: n / (n + z^2); none of n: 0
    assert wilson_lower(10, 10) == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert wilson_lower(0, 10) == 0.0
    assert wilson_lower(0, 0) == 0.0


@given(st.integers(1, 10_000), st.data())
def test_wilson_is_a_bound_below_the_rate_that_grows_with_successes(n, data):
    k = data.draw(st.integers(0, n - 1))
    assert 0.0 <= wilson_lower(k, n) <= k / n
    assert wilson_lower(k, n) < wilson_lower(k + 1, n) <= 1.0
    assert Score.of(k, n) == Score(rate=k / n, lower=wilson_lower(k, n), n=n)


def test_a_score_without_episodes_is_zero():
    assert Score.of(0, 0) == Score(rate=0.0, lower=0.0, n=0)


def test_versions_sort_as_semver_says():
    # The example of semver.org 2.0.0, section 11, with releases around it.
    ordered = [
        "0.9.9",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.2",
        "1.0.10",
        "1.10.0",
        "2.0.0",
    ]
    keys = [version_key(v) for v in ordered]
    assert all(a < b for a, b in itertools.pairwise(keys))


@pytest.mark.parametrize("version", ["1", "1.2", "latest", "1.2.3\n", "1.2.3+build", ""])
def test_what_is_no_version_has_no_place(version):
    with pytest.raises(ManifestError, match="is not a version"):
        version_key(version)


def test_a_body_outside_the_ranges_of_training_is_told_so():
    slow = Body(robot="ur5e-slow", dof=6, servo_hz=1.5, latency_s=0.06, tool_mass_kg=1.2)
    ranges = {
        "servo_hz": (4.0, 12.0),
        "latency_s": (0.0, 0.03),
        "tool_mass_kg": (0.8, 1.6),
        "noise_m": (0.0, 1.0),
    }
    assert slow.outside(ranges) == [
        "servo bandwidth: ur5e-slow has 1.5 Hz, trained over 4 to 12 Hz",
        "latency: ur5e-slow has 0.06 s, trained over 0 to 0.03 s",
    ]
    assert slow.outside({}) == []


words = st.text(string.ascii_letters + " äß-", min_size=1, max_size=20)
labels = st.from_regex("[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)
naturals = st.integers(0, 2**53)
keys = st.text(string.ascii_letters + string.digits + "_./-", min_size=1, max_size=12)
spans = st.tuples(numbers, numbers).map(sorted).map(tuple)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def evaluations(draw):
    n = draw(st.integers(1, 10_000))
    k = draw(st.integers(0, n))
    return Evaluation(
        episodes=n,
        successes=k,
        rate=k / n,
        lower=wilson_lower(k, n),
        seed_first=draw(naturals),
        seed_count=n,
        metrics=draw(st.dictionaries(keys, numbers, max_size=3)),
        source=draw(st.none() | st.just(Score.of(1, 2))),
    )


@st.composite
def manifests(draw, whole):
    return SkillManifest(
        name=f"{draw(labels)}/{draw(labels)}",
        version="{}.{}.{}".format(*draw(st.tuples(*[st.integers(0, 99)] * 3)))
        + draw(st.sampled_from(["", "-rc.1"])),
        title=draw(words),
        description=draw(words),
        license="Apache-2.0",
        created=draw(st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))),
        interface=whole.interface,
        body=Body(
            robot=draw(words), dof=draw(st.integers(1, 9)), servo_hz=1.0, latency_s=0.0, tool_mass_kg=0.5
        ),
        randomised=draw(st.dictionaries(keys, spans, max_size=3)),
        task=TaskInfo(
            env_id=draw(words),
            success=draw(words),
            parameters=draw(st.dictionaries(keys, st.booleans() | naturals | numbers | words, max_size=4)),
        ),
        network=Network(
            hidden=draw(st.lists(st.integers(1, 512), max_size=3)), activation="elu", parameters=3, opset=20
        ),
        evaluation=draw(evaluations()),
        training=Training(
            algorithm="ppo",
            recipe=draw(st.dictionaries(words, plain_json, max_size=3)),
            seeds=draw(st.lists(naturals, max_size=3)),
            seed_scores=draw(st.dictionaries(keys, numbers, max_size=2)),
            env_steps=draw(naturals),
            wall_s=1.0,
            cpu_s=2.0,
            device="cpu",
        ),
        versions=draw(st.dictionaries(keys, words, max_size=3)),
        parents=draw(st.lists(digests.map("sha256:{}".format), max_size=2)),
        files={name: FileEntry(sha256=draw(digests), size=draw(st.integers(0, 1000))) for name in BLOBS},
        tags=draw(st.lists(keys, max_size=3)),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_manifest_survives_the_round_trip(whole, data):
    manifest = data.draw(manifests(whole))
    again = SkillManifest.parse(manifest.to_bytes())
    assert again == manifest
    assert again.to_bytes() == manifest.to_bytes()


@settings(max_examples=150)
@given(st.data())
def test_spoilt_bytes_are_refused_or_parsed_and_nothing_else(whole, data):
    spoilt = bytearray(whole.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(ManifestError):  # any other error fails the test
        SkillManifest.parse(bytes(spoilt))
