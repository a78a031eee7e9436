"""Reading model.safetensors without trust: every byte is accounted for before a number is used.

The format is eight bytes of header length, a JSON header that names each tensor with its type, shape and
place, and the numbers. A header may lie, so this reader bounds it before reading it, and refuses overlaps,
gaps, keys given twice, sizes that do not multiply out, unknown types, NaN and infinity.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from neuraverse.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

MAX_HEADER_BYTES = 1 << 20
"""Some ten thousand tensors."""
MAX_HEADER_PARTS = 1 << 16
"""Objects and lists in a header, three to a tensor; parsed, it takes less than 50 MB of memory."""
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_TYPES = _FLOATS | _INTEGERS
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80}  # all ones in NaN and infinity
_CHUNK = 1 << 20


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Checker:
    """Checks a safetensors file that comes in pieces, down to its last number, without holding it.

    Args:
        size: Length of the file [bytes].
        label: How messages call it.
    """

    def __init__(self, size: int, label: str = "model.safetensors") -> None:
        self._size, self._label = size, label
        self._head = bytearray()
        self._entries: list[_Entry] | None = None  # in the order of their bytes, once the header is here
        self._base = 0  # where those bytes begin
        self._next = 0  # of the entries
        self._at = 0  # behind `_base`
        self._split = b""  # of a number that lies in two pieces, what has come

    def feed(self, data: memoryview) -> None:
        """Check the next piece, of bytes.

        Raises:
            WeightsError: Malformed, of an unknown type, or not finite; the message names the tensor.
        """
        start = 0
        while self._entries is None and start < len(data):
            missing = min(self._base or 9, self._size) - len(self._head)
            self._head += data[start : start + missing]
            start += missing
            self._open()
        if self._entries is not None:
            with data[start:] as numbers:
                self._check(numbers)

    def finish(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name, when all pieces have come.

        Raises:
            WeightsError: As `feed`.
        """
        self._open()
        if self._entries is None or self._base + self._at != self._size:
            raise WeightsError(f"{self._label} ends before its tensors do")
        return {entry.name: entry.shape for entry in self._entries}

    def arrays(self, data: memoryview) -> dict[str, NDArray[Any]]:
        """The tensors of a file that has passed, copied out of its bytes."""
        assert self._entries is not None, "it has not been fed"
        return {entry.name: _array(data, self._base, entry) for entry in self._entries}

    def _open(self) -> None:
        """Read what has come of the header."""
        if len(self._head) < min(9, self._size) or self._entries is not None:
            return
        self._base = self._base or _base(self._head, self._size, self._label)
        if len(self._head) >= self._base:
            self._entries = _entries(bytes(self._head[8 : self._base]), self._size - self._base, self._label)

    def _check(self, data: memoryview) -> None:
        assert self._entries is not None
        at = 0
        while at < len(data) and self._next < len(self._entries):
            entry = self._entries[self._next]
            count = min(len(data) - at, entry.end - self._at)
            size = _SIZES[entry.dtype]
            ahead = min(-len(self._split) % size, count)
            self._split += data[at : at + ahead]
            whole = (count - ahead) // size * size
            good = _sound(data, at + ahead, whole, entry.dtype)
            if len(self._split) == size:
                good = good and _sound(self._split, 0, size, entry.dtype)
                self._split = b""
            self._split += data[at + ahead + whole : at + count]
            if not good:
                what = "bytes that are no truth values" if entry.dtype == "BOOL" else "NaN or infinity"
                raise WeightsError(f"{self._label}: tensor {entry.name[:100]!r} holds {what}")
            at += count
            self._at += count
            if self._at == entry.end:
                self._next += 1


def check_tensors(data: Buffer, label: str = "model.safetensors") -> dict[str, tuple[int, ...]]:
    """Check a safetensors file down to its last number.

    Args:
        data: The file's bytes, or a view or map of them; they are not copied.
        label: How messages call it.

    Returns:
        The shape of each tensor by name.

    Raises:
        WeightsError: Malformed, of an unknown type, or not finite; the message names the tensor.
    """
    # The view is given back before a caller who catches the error closes its map.
    with memoryview(data).cast("B") as view:
        checker = Checker(len(view), label)
        checker.feed(view)
        return checker.finish()


def read_tensors(data: Buffer, label: str = "model.safetensors") -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, checked and copied; bfloat16 is widened to float32.

    Raises:
        WeightsError: As `check_tensors`.
    """
    with memoryview(data).cast("B") as view:
        checker = Checker(len(view), label)
        checker.feed(view)
        checker.finish()
        return checker.arrays(view)


def _base(head: bytes | bytearray, size: int, label: str) -> int:
    """Where the numbers begin, from the first nine bytes of a file."""
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[8:9] != b"{"
    if pickled or head[:4] == b"PK\x03\x04":
        raise WeightsError(
            f"{label} is a pickle or torch.save file, which can run code when it is loaded",
            remedy="export the weights with safetensors",
        )
    if size < 8:
        raise WeightsError(f"{label} has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{label}: the header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed"
        )
    if 8 + length > size:
        raise WeightsError(f"{label}: the header claims {length} bytes and the file has {size}")
    return 8 + length


def _entries(data: bytes, size: int, label: str) -> list[_Entry]:
    """The tensors of a header, in the order of their bytes, of which there are `size`."""
    header = _header(data, label)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise WeightsError(f"{label}: __metadata__ must map text to text")
    entries = sorted(
        (_entry(name, value, label) for name, value in header.items()), key=lambda e: (e.start, e.end)
    )
    if not entries:
        raise WeightsError(f"{label} holds no tensor")
    at = 0
    for entry in entries:
        if entry.start != at:
            what = "overlaps the one before it" if entry.start < at else "leaves a gap before it"
            raise WeightsError(f"{label}: tensor {entry.name[:100]!r} {what}")
        at = entry.end
    if at != size:
        raise WeightsError(f"{label}: the tensors end at byte {at} behind the header, and the file at {size}")
    return entries


def _header(data: bytes, label: str) -> dict[str, Any]:
    parts = data.count(b"[") + data.count(b"{")
    if parts > MAX_HEADER_PARTS:
        raise WeightsError(
            f"{label}: the header has {parts} brackets; at most {MAX_HEADER_PARTS} are allowed"
        )
    try:
        header = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_natural, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{label}: the header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{label}: the header is not a JSON object")
    return header


def _entry(name: str, value: object, label: str) -> _Entry:
    where = f"{label}: tensor {name[:100]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise WeightsError(f"{where}: type {str(dtype)[:20]!r} is none of {', '.join(_TYPES)}")
    if not _naturals(shape) or len(shape) > 8:
        raise WeightsError(f"{where}: the shape must be at most eight natural numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise WeightsError(f"{where}: data_offsets must be two natural numbers")
    if math.prod(shape) * _SIZES[dtype] != offsets[1] - offsets[0]:
        raise WeightsError(
            f"{where}: {dtype} of shape {shape} does not fill bytes {offsets[0]} to {offsets[1]}"
        )
    if math.prod(n or 1 for n in shape) >= 2**48:  # no number in it, and yet no array can have it
        raise WeightsError(f"{where}: the shape {shape} is too large")
    return _Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n < 2**48 for n in value)


def _array(data: memoryview, base: int, entry: _Entry) -> NDArray[Any]:
    import numpy as np

    count = (entry.end - entry.start) // _SIZES[entry.dtype]
    flat: NDArray[Any] = np.frombuffer(data, _TYPES[entry.dtype], count, base + entry.start)
    if entry.dtype == "BF16":
        flat = (flat.astype("<u4") << 16).view("<f4")
    return flat.reshape(entry.shape).copy()


def _sound(data: memoryview | bytes, start: int, length: int, dtype: str) -> bool:
    """Whether floats are finite and truth values 0 or 1; piece by piece, as integers where that is faster."""
    import numpy as np

    if dtype not in _FLOATS and dtype != "BOOL":
        return True
    size, mask = _SIZES[dtype], _EXPONENTS.get(dtype, 0)
    kind = "<u2" if mask else "u1" if dtype == "BOOL" else _TYPES[dtype]
    for at in range(start, start + length, _CHUNK):
        count = min(start + length - at, _CHUNK) // size
        part: NDArray[Any] = np.frombuffer(data, kind, count, at)
        if mask:
            sound = (part & mask).max() != mask
        elif dtype == "BOOL":
            sound = part.max() <= 1
        else:
            sound = np.isfinite(part).all()
        if not sound:
            return False
    return True


def _natural(text: str) -> int:
    if len(text) > 15 or not text.isdigit():
        raise ValueError(f"{text[:20]} is not a natural number below 10^15")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    for name, value in pairs:
        for text in (name, value) if isinstance(value, str) else (name,):
            if not text.isascii():
                text.encode()  # half a surrogate pair is no text: a ValueError
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
