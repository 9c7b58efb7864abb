"""Which sample a draw takes, and its random numbers: pure functions of (seed, draw).

A run's examples are numbered from 0 (`draw`). The sample order of epoch `draw // size` is a keyed Feistel
permutation of the sample numbers, computed for one position at a time: no list is shuffled and nothing is
stored, so any worker, rank or resumed run finds the sample of draw d at once. Everything else random about
a draw comes from a counter-based generator keyed by (seed, stream) whose counter holds the draw.

The numbers are a contract: a change of a constant, of the round function or of the number of rounds breaks
the resume of every run. `tests/data_shards/test_draw_schedule.py` freezes some of them.

Sources: Luby and Rackoff, "How to construct pseudorandom permutations" (1988); Black and Rogaway, "Ciphers
with arbitrary finite domains" (2002), for cycle walking; Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3" (2011), for Philox. This is a shuffle, not cryptography.
"""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import blake2b

import numpy as np

_ROUNDS = 6
# Two bits a half, so that even two samples are permuted inside a domain of 16, where six rounds mix well.
_FEWEST_HALF_BITS = 2
_MASK_64 = (1 << 64) - 1
# The multiplier and shifts of MurmurHash3's 64-bit finaliser (public domain).
_MULTIPLIER = 0xFF51AFD7ED558CCD


def digest_words(*parts: int | str, words: int) -> tuple[int, ...]:
    """`words` unsigned 64-bit integers (8 at most) from blake2b of the parts; the same on every machine and
    Python.

    A part may not hold the unit separator (0x1f), which keeps ("a", "bc") and ("ab", "c") apart.
    """
    text = "\x1f".join(str(part) for part in parts)
    digest = blake2b(text.encode(), digest_size=8 * words).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(words))


@lru_cache(maxsize=256)
def permutation_key(seed: int, stream: str, epoch: int) -> tuple[int, ...]:
    """Round keys of the permutation of one epoch of one stream."""
    return digest_words("permutation", seed, stream, epoch, words=_ROUNDS)


def permute(position: int, size: int, key: tuple[int, ...]) -> int:
    """Where `position` of 0..size-1 goes: a bijection of 0..size-1 chosen by `key`.

    A balanced Feistel network permutes 0..4**h-1, the smallest such range that holds `size`; a value that
    falls outside is sent through again (cycle walking), which keeps the bijection. The range is below
    4*size (16 at least), so it takes four passes on average at most, except for fewer than four samples.
    """
    assert 0 <= position < size, f"position {position} is not in 0..{size - 1}"
    half_bits = max(_FEWEST_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    value = position
    while True:
        left, right = value >> half_bits, value & half_mask
        for round_key in key:
            mixed = (right ^ round_key) * _MULTIPLIER & _MASK_64
            mixed = (mixed ^ (mixed >> 33)) * _MULTIPLIER & _MASK_64
            left, right = right, left ^ (mixed >> (64 - half_bits))
        value = left << half_bits | right
        if value < size:
            return value


def sample_of_draw(seed: int, draw: int, size: int, stream: str = "fg") -> int:
    """Sample number, 0..size-1, of a draw: every epoch of `size` draws takes each once, in its own order."""
    assert draw >= 0 and size > 0, f"draw {draw}, size {size}"
    epoch, position = divmod(draw, size)
    return permute(position, size, permutation_key(seed, stream, epoch))


@lru_cache(maxsize=64)
def _philox_key(seed: int, stream: str) -> np.ndarray:
    return np.array(digest_words("generator", seed, stream, words=2), dtype=np.uint64)


def generator(seed: int, draw: int, stream: str) -> np.random.Generator:
    """The random numbers of one draw in one named stream (Philox 4x64; the draw is word 2 of the counter).

    Each (seed, stream) is a key and each draw owns 2**128 blocks of it, so streams do not overlap. Use only
    `random()` of it: numpy keeps raw bits stable between versions (NEP 19) and `random()` is the top 53 of
    64 of them, while `integers`, `normal` and the like may change.
    """
    assert draw >= 0, f"draw {draw}"
    return np.random.Generator(np.random.Philox(key=_philox_key(seed, stream), counter=[0, 0, draw, 0]))


def below(uniform: float, size: int) -> int:
    """An integer of 0..size-1 from a uniform number of [0, 1)."""
    return min(int(uniform * size), size - 1)


def between(uniform: float, bounds: tuple[float, float]) -> float:
    """A number uniform between the bounds."""
    return bounds[0] + uniform * (bounds[1] - bounds[0])


def log_between(uniform: float, bounds: tuple[float, float], highest: float = math.inf) -> float:
    """A number whose logarithm is uniform between the bounds, both kept below `highest`."""
    low, high = min(bounds[0], highest / 2), min(bounds[1], highest)
    return low * (high / low) ** uniform
