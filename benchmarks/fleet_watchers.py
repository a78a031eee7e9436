"""Watchers that cost next to nothing: ``python -m benchmarks.fleet_watchers HOST PORT FILE``.

FILE holds a token in each line. Each watches the event stream over a connection of its own. When all have
their place in it, ``ready`` is printed. The end of stdin ends the process, which prints the cursor of each
event that came, and when each watcher had it [s, of the system's monotonic clock].
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from pathlib import Path

_ID = re.compile(rb"\nid: ([0-9a-f]{8}-[0-9]+)\nevent: ")


def main(host: str, port: int, tokens: list[str]) -> None:
    """Watch until stdin ends."""
    poll = selectors.EpollSelector()
    begun = 0
    told: dict[str, list[float]] = {}
    rest: dict[int, bytes] = {}
    for token in tokens:
        connection = socket.create_connection((host, port))
        head = f"GET /v1/events/stream HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
        connection.sendall(head.encode())
        connection.setblocking(False)
        poll.register(connection, selectors.EVENT_READ, connection)
        rest[connection.fileno()] = b""
        if len(rest) % 50 == 0:  # as they come back after an outage, not all in one instant
            begun += _read(poll, told, rest, 0.0)
    while begun < len(tokens):
        begun += _read(poll, told, rest, 1.0)
    print("ready", flush=True)
    poll.register(sys.stdin, selectors.EVENT_READ, None)
    while _read(poll, told, rest, None) >= 0:
        pass
    print(json.dumps(told), flush=True)


def _read(
    poll: selectors.EpollSelector, told: dict[str, list[float]], rest: dict[int, bytes], wait_s: float | None
) -> int:
    """Read what is there; how many watchers got their first block, or -1 if stdin has ended."""
    first = 0
    for key, _ in poll.select(wait_s):
        if key.data is None:
            if not sys.stdin.buffer.read1():
                return -1
            continue
        data = key.data.recv(65536)
        if not data:
            raise SystemExit("the server closed a stream")
        at = time.monotonic()
        whole = rest[key.fd] + data
        if b"retry: 1000" in data:
            if not whole.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"the server answered {whole[:100]!r}")
            first += 1
        for match in _ID.finditer(whole):
            told.setdefault(match[1].decode(), []).append(at)
        end = whole.rfind(b"\n\n")
        rest[key.fd] = whole[max(end, 0) :][-4096:]
    return first


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).read_text().split())
