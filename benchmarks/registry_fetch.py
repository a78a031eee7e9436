"""A client that costs next to nothing: ``python -m benchmarks.registry_fetch HOST PORT PATH CONNECTIONS``.

It fetches PATH once over each of its connections and prints how many bytes came and the seconds it took.
With ``MSG_TRUNC`` Linux drops what is received instead of copying it, so that the server is what is measured;
elsewhere it is copied.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

_PIECE_BYTES = 1 << 20
_DROP = socket.MSG_TRUNC if sys.platform == "linux" else 0


def fetch(host: str, port: int, path: str, connections: int) -> tuple[int, float]:
    """The bytes that came, heads of the answers included, and the seconds from the first connection on."""
    got = [0] * connections
    heads = [b""] * connections

    def one(i: int) -> None:
        buffer = bytearray(_PIECE_BYTES)
        with socket.create_connection((host, port), timeout=120) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            got[i] = connection.recv_into(buffer)
            heads[i] = bytes(buffer[:300])
            while size := connection.recv_into(buffer, _PIECE_BYTES, _DROP):
                got[i] += size

    threads = [threading.Thread(target=one, args=(i,)) for i in range(connections)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    for head in heads:
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"the server answered {head[:100]!r}")
    return sum(got), seconds


if __name__ == "__main__":
    given_host, given_port, given_path, given_connections = sys.argv[1:]
    print(json.dumps(fetch(given_host, int(given_port), given_path, int(given_connections))))
