"""Losses over what a string does on its own, per row relative to the target: the quiet tail counts like the start."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.stft import hann_window
from enhancer.signal.types import PerRow, WaveBatch

SMALLEST = 1e-12


def relative_mse(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Squared error over the energy of the target, per row, averaged over the rows."""
    error, energy = (estimate - target).square().sum(-1), target.square().sum(-1)
    return (error / energy.clamp_min(SMALLEST)).mean()


def relative_l1(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Absolute error over the absolute sum of the target, per row, averaged over the rows."""
    error, size = (estimate - target).abs().sum(-1), target.abs().sum(-1)
    return (error / size.clamp_min(SMALLEST)).mean()


def energy_gain(estimate: WaveBatch, period: PerRow) -> Float[Tensor, ""]:
    """Mean of max(0, ln(E[k + 1] / E[k])) over the periods k of each row, E the energy of a period.

    `period`, in samples, need not be whole: the running sum of energy is read between samples. 0 for a row of less
    than two periods.
    """
    gains = []
    for row, length in zip(estimate, period.tolist(), strict=True):
        total = torch.nn.functional.pad(row.double().square().cumsum(0), (1, 0))
        edges = torch.arange(0, len(row) + 1e-6, length, dtype=torch.float64, device=row.device)
        place = edges.floor().long().clamp_max(len(row) - 1)
        at_edges = total[place] + (edges - place) * (total[place + 1] - total[place])
        level = (at_edges.diff() + SMALLEST).log()
        gain = level.diff().clamp_min(0)
        gains.append(gain.mean() if len(gain) else gain.sum())
    return torch.stack(gains).mean().to(estimate)


class DecayCurve:
    """Mean absolute difference of levels in dB, over octave bands and time.

    Levels are those of STFT frames, summed over the bins of each band. Where the target is more than `range_db` below
    its loudest counts nothing, and neither does what lies below that in the estimate.

    Args:
        centres_hz: of octave bands, ascending; the lowest begins at 20 Hz, the highest ends at half of `rate_hz`.
        window: samples of a frame, or the greatest power of two within the waves; a quarter of it is the hop.
    """

    def __init__(
        self, rate_hz: int, centres_hz: tuple[float, ...], window: int = 4096, range_db: float = 60.0
    ) -> None:
        self.rate_hz, self.centres_hz, self.window, self.range_db = rate_hz, centres_hz, window, range_db

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> dB."""
        wanted = self.levels(target)
        floor = wanted.amax((-2, -1), keepdim=True) - self.range_db
        is_heard = (wanted > floor).to(wanted)
        difference = torch.maximum(self.levels(estimate), floor) - wanted
        return ((difference.abs() * is_heard).sum((-2, -1)) / is_heard.sum((-2, -1))).mean()

    def levels(self, wave: WaveBatch) -> Float[Tensor, "batch band frame"]:
        """dB of each band in each frame."""
        size = min(self.window, 1 << int(math.log2(wave.shape[-1])))
        window = hann_window(size, wave.dtype, wave.device)
        power = torch.fft.rfft(wave.unfold(-1, size, size // 4) * window).abs().square()
        hz = torch.fft.rfftfreq(size, 1 / self.rate_hz, device=wave.device)
        edges = torch.tensor(
            [20.0, *(centre * 2**0.5 for centre in self.centres_hz[:-1])], device=wave.device
        )
        band = torch.bucketize(hz, edges, right=True) - 1
        belongs = (band[:, None] == torch.arange(len(self.centres_hz), device=wave.device)).to(wave)
        energy = (power @ belongs).transpose(-1, -2) / window.square().sum() / size
        return 10 * (energy + SMALLEST).log10()
