from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuraverse.client.sse import Message, parse
from neuraverse.errors import NetworkError

STREAM = (
    b'retry: 1000\nid: 4\n\n: heartbeat\n\nid: 5\nevent: published\ndata: {"a":\ndata: 1}\n\n'
    b"data:no space\r\n\r\nevent: lost\n\nid: 6\ndata: \xc3\xa9\n\ndata: unfinished\n"
)
MESSAGES = [
    Message(id="4", type="message", data=""),
    Message(id="5", type="published", data='{"a":\n1}'),
    Message(id="5", type="message", data="no space"),
    Message(id="6", type="message", data="é"),
]


def test_blocks():
    assert list(parse([STREAM])) == MESSAGES


@given(st.lists(st.integers(0, len(STREAM))))
def test_chunks_do_not_matter(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert list(parse(STREAM[a:b] for a, b in itertools.pairwise(edges))) == MESSAGES


@pytest.mark.parametrize(
    "endless", [b"x" * 100_000, b"data: " + b"x" * 1000 + b"\n", b": " + b"x" * 1000 + b"\n"]
)
def test_an_endless_event_is_cut_off(endless):
    taken = 0

    def chunks():
        nonlocal taken
        for _ in range(100_000):
            taken += len(endless)
            yield endless

    with pytest.raises(NetworkError, match="more than 1048576 bytes"):
        list(parse(chunks()))
    assert taken < 2_500_000
