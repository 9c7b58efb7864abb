"""Losses on samples."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from enhancer.signal.types import WaveBatch


def waveform_l1(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Mean absolute error over samples and rows, computed in float32."""
    return F.l1_loss(estimate.float(), target.float())


def waveform_mse(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Mean squared error over samples and rows, computed in float32."""
    return F.mse_loss(estimate.float(), target.float())
