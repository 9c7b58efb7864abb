"""A U-Net that masks an STFT: waveform in, waveform out.

The block structure and widths are those of the denoiser of resemble-enhance (10.6 M parameters at width 16).
What differs, and why:

- A level halves the spectrogram before its block, not after it: the same parameters at about a quarter of the
  arithmetic, so that a laptop trains it.
- Normalisation is over the channels of one bin. Statistics over time would make the output depend on how a long
  recording is cut into chunks.
- It works on single bins at the bottom and on bands above (`enhancer.signal.bands`), where most bins lie and little
  happens: a third of the arithmetic.
- The mask is one complex factor a band, and the network starts as the identity: residual branches and the head start
  at zero, which is mask 1 and rotation 0.
- It hears a compressed spectrum and each bin's place on the frequency axis; linear magnitudes span 100 dB.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.signal.bands import Bands
from enhancer.signal.stft import Stft

NUM_LEVELS = 4
NUM_FEATURES = 4
NUM_MASK_CHANNELS = 2
CONVS_PER_BLOCK = 5
MAGNITUDE_COMPRESSION = 0.3
MAGNITUDE_FLOOR = 1e-5
LOG_MAGNITUDE_SCALE = 0.3


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every bin: [B, C, F, N] -> [B, C, F, N]."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, features: Tensor) -> Tensor:
        # In channels-last memory this permutation is free and the channels lie side by side.
        channels_last = features.permute(0, 2, 3, 1)
        normalised = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias)
        return normalised.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions; starts as the identity."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.first_norm = ChannelNorm(num_channels)
        self.first_conv = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.second_norm = ChannelNorm(num_channels)
        self.second_conv = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        _start_at_zero(self.second_conv)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.first_conv(F.gelu(self.first_norm(features)))
        return features + self.second_conv(F.gelu(self.second_norm(hidden)))


def _start_at_zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def _block(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """One convolution and two residual blocks: CONVS_PER_BLOCK convolutions."""
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 3, padding=1),
        ResidualBlock(num_outputs),
        ResidualBlock(num_outputs),
    )


class MaskUNet(nn.Module):
    """Complex-mask U-Net.

    `context_samples`: samples on each side of a stretch of audio that can influence it. A recording may be cut into
    chunks that start at multiples of `stride_samples`, with that context around them, without changing the output.
    """

    def __init__(
        self,
        width: int = 16,
        window_samples: int = 1680,
        hop_samples: int = 420,
        rate_hz: int = 44_100,
        split_hz: float = 4000.0,
    ) -> None:
        super().__init__()
        self.stft = Stft(window_samples=window_samples, hop_samples=hop_samples)
        self.bands = Bands(self.stft.num_bins, rate_hz, split_hz)
        widths = [width << level for level in range(NUM_LEVELS + 1)]
        self.input_conv = nn.Conv2d(NUM_FEATURES, width, 3, padding=1)
        self.encoder = nn.ModuleList(_block(a, b) for a, b in pairwise(widths))
        self.middle = nn.Sequential(_block(widths[-1], widths[-1]), _block(widths[-1], widths[-1]))
        self.decoder = nn.ModuleList(_block(b, a) for a, b in reversed(list(pairwise(widths))))
        self.head_conv = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, NUM_MASK_CHANNELS, 1)
        _start_at_zero(self.head)

        self.frames_multiple = 1 << NUM_LEVELS
        self.stride_samples = self.frames_multiple * hop_samples
        levels = sum(2 * CONVS_PER_BLOCK << level for level in range(1, NUM_LEVELS + 1))
        middle = 2 * CONVS_PER_BLOCK << NUM_LEVELS
        # Input and head convolutions, and the nearest-neighbour grid of the deepest level.
        context_frames = levels + middle + 2 + self.frames_multiple
        window_frames = 2 * -(-window_samples // hop_samples)
        frames = -(-(context_frames + window_frames) // self.frames_multiple) * self.frames_multiple
        self.context_samples = frames * hop_samples

    def forward(self, mixture: Tensor) -> Tensor:
        """Estimate of the clean signal: mixture [B, T] -> [B, T]."""
        spectrum = self.stft(mixture)
        features = self.features(spectrum)
        num_bands, num_frames = features.shape[-2:]
        padding = (0, -num_frames % self.frames_multiple, 0, -num_bands % self.frames_multiple)
        mask = self.network(F.pad(features, padding))[..., :num_bands, :num_frames]
        return self.stft.inverse(_masked(spectrum, self.bands.spread(mask.float())), length=mixture.shape[-1])

    def features(self, spectrum: Tensor) -> Tensor:
        """What the network hears: spectrum [B, F, N] -> [B, 4, K, N] with K bands.

        Log magnitude, compressed real and imaginary parts (|X|^0.3, phase kept), and the bins' axis from -1 to 1.
        """
        magnitude = (spectrum.real.square() + spectrum.imag.square() + MAGNITUDE_FLOOR**2).sqrt()
        compression = magnitude.pow(MAGNITUDE_COMPRESSION - 1)
        frequency = torch.linspace(-1, 1, spectrum.shape[-2], device=spectrum.device)[:, None]
        features = torch.stack(
            [
                magnitude.log() * LOG_MAGNITUDE_SCALE,
                spectrum.real * compression,
                spectrum.imag * compression,
                frequency.expand_as(magnitude),
            ],
            dim=1,
        )
        return self.bands.gather(features)

    def network(self, features: Tensor) -> Tensor:
        """Features [B, 4, K, N] -> mask [B, 2, K, N], real part less 1 and imaginary part.

        K and N are multiples of `frames_multiple`.
        """
        hidden = self.input_conv(features.contiguous(memory_format=torch.channels_last))
        skips = []
        for block in self.encoder:
            skips.append(hidden)
            hidden = block(hidden[..., ::2, ::2])
        hidden = self.middle(hidden)
        for block in self.decoder:
            hidden = F.interpolate(block(hidden), scale_factor=2.0, mode="nearest") + skips.pop()
        return self.head(F.gelu(self.head_conv(hidden)))


def _masked(spectrum: Tensor, mask: Tensor) -> Tensor:
    """Each bin times (1 + m0) + i m1. Linear on purpose: a saturating mask that has sunk to 0 cannot come back."""
    return spectrum * torch.complex(1 + mask[:, 0], mask[:, 1])
