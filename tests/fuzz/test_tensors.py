"""model.safetensors from strangers: refused in a sentence or sound to its last number, in little memory."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import pickle
import zipfile

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import strategies as st

from neuraverse.errors import WeightsError
from neuraverse.tensors import MAX_HEADER_BYTES, MAX_HEADER_PARTS, check_tensors, read_tensors
from tests.fuzz.hostile import any_bytes, assert_cheap, few_and_many, filled, for_each, pack, spoilt

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
GOOD = [
    safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float16)}),
    safetensors.numpy.save(
        {"n": np.arange(3), "t": np.array([True, False]), "s": np.float64(1.5)[None]},
        metadata={"format": "np"},
    ),
    pack({"h": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\x80\x3f\x20\xc0"),
    pack({"e": {"dtype": "I8", "shape": [0, 4], "data_offsets": [0, 0]}}),
]


def refused_or_sound(data: bytes) -> None:
    """The property; and bytes, a view and a map of them get one answer."""
    try:
        shapes = check_tensors(data)
    except WeightsError:
        for read, buffer in ((read_tensors, data), (check_tensors, memoryview(data))):
            with pytest.raises(WeightsError) as caught:
                read(buffer)
            assert len(str(caught.value)) < 1000
        return
    assert check_tensors(bytearray(data)) == shapes
    tensors = read_tensors(memoryview(data))
    theirs = dict(safetensors.deserialize(data))
    assert {name: (each.shape, each.size) for name, each in tensors.items()} == {
        name: (tuple(each["shape"]), len(each["data"]) // SIZES[each["dtype"]])
        for name, each in theirs.items()
    }
    assert {name: each.shape for name, each in tensors.items()} == shapes
    assert all(np.isfinite(each).all() for each in tensors.values())
    header = 8 + int.from_bytes(data[:8], "little")
    assert header + sum(len(each["data"]) for each in theirs.values()) == len(data)


@few_and_many
def test_fault_14_spoilt_files(examples):
    for_each(spoilt(GOOD), examples, refused_or_sound)


@few_and_many
def test_fault_14_any_bytes(examples):
    for_each(any_bytes(*(data[:at] for data in GOOD for at in (8, 9, 20))), examples, refused_or_sound)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A file whose header is well-formed JSON of the right shape, and whose numbers may lie."""
    count, at, entries = draw(st.integers(0, 4)), 0, []
    for number in range(count):
        dtype = draw(st.sampled_from([*SIZES, "F32", "I8", "C64", "F8_E4M3"]))
        shape = draw(st.lists(st.sampled_from([1, 2, 3] * 5 + [0, 2**31, 2**47, 2**63, -1]), max_size=3))
        size = SIZES.get(dtype, 4)
        for n in shape:
            size *= n
        start = at + draw(st.sampled_from([0] * 15 + [-1, 1, 4, -4]))
        end = start + size + draw(st.sampled_from([0] * 15 + [1, -1, 2**62]))
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        for key in draw(st.sets(st.sampled_from(["dtype", "shape", "data_offsets"]), max_size=1)):
            if draw(st.sampled_from([True, False, False, False])):
                del entry[key]
        name = draw(st.sampled_from([f"t{number}"] * 20 + ["t0", "", "é", "\ud800", "__metadata__"]))
        entries.append(f"{json.dumps(name)}:{json.dumps(entry)}")
        at = max(0, min(end, 1 << 16))
    if draw(st.booleans()):
        notes = draw(
            st.sampled_from(['{"a":"b"}', '{"a":1}', "[]", "null", '{"a":"b","a":"b"}', '{"a":NaN}'])
        )
        entries.insert(draw(st.integers(0, len(entries))), f'"__metadata__":{notes}')
    text = ("{" + ",".join(entries) + "}" + draw(st.sampled_from(["", " ", "  \n", "\0", "x"]))).encode()
    body = draw(st.sampled_from([b"\0", b"\1", b"\xff", b"\x7f"])) * max(
        0, at + draw(st.sampled_from([0, 0, 0, 1, -1]))
    )
    return pack(text, body)


@few_and_many
def test_fault_14_headers_that_lie(examples):
    for_each(headers(), examples, refused_or_sound)


@pytest.mark.parametrize(
    "shape", [(2**40, 2**40, 0), (2**47, 0, 2**47), (0, 2**47), (0,) * 8, (2**16, 2**16, 2**15, 0)]
)
def test_fault_14_vast_and_empty(shape):
    data = pack({"x": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}})
    with contextlib.suppress(WeightsError):
        assert check_tensors(data) == {"x": shape}
        assert read_tensors(data)["x"].shape == shape


TENSOR = '"%x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'
MANY = MAX_HEADER_BYTES // 60
BOMBS = {
    "lists": b"[" + b"[]," * (MAX_HEADER_BYTES // 3 - 2) + b"[]]",
    "lists as many as allowed": b"[" + b"[0]," * (MAX_HEADER_PARTS - 2) + b"0]",
    "objects": b"[" + b"{}," * (MAX_HEADER_BYTES // 3 - 2) + b"{}]",
    "objects as many as allowed": b"[" + b'{"":0},' * (MAX_HEADER_PARTS - 2) + b"0]",
    "nested": b"[" + (b"[" * 900 + b"]" * 900 + b",") * 580 + b"0]",
    "deep": b"[" * MAX_HEADER_BYTES,
    "deep as allowed": b"[" * MAX_HEADER_PARTS,
    "keys": filled("{", '"%x":0', "}", 100_000),
    "numbers": filled("[", "1e1", "]", 250_000),
    "whole numbers": filled("[", "12345", "]", 170_000),
    "a vast number": b"[" + b"9" * (MAX_HEADER_BYTES - 2) + b"]",
    "a long name": ('{"' + "\N{GRINNING FACE}" * 260_000 + '":0}').encode(),
    "a long name in words": b'{"' + b"x" * 1_000_000 + b'":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "a long type": b'{"x":{"dtype":"' + b"x" * 1_000_000 + b'","shape":[1],"data_offsets":[0,4]}}',
    "notes": filled('{"__metadata__":{', '"%x":""', "}}", 95_000),
    "shapes": filled('{"x":{"dtype":"I8","data_offsets":[0,0],"shape":[', "0", "]}}", 500_000),
    "escapes": b'{"' + b"\\u00e9" * 170_000 + b'":0}',
    "tensors": filled("{", TENSOR, "}", MANY),
    "one too many keys": filled("{", TENSOR, ',"0":0}', MANY),
}


def test_fault_14_header_bombs_take_little_memory(tmp_path):
    assert all(len(header) <= MAX_HEADER_BYTES for header in BOMBS.values())
    files = {name: pack(header) for name, header in BOMBS.items()}
    nan = np.float32([np.nan]).tobytes()
    long_name = b'{"' + b"x" * 1_000_000 + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    files["a long name of what is not finite"] = pack(long_name, nan)
    assert_cheap("neuraverse.tensors:check_tensors", files, tmp_path, accepted=["tensors"])


def test_fault_14_a_large_file_is_not_copied(tmp_path):
    files = {
        "floats": safetensors.numpy.save({"x": np.ones(20_000_000, np.float32)}),
        "halves": safetensors.numpy.save({"x": np.ones(40_000_000, np.float16)}),
        "truth": safetensors.numpy.save({"x": np.ones(80_000_000, np.bool_)}),
    }
    assert_cheap("neuraverse.tensors:check_tensors", files, tmp_path, accepted=files)


@pytest.mark.parametrize("read", [check_tensors, read_tensors])
@pytest.mark.parametrize("number", [1.0, np.nan])
def test_a_map_of_a_file_can_be_closed_afterwards(tmp_path, read, number):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"x": np.float32([number])}))
    expected = contextlib.nullcontext() if np.isfinite(number) else pytest.raises(WeightsError, match="NaN")
    with expected, path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        read(view)


def archive(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zipped:
        zipped.writestr("archive/data.pkl", pickle.dumps({"w": [0.0]}))
        zipped.writestr("archive/data/0", bytes(10_000_000))
    return file.getvalue()


PICKLES = [
    pickle.dumps(value, protocol) for protocol in range(6) for value in ({"w": [1.0] * 9}, "x" * 300, print)
]


@pytest.mark.parametrize("data", [*PICKLES, archive(zipfile.ZIP_STORED), archive(zipfile.ZIP_DEFLATED)])
def test_fault_16_pickles_and_archives_under_another_name(data):
    with pytest.raises(WeightsError):
        check_tensors(data)
    # Nor as what is said to be numbers' header, nor behind it.
    for disguised in (pack(data), pack({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, data)):
        with pytest.raises(WeightsError):
            check_tensors(disguised)


@few_and_many
def test_fault_16_spoilt_pickles(examples):
    for_each(spoilt(PICKLES), examples, refused_or_sound)
