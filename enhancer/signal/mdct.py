"""The modified discrete cosine transform of audio codecs: orthonormal, so noise is as strong on it as in the waveform.

J. Princen and A. Bradley, "Analysis/synthesis filter bank design based on time domain aliasing cancellation" (1986),
with the sine window; computed by a complex FFT of two hops.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.types import WaveBatch

Coefficients = Float[Tensor, "batch frame freq"]


def mdct(wave: WaveBatch, hop: int) -> Coefficients:
    """[B, T] -> [B, ceil(T / hop) + 1, hop]; coefficient k is around (k + 1/2) / (2 hop) of the sample rate."""
    blocks = -(-wave.shape[-1] // hop)
    padded = F.pad(wave, (hop, (blocks + 1) * hop - wave.shape[-1]))
    window, before, after = _twiddles(hop, wave.device, wave.dtype)
    turned = torch.fft.fft(padded.unfold(-1, 2 * hop, hop) * (window * before))
    return math.sqrt(2 / hop) * (turned[..., :hop] * after).real


def inverse_mdct(coefficients: Coefficients, num_samples: int) -> WaveBatch:
    """The waveform [B, num_samples] of which `mdct` made `coefficients`, exactly and without delay."""
    rows, frames, hop = coefficients.shape
    window, before, after = _twiddles(hop, coefficients.device, coefficients.dtype)
    turned = torch.fft.ifft(coefficients * after.conj(), n=2 * hop) * (2 * hop)
    halves = math.sqrt(2 / hop) * (turned * before.conj()).real * window
    first, second = halves.reshape(rows, frames, 2, hop).unbind(2)
    return (second[:, :-1] + first[:, 1:]).reshape(rows, -1)[:, :num_samples]


@lru_cache(maxsize=8)
def _twiddles(hop: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The window, and the turns before and after an FFT that make it cos(pi / hop (n + n0) (k + 1/2))."""
    n = torch.arange(2 * hop, dtype=torch.float64)
    k = torch.arange(hop, dtype=torch.float64) + 0.5
    window = torch.sin(math.pi / (2 * hop) * (n + 0.5))
    before = torch.polar(torch.ones_like(n), -math.pi * n / (2 * hop))
    after = torch.polar(torch.ones_like(k), -math.pi / hop * (0.5 + hop / 2) * k)
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    return window.to(device, dtype), before.to(device, kind), after.to(device, kind)
