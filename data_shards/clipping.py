"""Samples that lie flat at full scale."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

# A wave that touches full scale is not yet cut; two samples that lie there side by side are.
FLAT_SAMPLES = 2
FLOAT_FULL_SCALE = (0.9999, 1.0001)


def is_clipped(wave: np.ndarray, bits: int | None) -> np.ndarray:
    """Which samples of `wave` ([frames]) lie at full scale beside another one that does, bool [frames].

    `bits`: of a PCM file, whose highest value is 1 - 2**(1 - bits); None for a float file, where full scale is 1.0
    and what lies beyond it was not clipped.
    """
    level = np.abs(wave)
    if bits is None:
        full = (level >= FLOAT_FULL_SCALE[0]) & (level <= FLOAT_FULL_SCALE[1])
    else:
        full = level >= 1 - 1.5 * 2.0 ** (1 - min(bits, 16))
    beside = np.convolve(full, np.ones(FLAT_SAMPLES), "full")
    starts = np.flatnonzero(beside >= FLAT_SAMPLES)
    flat = np.zeros(len(wave), bool)
    for shift in range(FLAT_SAMPLES):
        flat[starts - shift] = True
    return flat


def clipped_share(wave: np.ndarray, bits: int | None) -> float:
    """Share of the samples of `wave` that `is_clipped` names, 0..1."""
    return round(float(np.count_nonzero(is_clipped(wave, bits))) / max(len(wave), 1), 6)


def pcm_bits(path: Path) -> int | None:
    """Bits of a PCM file; None for float and for lossy formats."""
    import soundfile

    subtype = soundfile.info(os.fspath(path)).subtype
    depth = re.fullmatch(r"PCM_[SU]?(\d+)", subtype)
    return int(depth[1]) if depth else None
