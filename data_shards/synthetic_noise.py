"""Backgrounds: white, pink and brown noise, modulated bands, impulses and mains hum. numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def coloured(seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """White, pink or brown noise: power proportional to 1/f**0, 1/f or 1/f**2 above 20 Hz."""
    exponent = float(rng.choice([0.0, 1.0, 2.0]))
    return _shaped(seconds, rate_hz, lambda hz: np.maximum(hz, 20.0) ** (-exponent / 2), rng)


def modulated(seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Bands of noise that come and go by themselves, like wind, traffic or a far crowd."""
    num_samples = round(seconds * rate_hz)
    wave = np.zeros(num_samples)
    for _ in range(4):
        centre_hz = 150 * 2 ** rng.uniform(0, 5.5)
        width = rng.uniform(0.3, 1.2)

        def band(hz: np.ndarray, centre_hz: float = centre_hz, width: float = width) -> np.ndarray:
            return np.exp(-0.5 * (np.log2(np.maximum(hz, 1.0) / centre_hz) / width) ** 2)

        knots = max(int(seconds * rng.uniform(0.5, 8.0)), 2)
        level_db = np.interp(
            np.arange(num_samples), np.linspace(0, num_samples, knots), rng.uniform(-25, 0, knots)
        )
        wave += _shaped(seconds, rate_hz, band, rng) * 10 ** (level_db / 20)
    return _unit(wave)


def impulsive(seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Knocks and clicks at random times (2 to 12 a second), each ringing at its own pitch, over faint
    noise.
    """
    num_samples = round(seconds * rate_hz)
    wave = 0.01 * _shaped(seconds, rate_hz, lambda hz: np.maximum(hz, 20.0) ** -0.5, rng)
    for _ in range(rng.poisson(seconds * rng.uniform(2, 12))):
        decay_seconds = rng.uniform(0.003, 0.06)
        at_seconds = np.arange(round(6 * decay_seconds * rate_hz)) / rate_hz
        ringing = np.sin(2 * np.pi * 200 * 2 ** rng.uniform(0, 5) * at_seconds)
        knock = np.exp(-at_seconds / decay_seconds) * (ringing + 0.5 * rng.standard_normal(len(at_seconds)))
        start = int(rng.integers(num_samples))
        end = min(start + len(knock), num_samples)
        wave[start:end] += rng.uniform(0.1, 1.0) * knock[: end - start]
    return _unit(wave)


def hum(seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum at 50 or 60 Hz with partials that fall by 1/n, and the hiss of the amplifier."""
    at_seconds = np.arange(round(seconds * rate_hz)) / rate_hz
    mains_hz = float(rng.choice([50.0, 60.0])) * (1 + rng.normal(0, 1e-3))
    wave = np.zeros(len(at_seconds))
    for partial in range(1, 25):
        phase, gain = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.0) / partial
        wave += gain * np.sin(2 * np.pi * mains_hz * partial * at_seconds + phase)
    hiss = _shaped(seconds, rate_hz, np.ones_like, rng)
    return _unit(_unit(wave) + rng.uniform(0.05, 0.4) * hiss)


NOISES = {"coloured": coloured, "modulated": modulated, "impulsive": impulsive, "hum": hum}


def _shaped(
    seconds: float,
    rate_hz: int,
    magnitude: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """White noise shaped by `magnitude(hz)`, RMS 1."""
    num_samples = round(seconds * rate_hz)
    fft_samples = 1 << (num_samples - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(fft_samples))
    spectrum *= magnitude(np.fft.rfftfreq(fft_samples, 1 / rate_hz))
    return _unit(np.fft.irfft(spectrum, fft_samples)[:num_samples])


def _unit(wave: np.ndarray) -> np.ndarray:
    return wave / max(float(np.sqrt(np.mean(wave**2))), 1e-9)
