"""The two stages of a plucked string's decay: what falls fast at first, and what rings on.

A string moves in two directions, and the bridge takes energy from one of them far faster than from the other (G.
Weinreich, "Coupled piano strings", 1977). So a note is two loops of one pitch that ring side by side: the history is
split into what either begins with, and their sum is what is heard. `Stages` learns, by one rule for all octave bands,
how far the slow part of a band begins below the whole, and how much faster the rest goes. Neither loop ever gains.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.models.string_filter import FIT_HZ, OCTAVES_HZ, BandSections, at_frequencies, band_places

UNITS = 8
FIRST_DROP = -2.0
"""softplus of it, 0.13 nepers, is where training begins."""
FIRST_RATIO, LARGEST_RATIO = 4.0, 4.0
"""Of the losses of both stages less 1: where training begins, and the factor that it learns at most."""
LINE_SECONDS = 4.0
MIDDLE_OCTAVE = 2.5
PER_BAND = 2
"""Inputs of a band beside the features of the note: octaves above f0, and its loss against that at f0."""

PerBand = Float[Tensor, "batch band"]
PerRow = Float[Tensor, " batch"]


class Stages(nn.Module):
    """For each band how far its slow stage begins below the history, and by how much the fast one loses more.

    Args:
        num_features: of a note, beside its T60.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.hear = nn.Linear(PER_BAND + num_features, UNITS)
        self.tell = nn.Linear(UNITS, 2)
        self.slope = nn.Linear(PER_BAND, 2, bias=False)
        nn.init.zeros_(self.tell.weight)
        nn.init.zeros_(self.slope.weight)
        with torch.no_grad():
            self.tell.bias.copy_(torch.tensor([FIRST_DROP, 0.0]))

    def forward(
        self, features: Float[Tensor, "batch feature"], f0_hz: PerRow, loss: PerBand
    ) -> tuple[PerBand, PerBand]:
        """(nepers of the drop, logarithm of the ratio of losses). `loss`: of the slow stage, nepers a period."""
        octaves = torch.log2(torch.tensor(OCTAVES_HZ, dtype=torch.float64) / f0_hz.double()[:, None])
        at_f0 = at_frequencies(loss, band_places(f0_hz), f0_hz[:, None])
        own = torch.stack([(octaves - MIDDLE_OCTAVE) / 2, (loss / at_f0).log() / 2], -1).to(features)
        note = features[:, None].expand(-1, own.shape[1], -1)
        told = self.tell(torch.tanh(self.hear(torch.cat([own, note], -1)))) + self.slope(own)
        told = told.double()
        extra = FIRST_RATIO * torch.exp(math.log(LARGEST_RATIO) * torch.tanh(told[..., 1]))
        return nn.functional.softplus(told[..., 0]), torch.log1p(extra)


@torch.no_grad()
def slower(drop: PerBand, log_ratio: PerBand, loss: PerBand, f0_hz: PerRow) -> PerBand:
    """Logarithm of what `loss` of the slow stage has to be multiplied by for the line through both to be its own.

    The line through the sum of two exponentials, over the first LINE_SECONDS or 60 dB, is steeper than the slower of
    them: with drop 0 or a ratio of 1 nothing is changed.
    """
    rate = (loss * f0_hz.double()[:, None]).detach()
    time = (3 * math.log(10) / rate).clamp_max(LINE_SECONDS)[..., None] * torch.linspace(0, 1, 65).double()
    time_off = time - time.mean(-1, keepdim=True)
    slow, ratio = torch.exp(-drop)[..., None], log_ratio.exp()[..., None]
    change = torch.zeros_like(rate)
    for _ in range(8):
        exponent = -(rate * change.exp())[..., None] * time
        level = (slow * exponent.exp() + (1 - slow) * (ratio * exponent).exp()).log()
        slope = (time_off * level).sum(-1) / time_off.square().sum(-1)
        change = change + (rate / -slope).log()
    return change


def later_drop(drop: PerBand, log_ratio: PerBand, loss: PerBand, periods: PerRow) -> PerBand:
    """The drop that is still to come when the note has rung for `periods`, nepers."""
    slow = torch.exp(-drop)
    fast = (1 - slow) * torch.exp(-loss * torch.expm1(log_ratio) * periods[:, None])
    return torch.log1p(fast / slow.clamp_min(1e-6))


def split_history(
    history: Float[Tensor, "batch past"], drop: PerBand, f0_hz: PerRow, sections: BandSections
) -> tuple[Float[Tensor, "batch past"], Float[Tensor, "batch past"]]:
    """(slow, fast), which make the history together: slow is what filters that take `drop` nepers leave of it."""
    grid = torch.tensor(FIT_HZ, dtype=torch.float64).clamp_max(0.48 * sections.rate_hz)
    grid = grid.expand(len(history), -1)
    wanted = at_frequencies(drop.clamp_min(1e-6), band_places(f0_hz), grid)
    nepers, base = sections.fit(wanted, grid, torch.ones_like(grid), torch.zeros_like(grid))
    # Neither stage takes DC out here: the loops do.
    nepers = torch.cat([nepers[:, :-1], torch.zeros_like(nepers[:, -1:])], 1)
    size = 2 * history.shape[1]
    hz = torch.fft.rfftfreq(size, 1 / sections.rate_hz, dtype=torch.float64)
    response = (1 + torch.expm1(-nepers)[:, None] * sections.response(hz)).prod(-1)
    spectrum = torch.fft.rfft(history.double(), n=size) * response * torch.exp(-base)[:, None]
    slow = torch.fft.irfft(spectrum, n=size)[:, : history.shape[1]].to(history)
    return slow, history - slow
