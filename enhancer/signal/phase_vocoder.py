"""Longer or shorter at the same pitch, by a phase vocoder without any phase locking: the plain one, which smears.

J. Flanagan, R. Golden, "Phase vocoder" (1966); the formulation is that of librosa's `phase_vocoder`: magnitudes are
interpolated between frames, and each bin's phase advances by what it advanced between the two frames around.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.stft import Stft

WINDOW_SAMPLES, HOP_SAMPLES = 2048, 512


def time_stretched(wave: Float[Tensor, " time"], factor: float) -> Float[Tensor, " stretched"]:
    """`wave` [T] made `factor` times as long, at the same pitch: [round(T factor)].

    Raises ValueError where `factor` is not above 0 or not finite.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"factor is {factor}; needed a number above 0, such as 1.26")
    stft = Stft(WINDOW_SAMPLES, HOP_SAMPLES)
    spectrum = stft(wave)
    length = round(wave.shape[-1] * factor)
    places = torch.arange(-(-length // HOP_SAMPLES) + 1, dtype=torch.float64) / factor
    before = places.floor().long().clamp(max=spectrum.shape[-1] - 1)
    after = (before + 1).clamp(max=spectrum.shape[-1] - 1)
    share = (places - places.floor()).float()
    magnitude, angle = spectrum.abs(), spectrum.angle().double()
    levels = (1 - share) * magnitude[:, before] + share * magnitude[:, after]
    # A bin's own advance over a hop, and what the frames say beyond it, in -pi to pi.
    own = (
        2
        * torch.pi
        * HOP_SAMPLES
        / WINDOW_SAMPLES
        * torch.arange(len(spectrum), dtype=torch.float64)[:, None]
    )
    beyond = angle[:, after] - angle[:, before] - own
    advance = own + beyond - 2 * torch.pi * torch.round(beyond / (2 * torch.pi))
    phases = torch.cat([angle[:, :1], angle[:, :1] + advance[:, :-1].cumsum(1)], dim=1)
    # Thousands of turns would cost a float its digits.
    turned = phases.remainder(2 * torch.pi).float()
    return stft.inverse(torch.polar(levels, turned), length)
