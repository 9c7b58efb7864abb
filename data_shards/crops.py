"""Picks crops of samples: padded or looped to the wanted length, drawn again while they are nearly silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_shards.reader import Reader
from data_shards.schedule import below

QUIET_DBFS = -60.0
QUIET_RMS = 32768 * 10 ** (QUIET_DBFS / 20)
MOST_REDRAWS = 8
# Redraws that stay in the sample that the schedule chose, before others are tried.
REDRAWS_IN_SAMPLE = 3


class Crop(NamedTuple):
    """A piece of sample `row`: int16 of shape [frames]."""

    row: int
    wave: np.ndarray


CropAt = Callable[[Reader, int, int, float], np.ndarray]


def is_quiet(wave: np.ndarray) -> bool:
    """Whether the RMS of `wave` (int16, [T]) is below -60 dBFS.

    Sums of squares of int16 stay whole numbers below 2**53, so float64 gives the same answer on every
    machine and in whatever order it adds.
    """
    exact = wave.astype(np.float64)
    return float(exact @ exact) < QUIET_RMS**2 * len(wave)


def padded_crop(reader: Reader, row: int, frames: int, place: float, member: str | None = None) -> np.ndarray:
    """`frames` samples at `place` (0..1 of where they fit); a shorter sample lies there between zeros."""
    total = reader.corpus.frames.item(row)
    if total >= frames:
        return reader.crop(row, below(place, total - frames + 1), frames, member)
    padded = np.zeros(frames, dtype=np.int16)
    start = below(place, frames - total + 1)
    padded[start : start + total] = reader.crop(row, 0, total, member)
    return padded


def looped_crop(reader: Reader, row: int, frames: int, place: float) -> np.ndarray:
    """`frames` samples at `place` (0..1); a shorter sample is repeated, starting at `place` of it."""
    total = reader.corpus.frames.item(row)
    if total >= frames:
        return reader.crop(row, below(place, total - frames + 1), frames)
    start = below(place, total)
    whole = reader.crop(row, 0, total)
    return np.resize(np.concatenate([whole[start:], whole[:start]]), frames)


def audible_crop(
    reader: Reader,
    row: int,
    others: np.ndarray,
    frames: int,
    rng: np.random.Generator,
    crop_at: CropAt,
) -> Crop:
    """A crop of sample `row` that is not quiet, or zeros when all redraws were quiet too.

    The first redraws are other places of the same sample, the later ones random samples of `others`.
    """
    for attempt in range(1 + MOST_REDRAWS):
        place = rng.random()
        if attempt > REDRAWS_IN_SAMPLE:
            row = int(others[below(rng.random(), len(others))])
        wave = crop_at(reader, row, frames, place)
        if not is_quiet(wave):
            return Crop(row, wave)
    return Crop(row, np.zeros(frames, np.int16))
