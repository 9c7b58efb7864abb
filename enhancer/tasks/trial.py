"""Batches of noise in the shape of a data stream's, for finding out what a step takes without any data."""

from __future__ import annotations

import torch
from torch import Tensor

from enhancer.signal.damage import UNDAMAGED
from enhancer.signal.mixing import UNDISTORTED

LEVEL = 0.1


def noise(rows: int, samples: int) -> Tensor:
    """White noise at -20 dBFS, [rows, samples], always the same."""
    return LEVEL * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


def pcm(rows: int, samples: int) -> Tensor:
    """The same as 16-bit samples."""
    return (noise(rows, samples) * 32768).clamp(-32768, 32767).to(torch.int16)


def trial_mix(rows: int, samples: int) -> dict[str, Tensor]:
    """A batch of the mix stream, a damaged one too: foreground and background, and nothing that happens to them.

    What is mixed and damaged is not differentiated, so it leaves nothing behind.
    """
    neutral = {**UNDISTORTED, **UNDAMAGED, "rir": -1, "room_gain_db": 0.0, "snr_db": 0.0, "level_db": -20.0}
    columns = {
        name: torch.full((rows,), value, dtype=torch.int64 if isinstance(value, int) else torch.float32)
        for name, value in neutral.items()
    }
    flags = {name: torch.zeros(rows, dtype=torch.bool) for name in ("is_pair", "has_bg")}
    return {
        "draw": torch.arange(rows),
        "fg": pcm(rows, samples),
        "bg": pcm(rows, samples),
        **columns,
        **flags,
    }
