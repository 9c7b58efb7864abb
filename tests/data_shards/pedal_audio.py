"""Dry guitar-like signals, devices to send them through, and pairs on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

from data_shards.synthetic_notes import Instrument, play

RATE_HZ = 16_000


def guitar(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """Plucked notes with some hiss, float64 [frames], peak about 0.5."""
    rng = np.random.default_rng(seed)
    instrument = Instrument("plucked", 110.0, (250.0, 700.0, 1500.0, 3000.0), 4.0, 0.8)
    wave = 0.5 * play(instrument, seconds, rate_hz, rng)
    return wave + 1e-4 * rng.standard_normal(len(wave))


def fuzz(dry: np.ndarray) -> np.ndarray:
    """Heavy clipping without memory, so its own delay is 0; upright."""
    return 0.8 * np.tanh(12 * dry + 0.3) - 0.2


def amp(dry: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A high-pass, clipping, and a gentle low-pass, as causal filters; upright."""
    high = signal.lfilter(*signal.butter(1, 300, "high", fs=rate_hz), dry)
    return signal.lfilter(*signal.butter(1, 0.375 * rate_hz, fs=rate_hz), 0.7 * np.tanh(20 * high))


def delayed(wave: np.ndarray, samples: int) -> np.ndarray:
    """`wave` later by `samples`, as long as before."""
    return np.concatenate([np.zeros(samples), wave[: len(wave) - samples]])


def write(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "FLOAT") -> Path:
    """Write a WAV (or by its name FLAC) file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype=subtype)
    return path


def write_pair(
    folder: Path, seconds: float = 3.0, *, delay: int = 0, rate_hz: int = RATE_HZ, seed: int = 0
) -> tuple[Path, Path]:
    """A pair of float files through `fuzz`: (dry, wet)."""
    dry = guitar(seconds, rate_hz, seed)
    wet = delayed(fuzz(dry), delay)
    return write(folder / f"dry{seed}.wav", dry, rate_hz), write(folder / f"wet{seed}.wav", wet, rate_hz)
