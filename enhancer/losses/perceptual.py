"""A learned perceptual distance as a loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.signal.torchaudio import torchaudio
from enhancer.signal.types import WaveBatch

FULL_SCALE = 32_768.0


class PerceptualDistance:
    """Mean over the rows of what `network` says of target and estimate at its own rate, with full scale at 32768.

    Args:
        network: (target [B, T], estimate [B, T]) -> [B], such as `enhancer.models.cdpam.Cdpam`. It is frozen here.
        network_hz: its rate.
        rate_hz: of the waveforms, which are resampled (windowed sinc, differentiable).
    """

    def __init__(self, network: nn.Module, network_hz: int, rate_hz: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self.network_hz, self.rate_hz = network_hz, rate_hz

    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""
        self.network.to(device)

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> scalar, in float32: the network's normalisation would not survive bf16."""
        with torch.autocast(estimate.device.type, enabled=False):
            return self.network(self._heard(target), self._heard(estimate)).mean()

    def _heard(self, wave: Tensor) -> Tensor:
        wave = wave.float()
        if self.rate_hz != self.network_hz:
            wave = torchaudio.functional.resample(wave, self.rate_hz, self.network_hz)
        return wave * FULL_SCALE
