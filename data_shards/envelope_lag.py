"""How late a shifted recording is against the original, where phases tell nothing: by the envelopes of its bands.

A pitch shifter keeps no phases, so that a correlation of samples peaks anywhere (`data_shards.align`, made for devices,
rightly finds such pairs unrelated). When each band is loud and when it is quiet does survive.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

CAP_SECONDS = 0.03
"""No shifter seen is later than 20 ms; a larger lag is the next beat."""
LEAST_CORRELATION = 0.4
"""Of 36 recordings through two shifters at 5 and 12 semitones the least alike pair that sounds right has 0.46."""
WINDOW_SECONDS, HOP_SECONDS = 0.0116, 0.00145
BAND_HZ = (150.0, 8000.0)
NUM_BANDS = 16


@dataclass(frozen=True)
class EnvelopeLag:
    """`lag_samples` by which the second is late; the correlation there, and why it cannot be believed, or None."""

    lag_samples: int
    correlation: float
    problem: str | None


def envelope_lag(original: np.ndarray, shifted: np.ndarray, rate_hz: int) -> EnvelopeLag:
    """Lag of `shifted` against `original`, float [frames] each, equally long, of at most CAP_SECONDS either way."""
    assert original.shape == shifted.shape and original.ndim == 1, f"{original.shape} and {shifted.shape}"
    hop = max(round(HOP_SECONDS * rate_hz), 1)
    reach = round(CAP_SECONDS * rate_hz / hop)
    ours, theirs = _envelopes(original, rate_hz, hop), _envelopes(shifted, rate_hz, hop)
    frames = ours.shape[1] - 2 * reach
    if frames < 2:
        return EnvelopeLag(0, 0.0, f"{len(original) / rate_hz:.2f} s are too short to measure a lag")
    fixed = _centred(ours[:, reach : reach + frames])
    curve = np.array(
        [_correlation(fixed, _centred(theirs[:, at : at + frames])) for at in range(2 * reach + 1)]
    )
    peak = int(np.argmax(curve))
    correlation = round(max(float(curve[peak]), 0.0), 4)
    if correlation < LEAST_CORRELATION:
        return EnvelopeLag(
            0,
            correlation,
            f"its envelopes fit at no lag (correlation {correlation:.2f}, needed {LEAST_CORRELATION})",
        )
    if peak in (0, 2 * reach):
        return EnvelopeLag(
            0,
            correlation,
            f"it fits best at the largest lag looked for, {1000 * CAP_SECONDS:g} ms, or beyond",
        )
    before, here, after = curve[peak - 1 : peak + 2]
    bend = before - 2 * here + after
    between = 0.5 * (before - after) / bend if bend else 0.0
    return EnvelopeLag(round((peak - reach + between) * hop), correlation, None)


def _envelopes(wave: np.ndarray, rate_hz: int, hop: int) -> np.ndarray:
    """Square root of the level of each band over time, [bands, hops]: loud moments count, without ruling alone."""
    window = max(round(WINDOW_SECONDS * rate_hz), 16)
    if len(wave) < window:
        return np.zeros((NUM_BANDS, 0))
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float32), window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32), axis=1)) ** 2
    bins_hz = np.fft.rfftfreq(window, 1 / rate_hz)
    edges = np.geomspace(BAND_HZ[0], min(BAND_HZ[1], 0.45 * rate_hz), NUM_BANDS + 1)
    bands = [
        power[:, (bins_hz >= low) & (bins_hz < high)].sum(axis=1) for low, high in itertools.pairwise(edges)
    ]
    return np.stack(bands) ** 0.25


def _centred(envelopes: np.ndarray) -> np.ndarray:
    return envelopes - envelopes.mean(axis=1, keepdims=True)


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    norm = np.sqrt((ours**2).sum() * (theirs**2).sum())
    return float((ours * theirs).sum() / norm) if norm > 0 else 0.0
