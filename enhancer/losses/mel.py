"""Multi-scale mel loss of the DAC paper."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from enhancer.signal.mel_distance import mel_distance
from enhancer.signal.types import WaveBatch


class MultiScaleMel:
    """`enhancer.signal.mel_distance`, averaged over the rows."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> scalar."""
        return mel_distance(estimate, target, self.rate_hz).mean()
