"""Random numbers that belong to one environment, not to the batch it runs in.

Every environment has its own counter-based stream: number `n` of the stream with seed `s` is a hash of
``(s, n)``. So row 7 of a batch of 256 sees the numbers that a batch of one with the same seed sees, resetting
some environments leaves the others' numbers alone, and the code is the same on CPU and CUDA.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), in wrapping 64-bit integer arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


class Randomness:
    """One stream of random numbers per environment.

    Args:
        num_envs: Number of streams.
        device: Where draws are made.

    Attributes:
        key: Hashed seed of each stream, int64, ``(num_envs,)``.
        counter: Numbers drawn so far, int64, ``(num_envs,)``.
    """

    def __init__(self, num_envs: int, device: torch.device | str = "cpu") -> None:
        self.key = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.counter = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.seed(0)

    def seed(self, first: int) -> None:
        """Start all streams anew: environment ``i`` gets the seed ``first + i``."""
        seeds = torch.arange(first, first + len(self.key), dtype=torch.int64, device=self.key.device)
        self.key.copy_(_mix(seeds * _GAMMA))
        self.counter.zero_()

    def uniform(self, count: int, ids: Tensor | None = None) -> Tensor:
        """Draws from [0, 1), float64, ``(len(ids), count)``; all environments without `ids`."""
        key = self.key if ids is None else self.key[ids]
        counter = self.counter if ids is None else self.counter[ids]
        steps = torch.arange(1, count + 1, dtype=torch.int64, device=key.device)
        bits = _mix(key[:, None] + (counter[:, None] + steps) * _GAMMA)
        if ids is None:
            self.counter += count
        else:
            self.counter[ids] = counter + count
        return _shift_right(bits, 11).to(torch.float64) * 2.0**-53

    def between(self, low: float, high: float, count: int, ids: Tensor | None = None) -> Tensor:
        """Uniform draws from [low, high), ``(len(ids), count)``."""
        return low + (high - low) * self.uniform(count, ids)

    def normal(self, count: int, ids: Tensor | None = None) -> Tensor:
        """Standard normal draws by Box and Muller's transform, ``(len(ids), count)``."""
        half = (count + 1) // 2
        u = self.uniform(2 * half, ids)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :half]))
        angle = (2.0 * math.pi) * u[:, half:]
        return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)[:, :count]
