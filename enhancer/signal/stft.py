"""Short-time Fourier transform (periodic Hann) and its exact inverse.

Frames are centred: frame m is around sample m * hop, and samples outside the waveform count as zero. So a
frame never depends on where the waveform begins or ends, which is what lets a long file be cut into chunks at
multiples of the hop. (Reflection padding, the other usual choice, would make edge frames depend on the cut.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from enhancer.signal.types import Spectrum, Wave


@lru_cache(maxsize=32)
def hann_window(window_samples: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " window"]:
    """Periodic Hann window; the same tensor at every call, not to be written to."""
    return torch.hann_window(window_samples, periodic=True, dtype=dtype, device=device)


def num_frames(num_samples: int, hop_samples: int) -> int:
    """Frames of a waveform: the last one is centred on or after the end, ceil(T / hop) + 1."""
    return -(-num_samples // hop_samples) + 1


def windowed_frames(
    wave: Wave, window_samples: int, hop_samples: int
) -> Float[Tensor, "*batch frame window"]:
    """Frames times the window; frame m is centred on sample m * hop, with zeros outside the waveform.

    Half-precision waveforms are taken to float32, since an STFT in bf16 would keep two digits.
    """
    if wave.dtype not in (torch.float32, torch.float64):
        wave = wave.float()
    length = wave.shape[-1]
    left = window_samples // 2
    padded = (num_frames(length, hop_samples) - 1) * hop_samples + window_samples
    frames = F.pad(wave, (left, padded - left - length)).unfold(-1, window_samples, hop_samples)
    return frames * hann_window(window_samples, wave.dtype, wave.device)


class Stft:
    """STFT with an exact inverse for any spectrum it made, and the least-squares inverse for any other.

    `hop_samples` divides `window_samples` at least twice. `n_fft` is the window's length unless given; it is
    even. A plain class on purpose: a window in a module's buffers would be rounded by a cast of the module to
    bf16. Half-precision waveforms are transformed in float32.

    Inverse: Griffin and Lim, "Signal estimation from modified short-time Fourier transform" (1984), equation
    6.
    """

    def __init__(self, window_samples: int, hop_samples: int, n_fft: int | None = None) -> None:
        n_fft = window_samples if n_fft is None else n_fft
        if hop_samples < 1 or window_samples % hop_samples or window_samples < 2 * hop_samples:
            raise ValueError(
                f"hop_samples is {hop_samples} and window_samples {window_samples}; "
                "the window must be at least two whole hops, such as four"
            )
        if n_fft < window_samples or n_fft % 2:
            raise ValueError(
                f"n_fft is {n_fft}; needed an even number not below the window's {window_samples} samples"
            )
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.n_fft = n_fft

    @property
    def num_bins(self) -> int:
        """Frequency bins, n_fft / 2 + 1."""
        return self.n_fft // 2 + 1

    def __call__(self, wave: Wave) -> Spectrum:
        """[..., T] -> complex [..., F, N] with N = ceil(T / hop) + 1."""
        frames = windowed_frames(wave, self.window_samples, self.hop_samples)
        return torch.fft.rfft(frames, n=self.n_fft).transpose(-1, -2)

    def inverse(self, spectrum: Spectrum, length: int) -> Wave:
        """Complex [..., F, N] -> [..., length]. Raises ValueError where F and N are not those of `length`."""
        needed = (self.num_bins, num_frames(length, self.hop_samples))
        if spectrum.shape[-2:] != needed:
            raise ValueError(
                f"spectrum has (bins, frames) {tuple(spectrum.shape[-2:])}; {length} samples have {needed}"
            )
        frames = spectrum.shape[-1]
        pieces = torch.fft.irfft(spectrum.transpose(-1, -2), n=self.n_fft)[..., : self.window_samples]
        window = hann_window(self.window_samples, pieces.dtype, pieces.device)
        wave = self._overlap_add(pieces * window)
        weight = self._overlap_add(window.square().expand(frames, -1))
        inside = slice(self.window_samples // 2, self.window_samples // 2 + length)
        return wave[..., inside] / weight[inside]

    def _overlap_add(self, pieces: Float[Tensor, "*batch frame window"]) -> Wave:
        frames, hop = pieces.shape[-2], self.hop_samples
        overlap = self.window_samples // hop
        blocks = pieces.new_zeros(*pieces.shape[:-2], frames + overlap - 1, hop)
        for shift in range(overlap):
            blocks[..., shift : shift + frames, :] += pieces[..., shift * hop : (shift + 1) * hop]
        return blocks.flatten(-2)


def power_spectrogram(
    wave: Wave, window_samples: int, hop_samples: int, n_fft: int
) -> Float[Tensor, "*batch frame freq"]:
    """Squared magnitude of the centred Hann STFT, [..., N, F]: |Stft|**2, for any hop and any even `n_fft`."""
    return power_of_frames(windowed_frames(wave, window_samples, hop_samples), n_fft)


def power_of_frames(
    frames: Float[Tensor, "*batch frame window"], n_fft: int
) -> Float[Tensor, "*batch frame freq"]:
    """Squared magnitude of the FFT of windowed frames; `n_fft` is even and not below the window's length."""
    return _PowerOfFrames.apply(frames, n_fft)


class _PowerOfFrames(torch.autograd.Function):
    """With one real inverse FFT backwards, where torch's own would run a full complex one."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, n_fft: int) -> Tensor:
        spectrum = torch.fft.rfft(frames, n=n_fft)
        ctx.save_for_backward(spectrum)
        ctx.sizes = (frames.shape[-1], n_fft)
        return torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_power: Tensor) -> tuple[Tensor, None]:
        (spectrum,) = ctx.saved_tensors
        window_samples, n_fft = ctx.sizes
        # d(m^2)/dX is 2 X; irfft counts every bin but the first and the last twice, which is that 2.
        weight = by_power.clone()
        weight[..., 0] *= 2
        weight[..., -1] *= 2
        by_frame = torch.fft.irfft(weight * spectrum, n=n_fft, norm="forward")
        return by_frame[..., :window_samples], None
