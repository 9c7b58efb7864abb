"""More variety from few recordings: crops at another speed or through an equaliser, and two backgrounds at once.

Both change what is drawn, not how it is damaged: mixture and target hear the same foreground.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LAYER_RANGE_DB = 10.0
"""The second background is at most this much louder or quieter than the first."""
NUM_ANCHORS = 6
"""Frequencies at which an equaliser's gain is drawn, ANCHOR_RANGE_HZ apart in equal steps of pitch."""
ANCHOR_RANGE_HZ = (60.0, 16_000.0)
_FULL_SCALE = 32767


def at_speed(wave: np.ndarray, frames: int) -> np.ndarray:
    """`wave` (int16, [T]) played in `frames` samples, so that pitch and tempo change alike: int16 [frames].

    soxr at low quality: its aliases lie 100 dB below, its pass band ends at 0.8 of the Nyquist frequency.
    """
    if len(wave) == frames:
        return wave
    import soxr  # only those who ask for other speeds need it

    played = soxr.resample(wave.astype(np.float32), len(wave), frames, quality="LQ")
    fitted = np.zeros(frames, np.float32)
    fitted[: len(played)] = played[:frames]
    return _to_int16(fitted)


def layered(first: np.ndarray, second: np.ndarray, place: float) -> np.ndarray:
    """The sum of two backgrounds (int16, [T]), the second at -+LAYER_RANGE_DB relative to the first by `place`.

    The sum is turned down to full scale where it would pass it; its level is set by the mix anyway. A silent
    layer leaves the other as it is.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    powers = float(one @ one), float(other @ other)
    if not all(powers):
        return first if powers[0] else second
    gain = (powers[0] / powers[1]) ** 0.5 * 10 ** (LAYER_RANGE_DB * (2 * place - 1) / 20)
    total = one + np.float32(gain) * other
    return _to_int16(total * min(1.0, _FULL_SCALE / float(np.abs(total).max())))


def equalised(wave: np.ndarray, gains_db: np.ndarray, rate_hz: int) -> np.ndarray:
    """`wave` (int16, [T]) through an equaliser without delay: int16 [T], of the same RMS where it fits.

    `gains_db` [NUM_ANCHORS] at the anchors, straight lines over the logarithm of frequency between them. The response
    is so smooth that what wraps around the ends of the crop is a few milliseconds long.
    """
    if not wave.any():
        return wave
    clean = wave.astype(np.float32)
    response = 10 ** (np.interp(_anchor_places(len(wave), rate_hz), np.arange(NUM_ANCHORS), gains_db) / 20)
    filtered = np.fft.irfft(np.fft.rfft(clean) * response.astype(np.float32), len(wave))
    gain = (float(clean @ clean) / float(filtered @ filtered)) ** 0.5
    return _to_int16(filtered * min(gain, _FULL_SCALE / float(np.abs(filtered).max())))


@lru_cache(maxsize=4)
def _anchor_places(frames: int, rate_hz: int) -> np.ndarray:
    """Where each bin lies between the anchors, float32: 0 at the first, NUM_ANCHORS - 1 at the last."""
    low, high = np.log(ANCHOR_RANGE_HZ)
    hz = np.fft.rfftfreq(frames, 1 / rate_hz).clip(min=1.0)
    return ((np.log(hz) - low) / (high - low) * (NUM_ANCHORS - 1)).astype(np.float32)


def _to_int16(wave: np.ndarray) -> np.ndarray:
    return np.rint(wave).clip(-_FULL_SCALE - 1, _FULL_SCALE).astype(np.int16)
