"""More variety from few recordings: crops at another speed, and two backgrounds on top of each other.

Both change what is drawn, not how it is damaged: mixture and target hear the same foreground.
"""

from __future__ import annotations

import numpy as np

LAYER_RANGE_DB = 10.0
"""The second background is at most this much louder or quieter than the first."""
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


def _to_int16(wave: np.ndarray) -> np.ndarray:
    return np.rint(wave).clip(-_FULL_SCALE - 1, _FULL_SCALE).astype(np.int16)
