"""A vocoder that works at the rate of the mel frames and gives an STFT, which is inverted to the waveform.

H. Siuzdak, "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders for high-quality audio
synthesis" (2023): ConvNeXt blocks at one rate throughout, and a last layer for magnitude and phase of each bin.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.models.mel_autoencoder import FrameNetwork
from enhancer.signal.stft import Stft
from enhancer.signal.types import WaveBatch

LARGEST_LOG_MAGNITUDE = 10.0
PHASE_SPREAD = 1.5
INCOHERENT_LOSS = math.log(2)
"""What frames of unrelated phases lose where they overlap by three quarters, in nepers: 6 dB."""


class SpectralVocoder(nn.Module):
    """Features of frames to a waveform.

    Magnitudes start as those of the envelope that comes with the features, and phases spread over the circle, so that
    sound is about as loud as it should be from the first step on. Phases are those at the centre of a frame.

    Args:
        inputs: channels of a frame.
        width: channels of the blocks.
        num_blocks: how many.
        scale: width inside the pointwise layers of a block against `width`.
        window_samples: of the STFT, and length of its FFT.
        hop_samples: of the frames.
        recompute_blocks: see `FrameNetwork`.
    """

    def __init__(
        self,
        inputs: int = 160,
        width: int = 768,
        num_blocks: int = 8,
        scale: float = 3.0,
        window_samples: int = 1680,
        hop_samples: int = 420,
        recompute_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.stft = Stft(window_samples, hop_samples)
        self.network = FrameNetwork(
            inputs, width, 2 * self.stft.num_bins, num_blocks, scale, recompute_blocks
        )
        self.reach_frames = self.network.reach_frames
        with torch.no_grad():
            weight, bias = self.network.head.weight, self.network.head.bias
            weight[: self.stft.num_bins].zero_()
            weight[self.stft.num_bins :].normal_(std=PHASE_SPREAD * width**-0.5)
            bias.zero_()
            bias[: self.stft.num_bins] = INCOHERENT_LOSS

    def forward(
        self,
        features: Float[Tensor, "batch frame channel"],
        log_envelope: Float[Tensor, "batch frame freq"],
        length: int,
    ) -> WaveBatch:
        """[B, N, C] and natural logarithms of magnitudes [B, N, F] -> [B, length], N = ceil(length / hop) + 1."""
        change, phase = self.network(features).float().chunk(2, dim=-1)
        log_magnitude = (log_envelope + change).clamp(max=LARGEST_LOG_MAGNITUDE)
        # A frame's FFT counts phase from its first sample; half a window later is a turn of pi for each bin.
        turn = torch.arange(phase.shape[-1], device=phase.device) % 2 * math.pi
        spectrum = torch.polar(log_magnitude.exp(), phase + turn)
        return self.stft.inverse(spectrum.transpose(1, 2), length)
