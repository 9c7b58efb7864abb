"""Random numbers that are a function of where they are used: of a seed and the number of an example or of a frame."""

from __future__ import annotations

from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_FRAMES = 128


def generator_of(*parts: int | str) -> torch.Generator:
    """A generator on the CPU whose numbers are those of `parts`, and of no other."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def frame_noise(seed: int, first: int, count: int, size: int) -> Float[Tensor, "frame size"]:
    """Gaussian noise of the frames `first` to `first + count` of a recording: of each the same, wherever one begins."""
    blocks = range(first // BLOCK_FRAMES, -(-(first + count) // BLOCK_FRAMES))
    noise = [
        torch.randn(BLOCK_FRAMES, size, generator=generator_of("frames", seed, block)) for block in blocks
    ]
    skipped = first - blocks.start * BLOCK_FRAMES
    return torch.cat(noise)[skipped : skipped + count]


def beta_of(generator: torch.Generator, shape: float) -> float:
    """A number of the distribution Beta(shape, shape), shape at most 1, by M. D. Jöhnk's method (1964)."""
    while True:
        first, second = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / shape)).tolist()
        if 0 < first + second <= 1:
            return first / (first + second)
