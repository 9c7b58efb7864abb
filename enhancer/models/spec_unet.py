"""A 2-D ConvNeXt U-Net on the complex spectrogram: waveform in, waveform out.

It hears and makes the real and imaginary parts of X / |X|^(1/2): linear magnitudes span 100 dB, and the square root is
undone by z |z|, which has a slope everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.models.convnext import ConvNextUNet
from enhancer.signal.stft import Stft

MAGNITUDE_FLOOR = 1e-6


class SpecUNet(nn.Module):
    """24.6 M parameters at the defaults. `context_samples`, `stride_samples` and `predict` as in `WaveUNet`; a
    difference is one of compressed spectra.

    `factors` shorten the bins, `frame_factors` the frames.
    """

    def __init__(
        self,
        channels: Sequence[int] = (2, 64, 128, 256, 512),
        blocks: Sequence[int] = (4, 4, 4, 4),
        factors: Sequence[int] = (4, 2, 2, 2),
        frame_factors: Sequence[int] = (1, 2, 2, 2),
        kernel_size: int = 7,
        scale_vs_channels: float = 4.0,
        window_samples: int = 1680,
        hop_samples: int = 420,
        predict: str = "difference",
        is_conditioned: bool = True,
    ) -> None:
        super().__init__()
        if channels[0] != 2:
            raise ValueError(f"channels begin with {channels[0]}; real and imaginary part are 2")
        if predict not in ("signal", "difference"):
            raise ValueError(f"predict is {predict!r}; needed signal or difference")
        self.is_difference = predict == "difference"
        self.stft = Stft(window_samples, hop_samples)
        # White noise at full scale then has bins of magnitude 1.
        self.scale = 1 / math.sqrt(0.375 * window_samples)
        self.network = ConvNextUNet(
            channels,
            blocks,
            list(zip(factors, frame_factors, strict=True)),
            (kernel_size, kernel_size),
            scale_vs_channels,
            is_conditioned,
            starts_at_zero=self.is_difference,
        )
        frames = self.network.multiple[1]
        self.stride_samples = frames * hop_samples
        window_frames = 2 * -(-window_samples // hop_samples)
        context = -(-(self.network.reach(1) + window_frames) // frames) * frames
        self.context_samples = context * hop_samples

    def forward(self, mixture: Tensor, semitones: Tensor | None = None) -> Tensor:
        """Shifted recordings [B, T] and their semitones [B] -> repaired ones [B, T].

        Any T: bins and frames are filled up with zeros to whole patches of the deepest level, and cut off again.
        """
        heard = _compressed(self.stft(mixture) * self.scale)
        bins, frames = heard.shape[1:3]
        padding = (0, 0, 0, -frames % self.network.multiple[1], 0, -bins % self.network.multiple[0])
        output = self.network(F.pad(heard, padding), semitones)[:, :bins, :frames].float()
        spectrum = _expanded(heard + output if self.is_difference else output) / self.scale
        return self.stft.inverse(spectrum, length=mixture.shape[-1])


def _compressed(spectrum: Tensor) -> Tensor:
    """X / |X|^(1/2) as real and imaginary part: complex [B, F, N] -> [B, F, N, 2]."""
    parts = torch.view_as_real(spectrum)
    power = parts.square().sum(-1, keepdim=True)
    return parts * (power + MAGNITUDE_FLOOR**2).pow(-0.25)


def _expanded(parts: Tensor) -> Tensor:
    """The inverse, z |z|: [B, F, N, 2] -> complex [B, F, N]."""
    magnitude = (parts.square().sum(-1, keepdim=True) + MAGNITUDE_FLOOR).sqrt()
    return torch.view_as_complex((parts * magnitude).contiguous())
