"""Scale-invariant signal-to-distortion ratio as a loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.precision import widest_float
from enhancer.signal.types import WaveBatch

SILENT_POWER = 1e-10
"""Mean square (-100 dBFS) below which a target counts as silent and its row as 0."""
FLOOR_DB = -10.0
"""Where the value levels off for a hopeless row."""
LIMIT_DB = 50.0
"""Where it ends for a perfect one."""


def negative_si_sdr(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Negative SI-SDR in dB with a soft floor, averaged over rows: -10 log10(SI-SDR + 10^(FLOOR_DB / 10)).

    J. Le Roux et al., "SDR - half-baked or well done?" (2019), equation 3. Every row counts alike, whatever its level,
    which a difference of waveforms does not offer. Without the floor the slope grows as the estimate and the target
    have less in common: ten times as steep at -20 dB as at 0 dB, and reverberant rows would drown all others. A row
    with a silent target is 0.
    """
    estimate, target = estimate.float(), target.float()
    exact = widest_float(target.device)
    energy = target.square().sum(-1, dtype=exact)
    dot = (estimate * target).sum(-1, dtype=exact)
    # |e|^2 = |s|^2 + |n|^2 with s the projection on the target, so the ratio needs no third waveform.
    explained = dot.square() / energy.clamp_min(torch.finfo(torch.float32).tiny)
    distortion = (estimate.square().sum(-1, dtype=exact) - explained).clamp_min(0)
    floor = SILENT_POWER * 1e-3 * target.shape[-1]
    ratio = (explained + floor) / (distortion + floor) + 10 ** (FLOOR_DB / 10)
    is_heard = energy > SILENT_POWER * target.shape[-1]
    return -torch.where(is_heard, (10 * torch.log10(ratio)).clamp(max=LIMIT_DB), 0.0).mean().float()
