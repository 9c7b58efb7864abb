"""Discriminators of waveforms: by period, and by spectrogram at several resolutions.

J. Kong, J. Kim, J. Bae, "HiFi-GAN" (2020), section 2.3, for the first; W. Jang et al., "UnivNet" (2021), section 2.2,
for the second, here on windowed and compressed magnitudes: in linear ones only the loudest bins count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from enhancer.signal.spectral_distance import FLOOR_DB, Resolution, noise_power
from enhancer.signal.stft import power_spectrogram
from enhancer.signal.types import WaveBatch

SLOPE = 0.1
COMPRESSION = 0.3
"""Power of magnitudes that is judged."""
Judgement = tuple[Tensor, list[Tensor]]
"""Scores, above 0 for real, and the features that led to them; the batch is the first axis of each."""


class _Stack(nn.Module):
    """Convolutions with leaky ReLUs, each a feature, and a last one for the scores."""

    def __init__(self, convolutions: Sequence[nn.Conv2d], last: nn.Conv2d) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(weight_norm(each) for each in convolutions)
        self.last = weight_norm(last)

    def forward(self, image: Tensor) -> Judgement:
        features = []
        for convolution in self.convolutions:
            image = F.leaky_relu(convolution(image), SLOPE)
            features.append(image)
        return self.last(image).flatten(1), features


class PeriodDiscriminator(nn.Module):
    """Sees a waveform as rows of `period` samples, and looks along the columns."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        channels = [1, *(width << level for level in range(5))]
        strides = (3, 3, 3, 3, 1)
        self.stack = _Stack(
            [
                nn.Conv2d(inputs, outputs, (5, 1), (stride, 1), (2, 0))
                for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides, strict=True)
            ],
            nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)),
        )

    def forward(self, wave: WaveBatch) -> Judgement:
        missing = -wave.shape[-1] % self.period
        rows = F.pad(wave[:, None], (0, missing), mode="reflect").unflatten(-1, (-1, self.period))
        return self.stack(rows)


class ResolutionDiscriminator(nn.Module):
    """Sees the compressed magnitudes of a Hann-windowed STFT."""

    def __init__(self, resolution: Resolution, width: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.floor = noise_power(FLOOR_DB, resolution.win_length)
        # Frames overlap by three quarters, so half of them say all.
        strides = ((2, 2), (1, 2), (2, 2), (1, 2))
        self.stack = _Stack(
            [
                nn.Conv2d(1 if place == 0 else width, width, (3, 9), stride, (1, 4))
                for place, stride in enumerate(strides)
            ]
            + [nn.Conv2d(width, width, (3, 3), padding=1)],
            nn.Conv2d(width, 1, (3, 3), padding=1),
        )

    def forward(self, wave: WaveBatch) -> Judgement:
        of = self.resolution
        power = power_spectrogram(wave, of.win_length, of.hop_length, of.n_fft)
        # The floor keeps the slope of the root finite at silence.
        return self.stack(power.clamp(min=self.floor).pow(COMPRESSION / 2)[:, None])


class WaveDiscriminator(nn.Module):
    """All of them: a waveform [B, T] to one judgement each.

    Args:
        periods: samples of a row, of each discriminator by period; primes overlap least.
        resolutions: of the discriminators by spectrogram.
        width: channels of the first layer by period; the fifth has sixteen times as many, HiFi-GAN's 1024 at 64.
        spectral_width: channels by spectrogram.
    """

    def __init__(
        self, periods: Sequence[int], resolutions: Sequence[Resolution], width: int, spectral_width: int
    ) -> None:
        super().__init__()
        by_period = [PeriodDiscriminator(period, width) for period in periods]
        by_resolution = [ResolutionDiscriminator(each, spectral_width) for each in resolutions]
        self.parts = nn.ModuleList([*by_period, *by_resolution])

    def forward(self, wave: WaveBatch) -> list[Judgement]:
        return [part(wave) for part in self.parts]


def rows_of(judgements: Sequence[Judgement], rows: slice) -> list[Judgement]:
    """The judgements of some rows of a batch."""
    return [(scores[rows], [feature[rows] for feature in features]) for scores, features in judgements]
