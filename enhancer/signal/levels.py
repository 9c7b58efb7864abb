"""Levels and gains. Decibels are relative to full scale: a constant wave of 1 has 0 dB."""

from __future__ import annotations

import math

import torch

from enhancer.signal.types import PerRow, PerWave, Wave, WaveBatch

SILENCE_DB = -90.0
"""RMS below which a waveform counts as silent: about one 16-bit step. Silence has no level to scale."""


def rms(wave: Wave) -> PerWave:
    """Root mean square over time, [..., T] -> [...]."""
    # A norm reads the waveform once and writes no square of it.
    return torch.linalg.vector_norm(wave, dim=-1) / math.sqrt(wave.shape[-1])


def power_db(wave: Wave, floor_db: float = -200.0) -> PerWave:
    """Mean power over time in dBFS, [..., T] -> [...], not below `floor_db` (digital silence)."""
    return 20 * rms(wave).clamp(min=10 ** (floor_db / 20)).log10()


def db_to_gain(gain_db: PerWave) -> PerWave:
    """Linear amplitude gain of decibels: 20 dB is 10."""
    return torch.pow(10.0, gain_db / 20)


def gain_for_snr(speech: WaveBatch, noise: WaveBatch, snr_db: PerRow) -> PerRow:
    """Linear gain on `noise` so that speech/noise power is `snr_db` dB, per row; 1 where either is silent."""
    speech_db, noise_db = power_db(speech), power_db(noise)
    silent = torch.minimum(speech_db, noise_db) < SILENCE_DB
    return torch.where(silent, 1.0, db_to_gain(speech_db - noise_db - snr_db))


def gain_for_level(wave: WaveBatch, level_db: PerRow, max_gain_db: float) -> PerRow:
    """Linear gain that brings `wave` to an RMS of `level_db` dBFS, per row, never above `max_gain_db`.

    1 where the wave is silent or `level_db` is NaN.
    """
    wave_db = power_db(wave)
    gain = db_to_gain((level_db - wave_db).clamp(max=max_gain_db))
    return torch.where((wave_db < SILENCE_DB) | level_db.isnan(), 1.0, gain)
