"""Archives, statements, ranges and event streams from strangers: refused, or what is really there."""

from __future__ import annotations

import contextlib
import json
import tracemalloc

import pytest
from hypothesis import strategies as st

from neuraverse import archive
from neuraverse.client.sse import parse as parse_events
from neuraverse.errors import IntegrityError, ManifestError, NetworkError, SignatureError, UsageError
from neuraverse.manifest import version_key
from neuraverse.statement import build, parse, sign, verify
from neuraverse.versions import parse_range
from tests.fuzz.hostile import MEGABYTE, any_bytes, few_and_many, for_each, spoilt

NAMES = ("manifest.json", "signature.json", "model.safetensors", "README.md")
CONTENTS = ((b"{}", b"[1]", bytes(range(256)) * 3, b""), (b"", b"x" * 512, b"y" * 511, b"z" * 513))
PARTS = [dict(zip(NAMES, each, strict=True)) for each in CONTENTS]
ARCHIVES = [b"".join(archive.pack(parts.items())) for parts in PARTS]


# --- archives


def refused_or_ours(data: bytes, sizes=(1 << 20,)) -> None:
    """What is accepted is, byte by byte, what we would write of the same files."""
    at, chunks = 0, []
    while at < len(data):
        chunks.append(data[at : at + sizes[len(chunks) % len(sizes)]])
        at += len(chunks[-1])
    found = None
    with contextlib.suppress(IntegrityError):
        reader = archive.Reader(chunks, NAMES, limit=2000)
        found = {name: reader.data() for name, _ in reader.members()}
    if found is None:
        with pytest.raises(IntegrityError) as caught:
            archive.unpack([data], NAMES)
        assert len(str(caught.value)) < 1000
        return
    assert b"".join(archive.pack(found.items())) == data
    assert list(found) == list(NAMES)
    assert archive.unpack([data], NAMES) == found


@few_and_many
def test_spoilt_archives(examples):
    for_each(spoilt(ARCHIVES), examples, refused_or_ours)


@few_and_many
def test_spoilt_archives_in_pieces(examples):
    sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=4)
    for_each(st.tuples(spoilt(ARCHIVES), sizes), examples, lambda each: refused_or_ours(*each))


@few_and_many
def test_any_bytes_are_no_archive(examples):
    for_each(any_bytes(ARCHIVES[0][:512], ARCHIVES[0][:1536]), examples, refused_or_ours)


@few_and_many
def test_shuffled_blocks(examples):
    """Blocks of real archives in any order: whole headers and whole contents in the wrong places."""
    blocks = [data[at : at + 512] for data in ARCHIVES for at in range(0, len(data), 512)]
    some = st.lists(st.sampled_from(blocks), max_size=14).map(b"".join)
    for_each(some, examples, refused_or_ours)


@pytest.mark.parametrize("parts", PARTS)
def test_whole_archives(parts):
    assert archive.unpack([b"".join(archive.pack(parts.items()))], NAMES) == parts


BOMBS = {
    "a vast size": archive.header("manifest.json", archive.MAX_MEMBER_BYTES) + bytes(512),
    "many headers": archive.header("manifest.json", 0) * 40_000,
    "zeros": bytes(20 * MEGABYTE),
    "one header and zeros": archive.header("manifest.json", 0) + bytes(20 * MEGABYTE),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError) as caught:
            archive.unpack([BOMBS[name]], NAMES)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000


# --- statements

HEAD = {"registry": "01234567-89ab-cdef-0123-456789abcdef", "name": "acme/weld-seam", "serial": 3}
SAID = [
    build(**HEAD, action="yank", version="1.2.0", reason="too fast on thin sheet"),
    build(**HEAD, action="alias", alias="stable", version="1.2.0-rc.1"),
    build(**HEAD, action="deprecate", message="ça ne va plus", successor="acme/weld"),
]


def refused_or_said(text: str) -> None:
    with contextlib.suppress(ManifestError):
        found = parse(text)
        assert parse(found.text()) == found
        json.loads(text)


@few_and_many
def test_spoilt_statements(examples):
    texts = spoilt([text.encode() for text in SAID])
    for_each(texts.map(lambda data: data.decode(errors="surrogateescape")), examples, refused_or_said)


@few_and_many
def test_any_text_is_no_statement(examples):
    for_each(st.text(st.characters(exclude_categories=[]), max_size=300), examples, refused_or_said)


@few_and_many
def test_statements_of_other_shapes(examples):
    """Any JSON in each of the fields."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)
    fields = st.sampled_from([*json.loads(SAID[0]), "message", "alias", "successor", "more"])
    changes = st.dictionaries(fields, values, max_size=3)
    made = st.builds(
        lambda text, change: json.dumps(json.loads(text) | change), st.sampled_from(SAID), changes
    )
    for_each(made, examples, refused_or_said)


@pytest.fixture(scope="module")
def signatures(publisher):
    return {text: sign(text, publisher.private_key_path()) for text in SAID}


@few_and_many
def test_nothing_else_is_signed(signatures, publisher, examples):
    """No spoilt text and no spoilt signature passes for the real one."""
    keys = [publisher.public_key()]
    for text, signature in signatures.items():
        assert verify(text, signature, keys) == keys[0].fingerprint

    def check(each):
        text, signature = (part.decode(errors="surrogateescape") for part in each)
        if signatures.get(text) == signature:
            return
        with contextlib.suppress(SignatureError):
            verify(text, signature, keys)
            assert text in signatures  # its bytes may be written with other padding bits

    texts, signed = [t.encode() for t in SAID], [s.encode() for s in signatures.values()]
    for_each(
        st.tuples(spoilt(texts) | st.sampled_from(texts), spoilt(signed) | st.sampled_from(signed)),
        examples,
        check,
    )


# --- ranges

few = st.integers(0, 3).map(str)
tails = st.sampled_from(["", "", "", "-a", "-a.1", "-1", "-rc.2"])
versions = st.builds("{}.{}.{}{}".format, few, few, few, tails)
numbers = st.sampled_from(["0", "1", "2", "3", "*"])
comparisons = st.builds(
    lambda how, parts, tail: how + ".".join(parts) + tail,
    st.sampled_from(["^", "~", ">=", "<=", ">", "<", "=", "", "^ ", ">= ", "=="]),
    st.lists(numbers, min_size=1, max_size=4),
    tails,
)
ranges = st.lists(comparisons, min_size=1, max_size=3).map(" ".join) | st.lists(
    comparisons, min_size=2, max_size=3
).map(",".join)


def range_of(text):
    with contextlib.suppress(UsageError):
        return parse_range(text)


@few_and_many
def test_what_lies_between_two_of_a_range_is_in_it(examples):
    """All comparisons are bounds, so that a range has no holes but prereleases that it does not name."""

    def check(each):
        text, three = each
        found = range_of(text)
        if found is None:
            return
        low, middle, high = sorted(three, key=version_key)
        if found.allows(low) and found.allows(high) and "-" not in middle:
            assert found.allows(middle)

    for_each(st.tuples(ranges, st.lists(versions, min_size=3, max_size=3)), examples, check)


@few_and_many
def test_the_order_of_comparisons_does_not_matter(examples):
    def check(each):
        parts, version = each
        ways = [range_of(" ".join(way)) for way in (parts, parts[::-1], [*parts, *parts])]
        assert len({found is None for found in ways}) == 1
        if ways[0] is not None:
            assert len({found.allows(version) for found in ways}) == 1

    for_each(st.tuples(st.lists(comparisons, min_size=1, max_size=3), versions), examples, check)


@few_and_many
def test_any_text_is_a_range_or_refused(examples):
    alphabet = st.sampled_from("^~<>=.,-* 0123456789arc+|!\n\0\u0661\u00b2\ud800x")
    for_each(st.text(alphabet, max_size=40) | st.text(max_size=200), examples, range_of)


# --- event streams

STREAMS = [
    b'id: 1\nevent: published\ndata: {"id": 1}\n\n: heartbeat\n\nid: 2\ndata: {"id": 2}\ndata: more\n\n',
    b"event: reset\nid: 9\n\r\ndata\n\n",
]


@few_and_many
def test_spoilt_event_streams(examples):
    """Cut anywhere, they give the same messages."""

    def check(each):
        data, size = each
        with contextlib.suppress(NetworkError):
            whole = list(parse_events([data]))
            assert list(parse_events(data[at : at + size] for at in range(0, len(data), size))) == whole

    for_each(st.tuples(spoilt(STREAMS), st.integers(1, 50)), examples, check)
