"""Melodies to shift."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile as sf

from data_shards.synthetic_notes import play, random_instrument

RATE_HZ = 16_000


@lru_cache(maxsize=16)
def melody(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A plucked melody that is never long silent, float32 [frames], peak 0.5; not to be written to."""
    rng = np.random.default_rng(seed)
    wave = sum(play(random_instrument("plucked", rng), seconds, rate_hz, rng) for _ in range(2))
    wave = (0.5 * wave / np.abs(wave).max()).astype(np.float32)
    wave.setflags(write=False)
    return wave


def write_melodies(
    folder: Path, levels: tuple[float, ...], seconds: float = 3.0, rate_hz: int = RATE_HZ
) -> None:
    """melody-N.wav of these peaks, 16 bit."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        wave = melody(seconds, number, rate_hz) * level / 0.5
        sf.write(folder / f"melody-{number}.wav", np.rint(wave * 32767).astype(np.int16), rate_hz)
