"""A skill as one stream of bytes: a ustar archive, so that ``curl … | tar x`` gives its folder.

We write one kind of it alone: plain files with names of ours, mode 0644, no times, no owners. Only that is
read, too, and by a reader that knows nothing else: a tar from elsewhere may hold paths, links, devices,
sparse files and headers without end. The format is POSIX.1-1988 ustar.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from neuraverse.errors import IntegrityError

BLOCK = 512
END = bytes(2 * BLOCK)
SMALL_BYTES = 8 << 20  # up to so long a skill comes in one piece
MAX_MEMBER_BYTES = 8**11 - 1  # what the field of the size can hold
_CHECKSUM = slice(148, 156)


def etag(digest: str) -> str:
    """What the archive of the skill with a digest is known by in HTTP."""
    return f'"{digest.removeprefix("sha256:")}-tar"'


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a file.

    Args:
        name: ASCII, at most 100 characters, no slash.
        size: Length of the file [bytes].
    """
    if not (name.isascii() and 0 < len(name) <= 100 and "/" not in name and size <= MAX_MEMBER_BYTES):
        raise ValueError(f"{name!r} of {size} bytes cannot be a member")
    block = bytearray(BLOCK)
    block[0 : len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[_CHECKSUM] = b" " * 8
    block[156] = ord("0")
    block[257:265] = b"ustar\x0000"
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def padding(size: int) -> bytes:
    """The zeros after a file."""
    return bytes(-size % BLOCK)


def total(sizes: Iterable[int]) -> int:
    """Length of an archive of files of these lengths [bytes]."""
    return sum(BLOCK + size + -size % BLOCK for size in sizes) + len(END)


def pack(parts: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """An archive of files in memory, piece by piece."""
    for name, data in parts:
        yield header(name, len(data))
        yield data
        yield padding(len(data))
    yield END


class Reader:
    """Takes an archive apart as it comes.

    Args:
        chunks: The bytes, in pieces of any size.
        names: The names that are allowed, in the order in which they must come; the first `required` must.
        required: How many.
        limit: Bytes of one file at most.
    """

    def __init__(
        self, chunks: Iterable[bytes], names: Sequence[str], *, required: int | None = None, limit: int
    ) -> None:
        self._chunks = iter(chunks)
        self._names = tuple(names)
        self._required = len(names) if required is None else required
        self._limit = limit
        self._buffer = memoryview(b"")
        self._left = 0  # bytes of the current file, and of its padding
        self._pad = 0

    def members(self) -> Iterator[tuple[str, int]]:
        """Name and size of each file; read it with `data` or `stream` before going on, or it is skipped.

        Raises:
            IntegrityError: This is no archive of ours, or it ends early.
        """
        at = 0
        while True:
            for _ in self.stream():
                pass
            if self._exactly(self._pad).strip(b"\0"):
                raise _malformed("bytes between files are not zero")
            self._pad = 0
            block = self._exactly(BLOCK)
            if block == bytes(BLOCK):
                self._end(at)
                return
            name, size = self._header(block)
            if name not in self._names[at:]:
                raise _malformed(f"{name!r} is not a file that belongs here")
            position = self._names.index(name)
            if position > at and at < self._required:
                raise _malformed(f"{self._names[at]} is missing")
            at = position + 1
            self._left, self._pad = size, -size % BLOCK
            yield name, size

    def stream(self) -> Iterator[memoryview]:
        """The bytes of the current file."""
        while self._left:
            data = self._next(self._left)
            self._left -= len(data)
            yield data

    def data(self) -> bytes:
        """The whole of the current file."""
        return b"".join(self.stream())

    def _header(self, block: bytes) -> tuple[str, int]:
        """A header that we could have written: it is written again and compared."""
        raw, digits = block[:100].rstrip(b"\0"), block[124:135]
        try:
            name, size = raw.decode("ascii"), int(digits, 8)
            same = digits.isdigit() and name in self._names and header(name, size) == block
        except ValueError:
            raise _malformed("a header is malformed") from None
        if not same:
            raise _malformed(f"the header of {name[:100]!r} is malformed")
        if size > self._limit:
            raise _malformed(f"{name} has {size} bytes; at most {self._limit} are allowed")
        return name, size

    def _end(self, at: int) -> None:
        if self._exactly(BLOCK) != bytes(BLOCK):
            raise _malformed("it does not end with two blocks of zeros")
        if at < self._required:
            raise _malformed(f"{self._names[at]} is missing")
        if self._buffer or any(self._chunks):
            raise _malformed("there are bytes behind its end")

    def _next(self, most: int) -> memoryview:
        """Some bytes, at least one; they are copied when they are put together."""
        while not self._buffer:
            try:
                self._buffer = memoryview(next(self._chunks))
            except StopIteration:
                raise _malformed("it ends early") from None
        data, self._buffer = self._buffer[:most], self._buffer[most:]
        return data

    def _exactly(self, size: int) -> bytes:
        parts: list[memoryview] = []
        while size:
            parts.append(self._next(size))
            size -= len(parts[-1])
        return b"".join(parts)


def unpack(
    chunks: Sequence[bytes], names: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, bytes]:
    """The files of an archive in memory.

    Args:
        chunks: All of it, in pieces.
        names: The files that must be there, in this order.
        optional: Those that may follow, in this order.

    Raises:
        IntegrityError: It is no archive of ours, or holds other files.
    """
    size = sum(map(len, chunks))
    reader = Reader(chunks, (*names, *optional), required=len(names), limit=size)
    return {name: reader.data() for name, _ in reader.members()}


def _malformed(why: str) -> IntegrityError:
    return IntegrityError(f"the archive is malformed: {why}", remedy="do not use it")
