"""Fundamental frequency of a plucked note, to a cent, and how stiff its string is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LOWEST_HZ = 27.0
HIGHEST_HZ = 1500.0
COARSE_SECONDS = 0.4
FINE_SECONDS = 0.8
FEWEST_PERIODS = 10
SEARCH_CENTS = 60.0
"""How far from where it is expected a partial is looked for."""
PEAK_SHARE = 0.85
"""The first peak of the periodicity that is this high relative to the highest one is the period."""
MOST_PARTIALS = 12
OCTAVE_DB = 45.0
"""Where all odd partials are this far below the loudest even one, f0 is that of the even ones."""
WEAK_DB = 40.0
"""A fundamental further below the loudest partial is not trusted; its place follows from the others'."""


@dataclass(frozen=True)
class Pitch:
    """f0_hz: frequency of the first partial, NaN where there is none. clarity: how periodic the note is, 0..1.

    inharmonicity: B of f_k = k f sqrt(1 + B k^2) (H. Fletcher, "Normal vibration frequencies of a stiff piano string",
    1964), 0 where it is not seen.
    """

    f0_hz: float
    clarity: float
    inharmonicity: float = 0.0


def cents(f0_hz: float, reference_hz: float) -> float:
    """1200 log2 of the ratio; NaN where one of them is not above 0."""
    if not (f0_hz > 0 and reference_hz > 0):
        return math.nan
    return 1200 * math.log2(f0_hz / reference_hz)


def estimate_f0(wave: Tensor, rate_hz: int, near_hz: float | None = None) -> Pitch:
    """Pitch of `wave` [T], one note from its attack on.

    The period is the first high peak of the normalised square difference function (P. McLeod, G. Wyvill, "A smarter way
    to find pitch", 2005); then the partials are found one after another in a spectrum.

    Args:
        near_hz: where f0 is to be looked for, within a semitone; by default anywhere from LOWEST_HZ to HIGHEST_HZ.
    """
    samples = wave.detach().double().cpu().numpy()
    coarse_hz, clarity = _coarse(samples, rate_hz, near_hz)
    if not coarse_hz > 0:
        return Pitch(math.nan, clarity)
    if near_hz is None:
        coarse_hz = _without_empty_octaves(samples, rate_hz, coarse_hz)
    f0_hz, inharmonicity = _refine(samples, rate_hz, coarse_hz)
    return Pitch(f0_hz, clarity, inharmonicity)


def _coarse(samples: np.ndarray, rate_hz: int, near_hz: float | None) -> tuple[float, float]:
    low, high = (LOWEST_HZ, HIGHEST_HZ) if near_hz is None else (near_hz / 1.06, near_hz * 1.06)
    longest = math.ceil(rate_hz / low) + 1
    count = min(len(samples), max(round(COARSE_SECONDS * rate_hz), 3 * longest))
    piece = samples[:count] - samples[:count].mean()
    longest = min(longest, count - 2)
    if longest < 3 or not np.any(piece):
        return math.nan, 0.0
    periodicity = _periodicity(piece, longest)
    first = max(math.floor(rate_hz / high), 2)
    lags = np.arange(first, longest)
    if near_hz is None:
        middle = periodicity[first:longest]
        is_peak = (middle >= periodicity[first - 1 : longest - 1]) & (
            middle > periodicity[first + 1 : longest + 1]
        )
        # Before the first crossing of zero lies the peak of lag 0.
        crossing = np.flatnonzero(periodicity[:longest] < 0)
        is_peak &= lags >= (crossing[0] if len(crossing) else longest)
        lags = lags[is_peak]
    if not len(lags):
        return math.nan, 0.0
    values = periodicity[lags]
    chosen = lags[values >= PEAK_SHARE * values.max()][0] if near_hz is None else lags[values.argmax()]
    place, value = _parabola(periodicity, int(chosen))
    return rate_hz / place, float(np.clip(value, 0, 1))


def _periodicity(piece: np.ndarray, longest: int) -> np.ndarray:
    """Normalised square difference function at lags 0 to `longest`, in -1..1."""
    size = 1 << (len(piece) + longest + 1).bit_length()
    spectrum = np.fft.rfft(piece, size)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, size)[: longest + 1]
    energy = np.concatenate([[0.0], np.cumsum(piece**2)])
    lags = np.arange(longest + 1)
    both = energy[len(piece) - lags] + energy[-1] - energy[lags]
    return 2 * correlation / np.maximum(both, 1e-30)


def _without_empty_octaves(samples: np.ndarray, rate_hz: int, coarse_hz: float) -> float:
    """`coarse_hz`, or an octave or more above it where nothing sounds in between.

    Two periods of a stiff string may be more alike than one.
    """
    while 2 * coarse_hz <= HIGHEST_HZ:
        level_db, bin_hz = _spectrum(samples, rate_hz, coarse_hz)
        loudest = []
        for number in range(1, 9):
            low, high = (round(number * coarse_hz * 2**edge / bin_hz) for edge in (-0.03, 0.03))
            loudest.append(float(level_db[low : high + 1].max(initial=-math.inf)))
        if max(loudest[0::2]) > max(loudest[1::2]) - OCTAVE_DB:
            break
        coarse_hz *= 2
    return coarse_hz


def _spectrum(samples: np.ndarray, rate_hz: int, coarse_hz: float) -> tuple[np.ndarray, float]:
    """(levels of the start of a note in dB, Hz between them)."""
    count = max(round(FINE_SECONDS * rate_hz), math.ceil(FEWEST_PERIODS * rate_hz / coarse_hz))
    piece = samples[:count] - samples[:count].mean()
    size = 1 << (4 * len(piece) - 1).bit_length()
    level_db = 20 * np.log10(np.abs(np.fft.rfft(piece * np.hanning(len(piece)), size)) + 1e-12)
    return level_db, rate_hz / size


def _refine(samples: np.ndarray, rate_hz: int, coarse_hz: float) -> tuple[float, float]:
    level_db, bin_hz = _spectrum(samples, rate_hz, coarse_hz)
    numbers: list[int] = []
    places: list[float] = []
    levels: list[float] = []
    base, stiffness = coarse_hz, 0.0
    for number in range(1, MOST_PARTIALS + 1):
        expected = number * base * math.sqrt(1 + stiffness * number**2)
        width = 2 ** (SEARCH_CENTS / 1200)
        low, high = math.floor(expected / width / bin_hz), math.ceil(expected * width / bin_hz)
        if high + 1 >= len(level_db) or low < 1:
            break
        peak = low + int(level_db[low : high + 1].argmax())
        if peak in (low, high):
            continue
        place, value = _parabola(level_db, peak)
        if levels and value < max(levels) - 50:
            continue
        numbers.append(number)
        places.append(place * bin_hz)
        levels.append(value)
        base, stiffness = _string_of(numbers, places, levels, base)
    if not numbers:
        return coarse_hz, 0.0
    if numbers[0] == 1 and levels[0] > max(levels) - WEAK_DB:
        return places[0], stiffness
    return base * math.sqrt(1 + stiffness), stiffness


def _string_of(
    numbers: list[int], places: list[float], levels: list[float], base: float
) -> tuple[float, float]:
    """(f, B) of f_k = k f sqrt(1 + B k^2) by least squares; B is 0 with less than three partials."""
    number = np.array(numbers, float)
    squares = (np.array(places) / number) ** 2
    weight = number**2 * 10 ** ((np.array(levels) - max(levels)) / 20)
    if len(numbers) < 3:
        return math.sqrt(np.average(squares, weights=weight)), 0.0
    mean_x = np.average(number**2, weights=weight)
    mean_y = np.average(squares, weights=weight)
    slope = np.average((number**2 - mean_x) * (squares - mean_y), weights=weight)
    slope /= np.average((number**2 - mean_x) ** 2, weights=weight)
    start = mean_y - slope * mean_x
    if start <= 0 or slope <= 0:
        return math.sqrt(mean_y), 0.0
    return math.sqrt(start), float(slope / start)


def _parabola(values: np.ndarray, peak: int) -> tuple[float, float]:
    """Place and height of the vertex through a peak and its neighbours."""
    left, middle, right = values[peak - 1 : peak + 2]
    bend = left - 2 * middle + right
    if bend >= 0:
        return float(peak), float(middle)
    shift = 0.5 * (left - right) / bend
    return peak + float(shift), float(middle - 0.25 * (left - right) * shift)
