"""A 1-D ConvNeXt U-Net on the waveform: waveform in, waveform out.

It works on what is left of a waveform after pre-emphasis, which is about as loud at high frequencies as at low ones. An
error of the network, which is white at first, is then as far below the sound in every octave.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.models.convnext import ConvNextUNet

PREEMPHASIS = 0.97
NUM_DOUBLINGS = 9
"""De-emphasis goes 2^9 samples back, where what is left of a sample is 2e-7."""


class WaveUNet(nn.Module):
    """22 M parameters at the defaults.

    `context_samples`: samples on each side of a stretch of audio that can influence it. A recording may be cut into
    chunks that start at multiples of `stride_samples`, with that context around them, without changing the output.

    With `predict` difference the output is added to the input, and the network starts as the identity.
    """

    def __init__(
        self,
        channels: Sequence[int] = (1, 8, 64, 256, 512),
        blocks: Sequence[int] = (4, 4, 4, 4),
        factors: Sequence[int] = (8, 8, 4, 2),
        kernel_size: int = 7,
        scale_vs_channels: float = 4.0,
        predict: str = "difference",
        is_conditioned: bool = True,
    ) -> None:
        super().__init__()
        if channels[0] != 1:
            raise ValueError(f"channels begin with {channels[0]}; a waveform has 1")
        if predict not in ("signal", "difference"):
            raise ValueError(f"predict is {predict!r}; needed signal or difference")
        self.is_difference = predict == "difference"
        self.network = ConvNextUNet(
            channels,
            blocks,
            [(1, factor) for factor in factors],
            (1, kernel_size),
            scale_vs_channels,
            is_conditioned,
            starts_at_zero=self.is_difference,
        )
        self.stride_samples = self.network.multiple[1]
        self.context_samples = self.network.reach(1) + 2**NUM_DOUBLINGS

    def forward(self, mixture: Tensor, semitones: Tensor | None = None) -> Tensor:
        """Shifted recordings [B, T] and their semitones [B] -> repaired ones [B, T].

        Any T: silence is added at the end up to a whole number of strides, and cut off again.
        """
        length = mixture.shape[-1]
        padded = F.pad(mixture, (0, -length % self.stride_samples))
        output = self.network(_emphasised(padded)[:, None, :, None], semitones)[:, 0, :length, 0]
        output = _deemphasised(output.float())  # Of bf16 the bass would round away what is above it.
        return mixture + output if self.is_difference else output


def _emphasised(wave: Tensor) -> Tensor:
    """x[t] - a x[t - 1]: [B, T] -> [B, T]."""
    return wave - PREEMPHASIS * _delayed(wave, 1)


def _deemphasised(wave: Tensor) -> Tensor:
    """The sum of a^k x[t - k] over k below 2^NUM_DOUBLINGS, by doubling: [B, T] -> [B, T]."""
    for delay in (2**doubling for doubling in range(NUM_DOUBLINGS)):
        if delay < wave.shape[-1]:
            wave = wave + PREEMPHASIS**delay * _delayed(wave, delay)
    return wave


def _delayed(wave: Tensor, samples: int) -> Tensor:
    return F.pad(wave[..., :-samples], (samples, 0))
