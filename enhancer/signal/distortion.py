"""What a bad recording chain does to a voice: equaliser, band limits, overdrive, noise. Parameters per row.

A row whose parameter says "off" is returned bit for bit, and costs nothing: only the other rows are computed.
Parameters may live on another device than the waveform; on the CPU, finding the active rows costs no wait for
the accelerator. The filters are applied in the frequency domain, from their exact digital responses, to rows
padded far enough that nothing wraps around.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from enhancer.signal.convolution import fast_fft_length
from enhancer.signal.levels import db_to_gain, rms
from enhancer.signal.types import PerRow, RowIndex, WaveBatch

BUTTERWORTH_BANDWIDTH = 2 * math.cos(3 * math.pi / 8)
"""Of the slowest pole pair of a fourth-order Butterworth filter, s^2 + bandwidth s + 1."""
RING_AMPLITUDE = 1e-7
"""Filters are given room to ring down to this before the padding ends."""


def peaking_eq(
    wave: WaveBatch, centre_hz: PerRow, gain_db: PerRow, quality: PerRow, rate_hz: int
) -> WaveBatch:
    """Peaking equaliser, causal, starting from rest. A gain of 0 dB is off.

    R. Bristow-Johnson, "Audio EQ Cookbook", peakingEQ: the bilinear transform of its prototype on the unit circle,
    H = (1 - x^2 + j x A/Q) / (1 - x^2 + j x / (A Q)) with A = 10**(gain_db / 40) and x = tan(w/2) / tan(w0/2).
    `centre_hz` is above 0 and below half of `rate_hz`.
    """
    rows = (gain_db != 0).nonzero().squeeze(1)
    if not len(rows):
        return wave
    centre, amplitude, q = (v[rows].double() for v in (centre_hz, db_to_gain(gain_db / 2), quality))
    if bool(((centre <= 0) | (centre >= rate_hz / 2)).any()) or bool((q <= 0).any()):
        raise ValueError(
            f"peaking EQ at {centre.tolist()} Hz with Q {q.tolist()}; "
            f"needed a centre above 0 and below {rate_hz / 2} Hz, and Q above 0"
        )
    tangent = torch.tan(math.pi * centre / rate_hz)
    bandwidth = tangent / (amplitude * q)
    n_fft = _padded_length(wave.shape[-1], _ring_samples(tangent, bandwidth))

    rows = rows.to(wave.device)
    x = _grid(n_fft, wave) / _column(tangent, wave)
    real = 1 - x.square()
    response = torch.complex(real, x * _column(amplitude / q, wave)) / torch.complex(
        real, x * _column(1 / (amplitude * q), wave)
    )
    return _filtered(wave, rows, response, n_fft)


def _ring_samples(tangent: Tensor, bandwidth: Tensor) -> int:
    """Samples until the slowest pole of s^2 + bandwidth s + tangent^2, bilinear, is at RING_AMPLITUDE."""
    discriminant = (bandwidth.square() / 4 - tangent.square()).to(torch.complex128).sqrt()
    pole = -bandwidth / 2 + discriminant
    radius = ((1 + pole) / (1 - pole)).abs().max().item()
    return math.ceil(math.log(RING_AMPLITUDE) / math.log(max(radius, 1e-3)))


def band_limit(wave: WaveBatch, lowpass_hz: PerRow, highpass_hz: PerRow, rate_hz: int) -> WaveBatch:
    """Low-pass and high-pass without delay. Off: a low-pass of at least half of `rate_hz`, a high-pass of 0.

    The squared magnitude of a digital Butterworth filter of order 4, phase zero: what running it forwards and
    backwards gives; -6 dB at the cut-off, 48 dB an octave.
    """
    low_on = lowpass_hz < rate_hz / 2
    rows = (low_on | (highpass_hz > 0)).nonzero().squeeze(1)
    if not len(rows):
        return wave
    low, high, low_on = lowpass_hz[rows].double(), highpass_hz[rows].double(), low_on[rows]
    if bool((low <= 0).any()) or bool(((high < 0) | (high >= rate_hz / 2)).any()):
        raise ValueError(
            f"band limits {high.tolist()} to {low.tolist()} Hz; needed a low-pass above 0 Hz "
            f"and a high-pass of at least 0 and below {rate_hz / 2} Hz"
        )
    low_tangent = torch.tan(math.pi * low.clamp(max=rate_hz / 2) / rate_hz)
    high_tangent = torch.tan(math.pi * high / rate_hz)
    cutoffs = torch.cat([low_tangent[low_on], high_tangent[high > 0]])
    n_fft = _padded_length(wave.shape[-1], _ring_samples(cutoffs, BUTTERWORTH_BANDWIDTH * cutoffs))

    rows = rows.to(wave.device)
    grid = _grid(n_fft, wave)
    # An inverse cut-off of 0 makes the low-pass one everywhere; a cut-off of 0 does so for the high-pass.
    low_ratio = grid * _column(torch.where(low_on, 1 / low_tangent, 0.0), wave)
    high_ratio = _column(high_tangent, wave) / grid.clamp(min=1e-12)
    return _filtered(
        wave, rows, 1 / ((1 + _eighth_power(low_ratio)) * (1 + _eighth_power(high_ratio))), n_fft
    )


def _eighth_power(ratio: Tensor) -> Tensor:
    """Twice the order of the Butterworth filter; squaring thrice is far quicker than a general power."""
    return ratio.square().square().square()


def overdrive(wave: WaveBatch, drive_db: PerRow) -> WaveBatch:
    """Soft clipper p tanh(g x/p) / tanh(g), g = 10**(drive_db / 20) and p the row's peak. 0 dB is off.

    Scaling by the peak makes the effect independent of the recording's level, and keeps its peak.
    """
    rows = (drive_db != 0).nonzero().squeeze(1)
    if not len(rows):
        return wave
    drive = _column(db_to_gain(drive_db[rows]), wave)
    rows = rows.to(wave.device)
    clean = wave.index_select(0, rows)
    peak = clean.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(wave.dtype).tiny)
    return wave.index_copy(0, rows, peak * torch.tanh(drive * (clean / peak)) / torch.tanh(drive))


def add_noise(wave: WaveBatch, snr_db: PerRow, seed: RowIndex) -> WaveBatch:
    """White Gaussian noise `snr_db` below the row's own power; infinity is off.

    Each row has its own CPU generator seeded with `seed`, so the noise depends on neither device nor
    neighbours.
    """
    rows = snr_db.isfinite().nonzero().squeeze(1)
    if not len(rows):
        return wave
    seeds = seed[rows].tolist()
    gain = _column(db_to_gain(-snr_db[rows]), wave)
    noise = torch.stack([_gaussian(wave.shape[-1], row_seed) for row_seed in seeds]).to(wave)
    rows = rows.to(wave.device)
    clean = wave.index_select(0, rows)
    scale = gain * (rms(clean) / rms(noise))[:, None]
    return wave.index_copy(0, rows, clean + scale * noise)


def _gaussian(num_samples: int, seed: int) -> Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def _padded_length(num_samples: int, ring_samples: int) -> int:
    # Steps of a quarter of the crop keep the number of distinct FFT lengths, and so of FFT plans, small.
    step = -(-num_samples // 4)
    return fast_fft_length(num_samples + -(-ring_samples // step) * step)


def _filtered(wave: WaveBatch, rows: Tensor, response: Tensor, n_fft: int) -> WaveBatch:
    spectrum = torch.fft.rfft(wave.index_select(0, rows), n=n_fft) * response
    return wave.index_copy(0, rows, torch.fft.irfft(spectrum, n=n_fft)[:, : wave.shape[-1]])


def _grid(n_fft: int, like: Tensor) -> Tensor:
    return _half_angle_tangents(n_fft, like.device, like.dtype)


@lru_cache(maxsize=8)
def _half_angle_tangents(n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """tan(w/2) at the bins of a real FFT; a large finite value at half the rate, where it has its pole."""
    half_angle = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (math.pi / n_fft)
    half_angle[-1] = math.pi / 2 - 1e-6
    return torch.tan(half_angle).to(device=device, dtype=dtype)


def _column(values: PerRow, like: Tensor) -> Tensor:
    return values.to(like)[:, None]
