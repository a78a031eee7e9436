"""Denormal numbers: flushed to zero while networks run, since they slow every product down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def flushed() -> bool:
    """Whether this thread flushes denormal numbers to zero."""
    return float(torch.full((), 1e-310, dtype=torch.float64) * 1.0) == 0.0


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush them within the block; elsewhere in the process they keep their meaning.

    The mode belongs to a thread, and threads started within the block begin with it.
    """
    before = flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
