"""What a restored recording is judged by beside its distance: how high it reaches, and how loud it is."""

from __future__ import annotations

import torch

from enhancer.signal.average_spectrum import average_power
from enhancer.signal.precision import widest_float
from enhancer.signal.types import PerRow, WaveBatch

WINDOW_SAMPLES = 2048
BELOW_DB = 60.0
"""A band whose density lies so far below that of the loudest one is empty."""
BAND_HZ = 200.0
SILENT_DBFS = -120.0


def bandwidth_hz(wave: WaveBatch, rate_hz: int) -> PerRow:
    """Up to where a recording reaches: the top of the highest 200 Hz band that is within BELOW_DB of the loudest.

    0 for silence.
    """
    frequency, power = average_power(wave, rate_hz, WINDOW_SAMPLES)
    bins = max(1, round(BAND_HZ / (rate_hz / WINDOW_SAMPLES)))
    count = power.shape[-1] // bins
    bands = power[:, : count * bins].reshape(len(power), count, bins).mean(-1)
    loudest = bands.amax(-1, keepdim=True)
    is_heard = (bands > loudest * 10 ** (-BELOW_DB / 10)) & (loudest > 0)
    place = torch.arange(1, count + 1, device=wave.device)
    top = (is_heard * place).amax(-1) * bins
    step = float(frequency[1] - frequency[0])
    return (top * step).float().clamp(max=rate_hz / 2)


def restored_share(own: PerRow, before: PerRow, whole: PerRow, least_hz: float) -> PerRow:
    """Which share of what `before` lacks of `whole` is there again, at most 1. Hiss counts as well as what was lost.

    NaN where less than `least_hz` is lacking.
    """
    lost = whole - before
    share = ((own - before) / lost.clamp(min=1.0)).clamp(max=1.0)
    return torch.where(lost >= least_hz, share, torch.nan)


def level_db(wave: WaveBatch) -> PerRow:
    """RMS of each row, dBFS, at least SILENT_DBFS."""
    wave = wave.to(widest_float(wave.device))
    return 10 * wave.square().mean(-1).clamp(min=10 ** (SILENT_DBFS / 10)).log10().float()
