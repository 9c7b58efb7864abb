"""Plucked and bowed notes in phrases. numpy only.

Sources: Karplus and Strong, "Digital synthesis of plucked-string and drum timbres" (1983); Välimäki and
Huovilainen, "Antialiasing oscillators in subtractive synthesis" (2007), for the sawtooth with polynomial
correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SCALE_SEMITONES = np.array([0, 2, 4, 7, 9, 12, 14, 16])


@dataclass(frozen=True)
class Instrument:
    """What stays the same in one instrument."""

    kind: Literal["plucked", "bowed"]
    lowest_hz: float
    body_hz: tuple[float, ...]
    """Centres of the resonances of the body."""
    notes_per_second: float
    brightness: float
    """Plucked: how long the high partials last, 0..1. Bowed: how open the sound is, 0..1."""


def random_instrument(kind: Literal["plucked", "bowed"], rng: np.random.Generator) -> Instrument:
    """An instrument between a bass and a violin."""
    return Instrument(
        kind=kind,
        lowest_hz=float(rng.uniform(80, 300)),
        body_hz=tuple(float(value) for value in rng.uniform([180, 400, 900, 2200], [320, 800, 1800, 3500])),
        notes_per_second=float(rng.uniform(2.0, 4.5) if kind == "plucked" else rng.uniform(0.8, 2.0)),
        brightness=float(rng.random()),
    )


def play(instrument: Instrument, seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """`seconds` of a melody with rests: float64 of shape [T], peak 1."""
    num_samples = round(seconds * rate_hz)
    wave = np.zeros(num_samples)
    place = int(rng.uniform(0, 0.3) * rate_hz)
    degree = int(rng.integers(len(SCALE_SEMITONES)))
    while place < num_samples:
        beats = float(rng.choice([0.5, 1, 1, 1.5, 2]))
        length = int(beats / instrument.notes_per_second * rate_hz)
        if rng.random() < 0.85:
            degree = int(np.clip(degree + rng.integers(-2, 3), 0, len(SCALE_SEMITONES) - 1))
            pitch_hz = instrument.lowest_hz * 2 ** (SCALE_SEMITONES[degree] / 12)
            render = pluck if instrument.kind == "plucked" else bow
            tail = int(0.6 * rate_hz) if instrument.kind == "plucked" else 0
            note = rng.uniform(0.4, 1.0) * render(
                pitch_hz, length + tail, rate_hz, instrument.brightness, rng
            )
            end = min(place + len(note), num_samples)
            wave[place:end] += note[: end - place]
        else:
            length += int(rng.uniform(0, 0.6) * rate_hz)
        place += length
    wave = _resonate(wave, instrument.body_hz, rate_hz)
    return wave / max(float(np.abs(wave).max()), 1e-9)


def pluck(
    pitch_hz: float, num_samples: int, rate_hz: int, brightness: float, rng: np.random.Generator
) -> np.ndarray:
    """A Karplus-Strong string of `num_samples`, period by period: y[n] = loss * (a y[n-p] + (1-a)
    y[n-p-1]).
    """
    period = max(round(rate_hz / pitch_hz - 0.5), 2)
    # 60 dB in 1.5 s at the fundamental, whatever its pitch.
    loss = 10 ** (-3 * period / (1.5 * rate_hz))
    weight = 0.5 + 0.35 * brightness
    burst = rng.uniform(-1, 1, period)
    rows = [burst - burst.mean()]
    last = 0.0
    for _ in range(num_samples // period + 1):
        previous = rows[-1]
        shifted = np.concatenate(([last], previous[:-1]))
        last = previous[-1]
        rows.append(loss * (weight * previous + (1 - weight) * shifted))
    note = np.concatenate(rows)[:num_samples]
    fade = min(int(0.03 * rate_hz), num_samples)
    note[num_samples - fade :] *= np.linspace(1, 0, fade)
    return note


def bow(
    pitch_hz: float, num_samples: int, rate_hz: int, brightness: float, rng: np.random.Generator
) -> np.ndarray:
    """A sawtooth with vibrato, a soft attack and release, bow noise, and a one-pole-like darkening."""
    at_seconds = np.arange(num_samples) / rate_hz
    depth = 0.006 * np.clip(at_seconds / 0.35, 0, 1)
    vibrato = 1 + depth * np.sin(2 * np.pi * rng.uniform(4.8, 6.2) * at_seconds + rng.uniform(0, 2 * np.pi))
    advance = pitch_hz * vibrato / rate_hz
    phase = np.cumsum(advance) % 1.0
    saw = 2 * phase - 1 - _blep(phase, advance)
    wave = saw + 0.03 * rng.standard_normal(num_samples)
    spectrum = np.fft.rfft(wave)
    bins_hz = np.fft.rfftfreq(num_samples, 1 / rate_hz)
    spectrum /= 1 + (bins_hz / (1500 + 3500 * brightness)) ** 2
    attack, release = rng.uniform(0.04, 0.15), 0.12
    envelope = np.clip(at_seconds / attack, 0, 1) * np.clip((at_seconds[::-1]) / release, 0, 1)
    return 0.5 * np.fft.irfft(spectrum, num_samples) * envelope


def _blep(phase: np.ndarray, advance: np.ndarray) -> np.ndarray:
    """Polynomial correction of a sawtooth's step, two samples wide."""
    after, before = phase / advance, (phase - 1) / advance
    return np.where(
        phase < advance,
        2 * after - after**2 - 1,
        np.where(phase > 1 - advance, before**2 + 2 * before + 1, 0.0),
    )


def _resonate(wave: np.ndarray, centres_hz: tuple[float, ...], rate_hz: int) -> np.ndarray:
    """Raise the bands of an instrument's body by up to 9 dB (zero phase: the notes keep their places)."""
    fft_samples = 1 << (len(wave) + rate_hz // 10).bit_length()
    bins_hz = np.maximum(np.fft.rfftfreq(fft_samples, 1 / rate_hz), 1.0)
    gain_db = sum(9 * np.exp(-0.5 * (np.log2(bins_hz / centre_hz) / 0.2) ** 2) for centre_hz in centres_hz)
    shaped = np.fft.rfft(wave, fft_samples) * 10 ** (np.asarray(gain_db) / 20)
    return np.fft.irfft(shaped, fft_samples)[: len(wave)]
