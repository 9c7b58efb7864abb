"""One pair of a pitch corpus: a stretch of a recording, and the same shifted and shifted back.

A function of (seed, stretch) alone. The stretch comes with a margin on both sides, so that neither a shifter's start,
nor the lag that is taken out, nor the low-pass reaches into what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from data_shards.envelope_lag import envelope_lag
from data_shards.schedule import below, generator
from data_shards.shifters import SHIFTERS, Unshiftable
from data_shards.shifts import ShiftOptions, ShiftTake, cutoff_of, direction_of

MARGIN_SECONDS = 0.25
PASS_SHARE = 0.97
"""The target's low-pass passes all up to this share of the cutoff, and nothing from the cutoff on."""
STOP_DB = 80.0
LEVEL_SHARE = 0.85
"""Levels are compared up to this share of the cutoff."""
SILENCE_PEAK = 1e-4


class PairFailed(ValueError):
    """A stretch gives no pair; the text is the reason."""


@dataclass(frozen=True)
class DrawnShift:
    """What was drawn for a pair."""

    semitones: int
    engine: str
    seed: int


@dataclass(frozen=True)
class ShiftedPair:
    """input: shifted and shifted back, in time with target and as loud below the cutoff; both float32 [frames]."""

    input: np.ndarray
    target: np.ndarray
    take: ShiftTake


def margin_frames(rate_hz: int) -> int:
    """Frames wanted on each side of a stretch."""
    return round(MARGIN_SECONDS * rate_hz)


def drawn_shift(options: ShiftOptions, *stretch: int | str) -> DrawnShift:
    """What is drawn for `stretch`, whose parts name it."""
    name = blake2b("\0".join(map(str, stretch)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    place, engine, seed = generator(options.seed, 0, f"shift {name}").random(3).tolist()
    return DrawnShift(
        options.choices[below(place, len(options.choices))],
        options.engines[below(engine, len(options.engines))],
        below(seed, 2**31),
    )


def shifted_pair(wave: np.ndarray, drawn: DrawnShift, rate_hz: int) -> ShiftedPair:
    """The pair of `wave`, float32 [margin + frames + margin]; see `margin_frames`.

    Raises: PairFailed where the engine cannot work on it, the result is silent, or no lag makes both fit.
    """
    margin = margin_frames(rate_hz)
    frames = len(wave) - 2 * margin
    assert frames > 0, f"{len(wave)} frames, {margin} of margin on each side"
    back = round_trip(wave, drawn, rate_hz)
    cutoff_hz = cutoff_of(drawn.semitones, rate_hz)
    wanted = low_passed(wave, cutoff_hz, rate_hz) if drawn.semitones > 0 else wave
    found = envelope_lag(wanted, back, rate_hz)
    if found.problem:
        raise PairFailed(f"not aligned: {found.problem}")
    lag = found.lag_samples
    heard = back[margin + lag : margin + lag + frames]
    if float(np.max(np.abs(heard))) < SILENCE_PEAK:
        raise PairFailed(f"silent after {drawn.engine} at {drawn.semitones:+d} semitones")
    target = wanted[margin : margin + frames]
    # A plain phase vocoder loses 7 dB there and back. A model should not be praised for a volume knob.
    heard = heard * (_level(target, cutoff_hz, rate_hz) / _level(heard, cutoff_hz, rate_hz))
    # Both by one gain where one of them passes full scale: clipping is none of the shifter's artefacts.
    peak = max(1.0, float(np.max(np.abs(heard))), float(np.max(np.abs(target))))
    take = ShiftTake(
        semitones=drawn.semitones,
        engine=drawn.engine,
        direction=direction_of(drawn.semitones),
        lag_samples=lag,
        confidence=found.correlation,
        cutoff_hz=round(cutoff_hz, 3),
    )
    return ShiftedPair((heard / peak).astype(np.float32), (target / peak).astype(np.float32), take)


def round_trip(wave: np.ndarray, drawn: DrawnShift, rate_hz: int) -> np.ndarray:
    """`wave` [T] shifted and shifted back: float32 [T]. Raises PairFailed."""
    shift = SHIFTERS[drawn.engine].shift
    try:
        there = shift(wave, rate_hz, drawn.semitones, drawn.seed)
        back = shift(there, rate_hz, -drawn.semitones, drawn.seed)
    except Unshiftable as error:
        raise PairFailed(str(error)) from error
    if not np.isfinite(back).all():
        raise PairFailed(f"{drawn.engine} gives NaN or infinite samples at {drawn.semitones:+d} semitones")
    fitted = np.zeros(len(wave), np.float32)
    count = min(len(wave), len(back))
    fitted[:count] = back[:count]
    return fitted


def _level(wave: np.ndarray, cutoff_hz: float, rate_hz: int) -> float:
    """RMS of what lies well below the cutoff, where shifters begin to fall; above 0."""
    below = low_passed(wave, LEVEL_SHARE * cutoff_hz, rate_hz)
    return max(float(np.sqrt(np.mean(np.square(below, dtype=np.float64)))), SILENCE_PEAK)


def low_passed(wave: np.ndarray, cutoff_hz: float, rate_hz: int) -> np.ndarray:
    """`wave` [T] without what lies at or above `cutoff_hz`, flat to PASS_SHARE of it, without delay: float32 [T].

    A sinc under a Kaiser window, whose transition ends at the cutoff: J. Kaiser, "Nonrecursive digital filter design
    using the I0-sinh window function" (1974). Outside of `wave` is silence.
    """
    taps = _low_pass_taps(cutoff_hz / rate_hz)
    length = len(wave) + len(taps) - 1
    size = 1 << (length - 1).bit_length()
    filtered = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(taps, size), size)
    half = len(taps) // 2
    return filtered[half : half + len(wave)].astype(np.float32)


def _low_pass_taps(cutoff: float) -> np.ndarray:
    """Taps of a linear-phase low-pass with its stop band from `cutoff` (cycles a sample) on."""
    width = (1 - PASS_SHARE) * cutoff
    half = int(np.ceil((STOP_DB - 7.95) / (14.36 * width) / 2))
    beta = 0.1102 * (STOP_DB - 8.7)
    centre = cutoff - width / 2
    places = np.arange(-half, half + 1)
    taps = 2 * centre * np.sinc(2 * centre * places) * np.kaiser(2 * half + 1, beta)
    return taps / taps.sum()
