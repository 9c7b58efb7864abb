"""Scale-invariant signal-to-distortion ratio as a loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.types import WaveBatch

SILENT_POWER = 1e-10
"""Mean square (-100 dBFS) below which a target counts as silent and its row as 0."""
LIMIT_BELS = 5.0


def negative_si_sdr(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Negative SI-SDR in bels (tenths of the dB value), averaged over rows.

    J. Le Roux et al., "SDR - half-baked or well done?" (2019), equation 3. Every row counts alike, whatever its level
    or its noise, which a difference of waveforms does not offer. A row is kept within +-LIMIT_BELS, since neither a
    perfect nor a hopeless row should set the direction; a row with a silent target is 0.
    """
    estimate, target = estimate.float(), target.float()
    energy = target.square().sum(-1)
    dot = (estimate * target).sum(-1)
    # |e|^2 = |s|^2 + |n|^2 with s the projection on the target, so the ratio needs no third waveform.
    explained = dot.square() / energy.clamp_min(torch.finfo(torch.float32).tiny)
    distortion = (estimate.square().sum(-1) - explained).clamp_min(0)
    floor = SILENT_POWER * 1e-3 * target.shape[-1]
    ratio_bels = torch.log10((explained + floor) / (distortion + floor)).clamp(-LIMIT_BELS, LIMIT_BELS)
    is_heard = energy > SILENT_POWER * target.shape[-1]
    return -torch.where(is_heard, ratio_bels, 0.0).mean()
