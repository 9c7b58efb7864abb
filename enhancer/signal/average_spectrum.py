"""Long-term average spectrum of a waveform, and its levels in bands of equal width to the ear.

P. Welch, "The use of fast Fourier transform for the estimation of power spectra" (1967): the mean of the periodograms
of half-overlapping Hann windows. Nothing is padded or detrended.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.precision import widest_float
from enhancer.signal.stft import hann_window

WINDOW_SAMPLES = 8192
BANDS_PER_OCTAVE = 6
LOWEST_HZ = 20.0
FLOOR_DB = -120.0

Line = Float[Tensor, " freq"]
Power = Float[Tensor, "*row freq"]
Bands = Float[Tensor, " band"]


def average_power(
    wave: Float[Tensor, "*row time"], rate_hz: int, window_samples: int = WINDOW_SAMPLES
) -> tuple[Line, Power]:
    """Frequencies in Hz [F] and the one-sided power density (1/Hz, full scale 1) of each row of `wave` [..., T],
    in `widest_float` [..., F].

    A wave shorter than the window is its own window. Raises ValueError for less than two samples.
    """
    wave = wave.to(widest_float(wave.device))
    window_samples = min(window_samples, wave.shape[-1])
    if window_samples < 2:
        raise ValueError(f"a wave of {wave.shape[-1]} samples has no spectrum; needed two at least")
    window = hann_window(window_samples, wave.dtype, wave.device)
    hop_samples = max(window_samples - window_samples // 2, 1)
    frames = wave.unfold(-1, window_samples, hop_samples)
    power = torch.fft.rfft(frames * window).abs().square().mean(-2) / (rate_hz * window.square().sum())
    # Every bin stands for its negative twin too, but for 0 Hz and, of an even window, the highest.
    power[..., 1 : (window_samples + 1) // 2] *= 2
    return torch.fft.rfftfreq(window_samples, 1 / rate_hz, dtype=wave.dtype, device=wave.device), power


def band_levels(
    wave: Float[Tensor, " time"], rate_hz: int, bands_per_octave: int = BANDS_PER_OCTAVE
) -> tuple[Bands, Bands]:
    """Centres in Hz of bands from 20 Hz to half the rate, and the level in each: dB, 0 for a mean square of 1.

    The bands stand at 1000 Hz * 2**(k / bands_per_octave) and reach half way to their neighbours. At the bottom those
    too narrow to hold a bin of the spectrum are left out. Levels are not below FLOOR_DB.
    """
    frequency, power = average_power(wave, rate_hz)
    spacing_hz = float(frequency[1])
    band = torch.floor(bands_per_octave * torch.log2(frequency[1:] / 1000) + 0.5).long()
    numbers, place = torch.unique(band, return_inverse=True)
    sums = torch.zeros(len(numbers), dtype=power.dtype, device=power.device)
    sums.index_add_(0, place, power[1:] * spacing_hz)
    centre = 1000 * 2 ** (numbers.double() / bands_per_octave)
    is_shown = (centre >= LOWEST_HZ) & (centre <= rate_hz / 2)
    level_db = 10 * torch.log10(sums.clamp_min(10 ** (FLOOR_DB / 10)))
    return centre[is_shown], level_db[is_shown]
