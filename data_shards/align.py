"""How late a wet recording is against its dry one, and whether it is upside down.

The generalised cross-correlation with phase transform: the cross-spectrum is divided by its magnitude, so that each
frequency of the band counts alike, and its inverse transform peaks where the phases agree. A device that distorts
or filters changes magnitudes and adds partials, but its direct path keeps the phase, so the peak stays a few samples
wide where a plain correlation of guitar notes has a peak at each period.

Source: Knapp and Carter, "The generalized correlation method for estimation of time delay" (1976). numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_LAG_SECONDS = 0.5
WINDOW_SECONDS = 1.0
MIN_WINDOWS, MAX_WINDOWS = 3, 40
MIN_WINDOW_SAMPLES = 1024
# Below it hum, above it what many devices cut off.
BAND_HZ = (80.0, 10_000.0)
# Windows this far below the loudest hold the noise of the recording chain.
QUIETEST_WINDOW_DB = -40.0
# Peak over RMS of the correlation. The largest of 48,000 values of noise is 4.6 on average.
WINDOW_PEAK, WHOLE_PEAK = 6.0, 8.0
AGREEMENT_SECONDS, AGREEMENT_SAMPLES = 0.25e-3, 8
MIN_AGREEING = 0.75
MIN_CONFIDENCE = 0.25
# The main lobe, and reflections that belong to the device, are no rivals of the peak.
LOBE_SECONDS = 2e-3
DRIFT_SAMPLES = 5
_REFINE_SAMPLES = 64
_REFINE_ROUNDS = 8


@dataclass(frozen=True)
class Alignment:
    """What the windows say.

    Args:
        lag_samples: samples by which wet is late; negative when it is early.
        polarity: 1, or -1 when wet is upside down.
        confidence: 1 - (largest rival of the peak / peak), 0..1, rivals being more than 2 ms away.
        num_windows: windows that were loud enough to look at.
        num_voting: those of them whose own correlation has one clear peak.
        num_agreeing: voting windows with this lag (within 0.25 ms) and polarity.
        drift_samples: lag of the last third of the windows minus that of the first.
        problem: why lag and polarity should not be believed, or None.
    """

    lag_samples: int
    polarity: int
    confidence: float
    num_windows: int
    num_voting: int
    num_agreeing: int
    drift_samples: int
    problem: str | None


def measure_alignment(dry: np.ndarray, wet: np.ndarray, rate_hz: int) -> Alignment:
    """Lag and polarity of `wet` against `dry`, float [frames] each, equally long.

    Lags up to half a second are looked for, in files shorter than two seconds up to a quarter of their length. The
    lag found moves by exactly n when `wet` is delayed by n: the last look is at windows that are already aligned.
    """
    assert dry.shape == wet.shape and dry.ndim == 1, f"{dry.shape} and {wet.shape}"
    max_lag = min(round(MAX_LAG_SECONDS * rate_hz), len(dry) // 4)
    window = min(round(WINDOW_SECONDS * rate_hz), (len(dry) - 2 * max_lag) // MIN_WINDOWS)
    if window < MIN_WINDOW_SAMPLES:
        return _unknown(f"{len(dry) / rate_hz:.2f} s are too short to measure a lag")
    starts = _loud_windows(dry, max_lag, window)
    if not len(starts):
        return _unknown("the dry file is silent where it could be measured")
    curves = np.array([_correlation(dry, wet, start, window, 0, max_lag, rate_hz) for start in starts])
    levels = np.sqrt(np.mean(curves**2, axis=1))
    if not levels.any():
        return _unknown("the wet file is silent where the dry one plays")
    whole = curves.sum(axis=0)
    coarse = int(np.argmax(np.abs(whole)))
    lag, polarity = _refine(dry, wet, starts, window, coarse - max_lag, rate_hz)
    peaks = np.argmax(np.abs(curves), axis=1)
    heights = curves[np.arange(len(starts)), peaks]
    lobe = round(LOBE_SECONDS * rate_hz)
    # A window with one steady note fits at each of its periods, and has no vote.
    unique = np.array([_confidence(curve, peak, lobe) for curve, peak in zip(curves, peaks, strict=True)])
    voting = (np.abs(heights) > WINDOW_PEAK * np.maximum(levels, 1e-30)) & (unique >= MIN_CONFIDENCE)
    tolerance = max(AGREEMENT_SAMPLES, round(AGREEMENT_SECONDS * rate_hz))
    agreeing = voting & (np.abs(peaks - max_lag - lag) <= tolerance) & (np.sign(heights) == polarity)
    third = -(-len(starts) // 3)
    ends = [_refine(dry, wet, part, window, lag, rate_hz)[0] for part in (starts[:third], starts[-third:])]
    contrast = float(np.abs(whole[coarse]) / np.sqrt(np.mean(whole**2)))
    found = Alignment(
        lag_samples=lag,
        polarity=polarity,
        confidence=round(_confidence(whole, coarse, lobe), 4),
        num_windows=len(starts),
        num_voting=int(voting.sum()),
        num_agreeing=int(agreeing.sum()),
        drift_samples=ends[1] - ends[0],
        problem=None,
    )
    others = peaks[voting & ~agreeing] - max_lag
    return Alignment(**{**vars(found), "problem": _problem(found, contrast, others)})


def _problem(found: Alignment, contrast: float, others: np.ndarray) -> str | None:
    if contrast < WHOLE_PEAK or found.num_agreeing == 0:
        return (
            "the wet file seems unrelated to the dry one: no delay within half a second makes them fit "
            f"(peak {contrast:.1f} times the noise, needed {WHOLE_PEAK:g}; {found.num_agreeing} of {found.num_windows} "
            "windows agree)"
        )
    if found.num_agreeing < MIN_AGREEING * found.num_voting:
        shown = ", ".join(str(lag) for lag in sorted(set(others.tolist()))[:4])
        return (
            f"windows disagree about the lag: {found.num_agreeing} of {found.num_voting} say {found.lag_samples} "
            f"samples, others {shown}: samples were lost while recording, or the clocks of the two files differ"
        )
    if found.confidence < MIN_CONFIDENCE:
        return (
            f"several lags fit almost equally well (confidence {found.confidence:.2f}, needed {MIN_CONFIDENCE}), as "
            "with a signal that repeats"
        )
    return None


def _unknown(problem: str) -> Alignment:
    return Alignment(0, 0, 0.0, 0, 0, 0, 0, problem)


def _confidence(curve: np.ndarray, peak: int, lobe: int) -> float:
    """1 - (largest magnitude more than `lobe` from `peak` / that at `peak`)."""
    level = np.abs(curve)
    rivals = np.concatenate([level[: max(peak - lobe, 0)], level[peak + lobe + 1 :]])
    return 1 - float(np.max(rivals, initial=0.0)) / max(float(level[peak]), 1e-30)


def _loud_windows(dry: np.ndarray, margin: int, window: int) -> np.ndarray:
    """First samples of windows side by side, `margin` from both ends, spread evenly over the loud ones. int [W]."""
    starts = np.arange(margin, len(dry) - margin - window + 1, window)
    power = np.array([np.mean(dry[start : start + window].astype(np.float64) ** 2) for start in starts])
    loud = starts[(power > 0) & (power >= power.max() * 10 ** (QUIETEST_WINDOW_DB / 10))]
    if len(loud) <= MAX_WINDOWS:
        return loud
    return loud[np.linspace(0, len(loud) - 1, MAX_WINDOWS).round().astype(int)]


def _correlation(
    dry: np.ndarray, wet: np.ndarray, start: int, window: int, lag: int, reach: int, rate_hz: int
) -> np.ndarray:
    """Phase-transformed correlation of one window at the lags lag - reach to lag + reach. float64 [2 reach + 1]."""
    heard = dry[start : start + window] * np.hanning(window)
    first = start + lag - reach
    length = window + 2 * reach
    given = np.zeros(length)
    low, high = max(first, 0), min(first + length, len(wet))
    given[low - first : high - first] = wet[low:high]
    fft_samples = 1 << (length - 1).bit_length()
    cross = np.fft.rfft(given, fft_samples) * np.conj(np.fft.rfft(heard, fft_samples))
    bins_hz = np.fft.rfftfreq(fft_samples, 1 / rate_hz)
    magnitude = np.abs(cross)
    in_band = (bins_hz >= BAND_HZ[0]) & (bins_hz <= min(BAND_HZ[1], 0.45 * rate_hz))
    weight = np.where(in_band & (magnitude > 1e-9 * magnitude.max()), 1 / np.maximum(magnitude, 1e-300), 0.0)
    return np.fft.irfft(cross * weight, fft_samples)[: 2 * reach + 1]


def _refine(
    dry: np.ndarray, wet: np.ndarray, starts: np.ndarray, window: int, lag: int, rate_hz: int
) -> tuple[int, int]:
    """(lag, polarity) where the windows, moved by the lag itself, find nothing left to move.

    So the result does not depend on the samples beside the windows, which differ between two delays.
    """
    seen: list[tuple[int, int]] = []
    while len(seen) < _REFINE_ROUNDS:
        curves = [_correlation(dry, wet, start, window, lag, _REFINE_SAMPLES, rate_hz) for start in starts]
        whole = np.sum(curves, axis=0)
        peak = int(np.argmax(np.abs(whole)))
        lag, polarity = lag + peak - _REFINE_SAMPLES, 1 if whole[peak] > 0 else -1
        if (lag, polarity) in seen:
            # Nothing left to move, or two neighbours that point at each other: the earlier, whatever came first.
            return min(seen[seen.index((lag, polarity)) :])
        seen.append((lag, polarity))
    return seen[-1]
