"""Server-Sent Events from bytes, after https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from neuraverse.errors import NetworkError

MAX_EVENT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Message:
    """One dispatched block.

    Attributes:
        id: Last id that was sent, in this block or an earlier one.
        type: ``message`` if the block did not say.
        data: Lines of data; empty if the block only moved the id.
    """

    id: str
    type: str
    data: str


def parse(chunks: Iterable[bytes]) -> Iterator[Message]:
    """Blocks of a stream, however it is cut into chunks.

    Blocks without data are given too, if they carry an id. An unfinished block at the end is dropped.

    Raises:
        NetworkError: A block has more than `MAX_EVENT_BYTES`.
    """
    last_id = kind = ""
    data: list[str] = []
    fresh = False
    size = 0
    for line in _lines(chunks):
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise NetworkError(f"the registry sent an event of more than {MAX_EVENT_BYTES} bytes")
        if not line:
            if data or fresh:
                yield Message(id=last_id, type=kind or "message", data="\n".join(data))
            kind, data, fresh, size = "", [], False, 0
            continue
        field, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "id" and "\0" not in value:
            last_id, fresh = value, True
        elif field == "event":
            kind = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        *whole, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        for line in whole:
            yield line.removesuffix(b"\r")
        if len(buffer) > MAX_EVENT_BYTES:
            raise NetworkError(f"the registry sent an event of more than {MAX_EVENT_BYTES} bytes")
