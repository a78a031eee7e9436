"""Ways to spoil a file, and to see what reading one costs."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

MEGABYTE = 1_000_000
ALLOWED = 50 * MEGABYTE
"""What reading a hostile file may take beyond its size."""

few_and_many = pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.slow)])
"""A test of that many examples: a few hundred in `make test`, and many in `make test-all`."""


def for_each(strategy: st.SearchStrategy, examples: int, check: Callable) -> None:
    """Call `check` with that many values, each of them new where there are many."""

    @hypothesis.settings(
        max_examples=examples,
        derandomize=examples <= 1000,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(value):
        check(value)

    run()


def pack(header: bytes | dict, body: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    found = b""
    while number >= 0x80:
        found, number = found + bytes([number & 0x7F | 0x80]), number >> 7
    return found + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def filled(head: str, part: str, tail: str, count: int) -> bytes:
    """`part` `count` times with commas between `head` and `tail`; each ``%x`` is another number."""
    return (head + ",".join(part % i if "%x" in part else part for i in range(count)) + tail).encode()


@st.composite
def spoilt(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """A valid file after one to five accidents: bits, bytes, lengths, cuts, gaps, repeats, splices."""
    data = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(0, 64))
        match draw(st.sampled_from(["bit", "byte", "length", "cut", "drop", "again", "splice", "insert"])):
            case "bit" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "length":
                lie = draw(st.sampled_from([0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1]))
                code = draw(st.sampled_from(["<Q", ">Q", "<I", "<H"]))
                data[at : at + struct.calcsize(code)] = struct.pack(
                    code, lie % 2 ** (8 * struct.calcsize(code))
                )
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + size]
            case "again":
                data[at:at] = bytes(data[at : at + size]) * draw(st.integers(1, 4))
            case "splice":
                other = draw(st.sampled_from(good))
                start = draw(st.integers(0, len(other)))
                data[at : at + size] = other[start : start + draw(st.integers(0, 64))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def any_bytes(*starts: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes at all, or any after the first bytes of a real file."""
    return st.builds(bytes.__add__, st.sampled_from([b"", *starts]), st.binary(max_size=300))


# Run by itself, once for all files: each is read in a fork, whose memory is then its own.
_MEASURE = """
import importlib, json, operator, os, resource, signal, sys, tracemalloc

from neuraverse.errors import ContentError

module, function, traced, *paths = sys.argv[1:]
read = operator.attrgetter(function)(importlib.import_module(module))


def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def attempt(data):
    try:
        read(data)
    except ContentError as error:
        return [type(error).__name__, len(str(error))]
    except BaseException as error:
        return ["!" + repr(error)[:300], 0]
    return ["accepted", 0]


for warm in (b"", b"{}", b"\\2\\0\\0\\0\\0\\0\\0\\0{}", b"\\x3a\\4\\x0a\\2\\x22\\0"):
    attempt(warm)
for path in paths:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        with open(path, "rb") as file:
            data = file.read()
        most = status("VmSize") + 1_000_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = status("VmRSS")
        outcome = attempt(data)
        grown = status("VmHWM") - before
        if traced == "traced":
            tracemalloc.start()
            attempt(data)
            grown = max(grown, tracemalloc.get_traced_memory()[1])
        os.write(writer, json.dumps([*outcome, grown]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    _, code = os.waitpid(child, 0)
    print(answer.decode() or json.dumps([f"!ended with {code}", 0, 0]), flush=True)
"""


def cost(reader: str, files: Iterable[bytes], folder: Path, traced: bool) -> list[tuple[str, int, int]]:
    """What ``module:function`` makes of each file, in a process of its own that may take 1 GB.

    Args:
        reader: The function.
        files: What it is given, one at a time.
        folder: Where to put them.
        traced: Ask Python's allocator, too, which is slow; else the resident memory alone.

    Returns:
        For each: the error's class, "accepted", or "!" and what must not be; the length of its message; and
        by how much the memory grew at most [bytes].
    """
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured through Linux's /proc")
    paths = []
    for number, data in enumerate(files):
        paths.append(folder / str(number))
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *reader.split(":"), "traced" if traced else "", *map(str, paths)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=280,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def assert_cheap(
    reader: str,
    bombs: Mapping[str, bytes],
    folder: Path,
    *,
    accepted: Iterable[str] = (),
    traced: bool = True,
) -> None:
    """Each bomb is refused in a short sentence, or accepted if it is among those, and within the memory."""
    found = dict(zip(bombs, cost(reader, bombs.values(), folder, traced), strict=True))
    for name, (outcome, length, grown) in found.items():
        assert outcome[0] != "!", f"{name}: {outcome}"
        assert length < 1000, f"{name}: a message of {length} characters"
        assert grown < ALLOWED, f"{name}: {grown / MEGABYTE:.0f} MB"
    assert {name for name, (outcome, *_) in found.items() if outcome == "accepted"} == set(accepted)


def places(value, path=()):
    """The path of every value within a JSON value."""
    yield path
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, member in members:
        yield from places(member, (*path, key))
