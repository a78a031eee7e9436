"""model.safetensors read without trust."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from neuraverse.errors import WeightsError
from neuraverse.tensors import MAX_HEADER_BYTES, Checker, check_tensors, read_tensors


def pack(header, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(1,), start=0, end=4) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_shapes_and_numbers_are_those_that_the_library_wrote(tiny):
    weights = tiny.weights()
    data = safetensors.numpy.save(weights, metadata={"format": "np"})
    assert check_tensors(data) == {name: value.shape for name, value in weights.items()}
    read = read_tensors(data)
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].flags.writeable


@pytest.mark.parametrize("buffer", [bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_buffer_is_read_and_none_is_held(tiny, buffer):
    weights = tiny.weights()
    data = buffer(safetensors.numpy.save(weights))
    read = read_tensors(data)
    assert {name: value.shape for name, value in read.items()} == check_tensors(data)
    assert not any(np.shares_memory(value, np.frombuffer(data, np.uint8)) for value in read.values())


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
)
def test_other_types_are_read(dtype):
    value = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    np.testing.assert_array_equal(read_tensors(safetensors.numpy.save({"x": value}))["x"], value)


def outcome(check):
    """What a check gives, or what it refuses with."""
    try:
        return check()
    except WeightsError as error:
        return error.message


def in_pieces(data: bytes, cuts: list[int]):
    """The check of a file that comes cut at these places."""
    checker = Checker(len(data))
    places = sorted({0, len(data), *cuts})
    for start, stop in itertools.pairwise(places):
        checker.feed(memoryview(data)[start:stop])
    return checker.finish()


@settings(max_examples=300)
@given(st.data())
def test_a_file_that_comes_in_pieces_is_checked_as_one_that_is_whole(data):
    """Numbers, header and length may be cut anywhere; a bad number is found on whichever side it lies."""
    dtypes = data.draw(
        st.lists(st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "BOOL"]), min_size=1, max_size=4)
    )
    header, body = {}, b""
    for i, dtype in enumerate(dtypes):
        size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}[dtype]
        part = data.draw(st.sampled_from([b"\x00", b"\x01", b"\x3c", b"\x7f", b"\xff"])) * size
        count = data.draw(st.integers(0, 5))
        header[f"t{i}"] = entry(dtype, (count,), len(body), len(body) + count * size)
        body += bytes(size) * (count - 1) + part if count else b""
    whole = pack(header, body)
    whole = whole[: len(whole) - data.draw(st.integers(0, 1))]
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    assert outcome(lambda: in_pieces(whole, cuts)) == outcome(lambda: check_tensors(whole))


def test_bfloat16_is_widened():
    # 1.0 is 0x3F80 and -2.5 is 0xC020 in bfloat16.
    data = pack({"x": entry("BF16", (2,), 0, 4)}, struct.pack("<2H", 0x3F80, 0xC020))
    assert read_tensors(data)["x"].tolist() == [1.0, -2.5]


def test_scalars_and_empty_tensors_are_tensors():
    data = pack({"none": entry(shape=(0, 3), end=0), "one": entry(shape=())}, struct.pack("<f", 7.0))
    assert check_tensors(data) == {"none": (0, 3), "one": ()}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_number_that_is_not_finite_is_found_and_its_tensor_named(bad, dtype):
    spoilt = np.zeros(300_001, dtype)
    spoilt[-1] = bad
    data = safetensors.numpy.save({"fine": np.ones(3, dtype), "spoilt": spoilt})
    with pytest.raises(WeightsError, match="'spoilt' holds NaN or infinity"):
        check_tensors(data)


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_bfloat16_is_checked_too(bits):
    with pytest.raises(WeightsError, match="NaN or infinity"):
        check_tensors(pack({"x": entry("BF16", (1,), 0, 2)}, struct.pack("<H", bits)))


def zip_of_torch() -> bytes:
    return b"PK\x03\x04" + bytes(100)


def numpy_pickle() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [*(pickle.dumps({"w": [1.0] * 50}, p) for p in (2, 3, 4, 5)), zip_of_torch()]
)
def test_a_pickle_renamed_is_called_a_pickle(data):
    with pytest.raises(WeightsError, match=r"is a pickle or torch\.save file, which can run code") as caught:
        check_tensors(data)
    assert "safetensors" in caught.value.remedy


def test_a_header_of_128_bytes_is_no_pickle():
    data = safetensors.numpy.save({"x": np.zeros(1, np.float32)})
    for length in range(0x80, 0x90):  # little-endian lengths that begin as a pickle does
        text = data[8:-4].ljust(length)
        assert check_tensors(pack(text, data[-4:])) == {"x": (1,)}


@pytest.mark.parametrize(
    "data", [pickle.dumps([1.0] * 50, 0), numpy_pickle(), b"", b"\0" * 7, b"GGUF" + bytes(40)]
)
def test_other_files_are_refused(data):
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        check_tensors(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<Q", 2**63), "at most"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(100), "at most"),
        (struct.pack("<Q", 1000) + b"{}", "the file has 10"),
        (pack(b"{"), "JSON"),
        (pack(b"[" * 50_000), "JSON"),
        (pack(b"[" * 100_000), "100000 brackets"),
        (pack(b'{"x": -0}'), "natural"),
        (pack(b'{"x": 1000000000000000}'), "natural"),
        (pack(b'{"\\ud800": 1}'), "JSON"),
        (pack(b'{"__metadata__": {"a": "\\udfff"}}'), "JSON"),
        (pack(b"\xff\xfe"), "JSON"),
        (pack(b'{"x": NaN}'), "JSON"),
        (pack(b'{"x": 1, "x": 2}'), "twice"),
        (pack(b"[]"), "object"),
        (pack({}), "no tensor"),
        (pack({"__metadata__": {}}), "no tensor"),
        (pack({"__metadata__": {"a": 1}, "x": entry()}, bytes(4)), "__metadata__"),
        (pack({"__metadata__": [], "x": entry()}, bytes(4)), "__metadata__"),
        (pack({"x": 1}), "exactly"),
        (pack({"x": entry() | {"extra": 1}}, bytes(4)), "exactly"),
        (pack({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)), "exactly"),
        (pack({"x": entry(dtype="F128")}, bytes(4)), "'F128'"),
        (pack({"x": entry(dtype=["F32"])}, bytes(4)), "type"),
        (pack({"x": entry(shape=(-1,))}, bytes(4)), "natural"),
        (pack({"x": entry(shape=(True,))}, bytes(4)), "natural"),
        (pack({"x": entry(shape=(1.0,))}, bytes(4)), "natural"),
        (pack({"x": entry(shape=(1,) * 9)}, bytes(4)), "eight"),
        (pack({"x": entry(shape=(2**40, 2**40, 0), end=0)}, b""), "too large"),
        (pack({"x": entry(shape=(2**62,))}, bytes(4)), "natural"),
        (pack({"x": entry() | {"data_offsets": [0]}}, bytes(4)), "data_offsets"),
        (pack({"x": entry(start=4, end=0)}, bytes(4)), "does not fill"),
        (pack({"x": entry(shape=(2,))}, bytes(4)), "does not fill"),
        (pack({"x": entry(), "y": entry(start=2, end=6)}, bytes(6)), "'y' overlaps"),
        (pack({"x": entry(), "y": entry()}, bytes(4)), "overlaps"),
        (pack({"x": entry(), "y": entry(start=8, end=12)}, bytes(12)), "'y' leaves a gap"),
        (pack({"x": entry(start=4, end=8)}, bytes(8)), "'x' leaves a gap"),
        (pack({"x": entry()}, bytes(3)), "the file at"),
        (pack({"x": entry()}, bytes(5)), "the file at"),
        (pack({"x": entry("BOOL", (2,), 0, 2)}, b"\1\2"), "truth values"),
    ],
)
def test_a_lying_header_is_refused(data, says):
    with pytest.raises(WeightsError) as caught:
        check_tensors(data)
    assert says in str(caught.value)


def test_a_header_bomb_takes_less_than_50_mb():
    entries = b",".join(b'"%d":[[],[],[]]' % i for i in range(52_000))
    bomb = pack(b"{" + entries + b"}")
    assert len(bomb) > 0.8 * MAX_HEADER_BYTES
    tracemalloc.start()
    with pytest.raises(WeightsError):
        check_tensors(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 50)
    | st.floats()
    | st.sampled_from(["F32", "I8", "BF16", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8"]) | json_values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.tuples(st.integers(0, 20), st.integers(0, 40)) | json_values,
    }
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values),
    st.binary(max_size=48),
)
def test_a_header_of_any_kind_is_read_or_refused(header, body):
    with contextlib.suppress(WeightsError):
        shapes = check_tensors(pack(header, body))
        assert {name: value.shape for name, value in read_tensors(pack(header, body)).items()} == shapes


@settings(max_examples=200)
@given(st.data())
def test_what_we_accept_the_library_accepts_alike(data):
    good = bytearray(safetensors.numpy.save({"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float16)}))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    spoilt = bytes(good)
    try:
        ours = read_tensors(spoilt)
    except WeightsError:
        return
    theirs = safetensors.numpy.load(spoilt)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
