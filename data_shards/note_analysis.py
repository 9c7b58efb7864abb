"""Where a recorded note begins, is left alone and ends, and what disturbs its decay. numpy, float64 [T], in samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from enhancer.signal.decay import LOWEST_HZ, OCTAVE_CENTRES_HZ

ONSET_BELOW_PEAK_DB = 30.0
ATTACK_SECONDS = 0.3
"""The loudest period is looked for this long behind the onset."""
FEWEST_ATTACK_SECONDS = 0.02
SECOND_ONSET_DB = 8.0
"""Beating partials make a note louder again by a few dB; a second pluck by more."""
RISE_SECONDS = 0.4
NOISE_SECONDS = 1.5
NOISE_MARGIN_DB = 6.0
FADE_FRAME_SECONDS = 0.02
FADE_SPAN_SECONDS = 2.5
LONGEST_FADE_SECONDS = 2.0
SILENT = 1e-7


@dataclass(frozen=True)
class Attack:
    """Where the note begins and where nothing but its decay is left."""

    onset: int
    end: int


def find_attack(wave: np.ndarray, rate_hz: int, f0_hz: float) -> Attack:
    """The onset is where the note first comes within ONSET_BELOW_PEAK_DB of its peak.

    The attack ends where the loudest period of the next ATTACK_SECONDS begins, but at the earliest two periods and
    FEWEST_ATTACK_SECONDS behind the onset: a pick touches the string that long.
    """
    level = np.abs(wave)
    onset = int(np.argmax(level >= level.max() * 10 ** (-ONSET_BELOW_PEAK_DB / 20)))
    period = rate_hz / f0_hz
    energy = np.concatenate([[0.0], np.cumsum(wave[onset:] ** 2)])
    length = min(round(period), len(energy) - 1)
    windows = (energy[length:] - energy[:-length])[: round(ATTACK_SECONDS * rate_hz)]
    earliest = max(2 * period, FEWEST_ATTACK_SECONDS * rate_hz)
    return Attack(onset, onset + max(int(windows.argmax()), math.ceil(earliest)))


def without_silence(wave: np.ndarray) -> int:
    """Length of `wave` without the digital silence at its end."""
    loud = np.flatnonzero(np.abs(wave) > SILENT)
    return int(loud[-1]) + 1 if len(loud) else 0


def fade_samples(wave: np.ndarray, rate_hz: int) -> int:
    """Length of a fade-out at the end of `wave`; 0 where there is none.

    The level in dB is fitted by a parabola in time, which a decay follows, plus a straight fade of amplitude to zero of
    every length. A fade is believed where it explains the end more than twice as well as the decay alone.
    """
    hop = round(FADE_FRAME_SECONDS * rate_hz)
    count = min(len(wave), round(FADE_SPAN_SECONDS * rate_hz)) // hop
    if count < 12:
        return 0
    frames = wave[len(wave) - count * hop :].reshape(count, hop)
    level_db = 10 * np.log10((frames**2).mean(1) + 1e-30)
    # Seconds before the end; the mean of a straight fade's square over a frame.
    to_end = (count - np.arange(count)) * FADE_FRAME_SECONDS
    after = to_end - FADE_FRAME_SECONDS
    square = (to_end**2 + to_end * after + after**2) / 3
    parabola = np.vander(to_end, 3)
    errors = []
    lengths = np.arange(0, min(LONGEST_FADE_SECONDS, 0.8 * to_end[0]), FADE_FRAME_SECONDS)
    for length in lengths:
        shape = 10 * np.log10(np.minimum(1, square / length**2)) if length else 0.0
        rest = level_db - shape
        coefficients, *_ = np.linalg.lstsq(parabola, rest, rcond=None)
        errors.append(float(np.sqrt(np.mean((rest - parabola @ coefficients) ** 2))))
    best = int(np.argmin(errors))
    if errors[0] < 1.0 or errors[best] > 0.5 * errors[0]:
        return 0
    return math.ceil(1.05 * lengths[best] * rate_hz) + hop


def second_onset(decay: np.ndarray, rate_hz: int, f0_hz: float) -> int | None:
    """Where `decay` becomes louder again by SECOND_ONSET_DB within RISE_SECONDS, or None."""
    hop = max(round(0.01 * rate_hz), math.ceil(rate_hz / f0_hz))
    count = len(decay) // hop
    if count < 4:
        return None
    level_db = 10 * np.log10((decay[: count * hop].reshape(count, hop) ** 2).mean(1) + 1e-14)
    span = max(round(RISE_SECONDS * rate_hz / hop), 2)
    for place in range(2, count):
        lowest = level_db[max(0, place - span) : place].min()
        if min(level_db[place], level_db[min(place + 1, count - 1)]) > lowest + SECOND_ONSET_DB:
            return place * hop
    return None


def noise_in_octaves(decay: np.ndarray, rate_hz: int, f0_hz: float, inharmonicity: float = 0.0) -> np.ndarray:
    """Noise floor in octave bands at the end of `decay`: mean square [bands], 0 for a band without a place for it.

    Measured where no partial is: more than a quarter of f0 away from each. The lower quartile of the power there stands
    for noise, of whose chi-squared distribution it is ln(4 / 3) of the mean, so that a partial that strayed counts for
    little.
    """
    count = min(len(decay), max(round(NOISE_SECONDS * rate_hz), math.ceil(16 * rate_hz / f0_hz)))
    window = np.hanning(count + 1)[:count]
    tail = decay[-count:]
    power = np.abs(np.fft.rfft((tail - tail.mean()) * window)) ** 2
    hz = np.fft.rfftfreq(count, 1 / rate_hz)
    number = np.arange(1, math.ceil(rate_hz / 2 / f0_hz) + 1)
    partial = number * f0_hz * np.sqrt((1 + inharmonicity * number**2) / (1 + inharmonicity))
    above = np.searchsorted(partial, hz).clip(1, len(partial) - 1)
    distance = np.minimum(np.abs(hz - partial[above - 1]), np.abs(hz - partial[above]))
    # Half of 0.25 f0 to 0 Hz on: rumble is noise too, its window's main lobe of DC is not.
    is_between = (distance > 0.25 * f0_hz) & (hz > 4 * rate_hz / count)
    scale = 2 / (count * np.sum(window**2))
    edges_hz = [LOWEST_HZ, *(centre * math.sqrt(2) for centre in OCTAVE_CENTRES_HZ[:-1]), rate_hz / 2]
    edges_hz = np.maximum.accumulate(edges_hz).tolist()
    noise = np.zeros(len(edges_hz) - 1)
    for band, (low, high) in enumerate(pairwise(edges_hz)):
        inside = (hz >= low) & (hz < high)
        chosen = power[inside & is_between]
        if len(chosen) >= 4:
            noise[band] = np.quantile(chosen, 0.25) / math.log(4 / 3) * inside.sum() * scale
    return noise


def reaches(decay: np.ndarray, rate_hz: int, f0_hz: float, noise: float) -> int | None:
    """Where `decay` first comes within NOISE_MARGIN_DB of a noise of mean square `noise`, or None."""
    hop = max(round(0.05 * rate_hz), math.ceil(2 * rate_hz / f0_hz))
    count = len(decay) // hop
    energy = (decay[: count * hop].reshape(count, hop) ** 2).mean(1)
    below = np.flatnonzero(energy <= noise * 10 ** (NOISE_MARGIN_DB / 10))
    return int(below[0]) * hop if len(below) else None
