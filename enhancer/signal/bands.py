"""A frequency axis that is fine where the ear is: single bins at the bottom, ever wider bands above."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

BANDS_PER_ERB = 4


class Bands:
    """Bins of an STFT below `split_hz`, and above it overlapping triangular bands a quarter ERB apart.

    An ERB is the width of an auditory filter, 24.7 (0.00437 f + 1) Hz: B. Glasberg and B. Moore, "Derivation of
    auditory filter shapes from notched-noise data" (1990). The top of a 44.1 kHz spectrum holds four fifths of its bins
    and hardly any of its energy; a network on bands does a quarter of the work.

    `spread` interpolates between the centres of bands (its weights add up to 1 at each bin, so a constant stays one),
    `gather` averages with the same weights. A plain class: constants in a module's buffers would be rounded by a cast
    of the module to bf16.

    Args:
        num_bins: bins of the spectrum, 0 Hz to half of `rate_hz`.
        split_hz: where bins end and bands begin; at or above half of `rate_hz` every bin stands alone.
    """

    def __init__(self, num_bins: int, rate_hz: int, split_hz: float) -> None:
        centres = _centres(num_bins, rate_hz / 2 / (num_bins - 1), split_hz)
        self.num_bins = num_bins
        self.num_bands = len(centres)
        self.num_single = sum(1 for place, centre in enumerate(centres) if place == centre)
        if self.num_single == self.num_bands:
            return
        # The last single bin is the lower neighbour of the first band's slope.
        self.num_single -= 1
        spread = _interpolation(centres[self.num_single :], range(self.num_single, num_bins))
        self._spread = spread.float()
        self._gather = (spread / spread.sum(0)).T.float().contiguous()

    def gather(self, bins: Float[Tensor, "*batch bin frame"]) -> Float[Tensor, "*batch band frame"]:
        """Weighted means of `bins` over each band."""
        if self.num_bands == self.num_bins:
            return bins
        low, high = bins.split([self.num_single, self.num_bins - self.num_single], dim=-2)
        return torch.cat([low, self._on(bins, "_gather") @ high], dim=-2)

    def spread(self, bands: Float[Tensor, "*batch band frame"]) -> Float[Tensor, "*batch bin frame"]:
        """A value for each bin, on straight lines between the centres of bands."""
        if self.num_bands == self.num_bins:
            return bands
        low, high = bands.split([self.num_single, self.num_bands - self.num_single], dim=-2)
        return torch.cat([low, self._on(bands, "_spread") @ high], dim=-2)

    def _on(self, like: Tensor, name: str) -> Tensor:
        matrix: Tensor = getattr(self, name)
        if matrix.device != like.device:
            matrix = matrix.to(like.device)
            setattr(self, name, matrix)
        return matrix.to(like.dtype)


def _centres(num_bins: int, bin_hz: float, split_hz: float) -> list[float]:
    """Centres of bins and bands, in bins; the last one is the last bin."""
    last = float(num_bins - 1)
    centres = [float(place) for place in range(num_bins) if place * bin_hz <= split_hz]
    while centres[-1] < last:
        hz = _hz_of_erb(_erb_of_hz(centres[-1] * bin_hz) + 1 / BANDS_PER_ERB)
        centres.append(min(max(hz / bin_hz, centres[-1] + 1), last))
    return centres


def _erb_of_hz(hz: float) -> float:
    return 21.4 * math.log10(1 + 0.00437 * hz)


def _hz_of_erb(erb: float) -> float:
    return (10 ** (erb / 21.4) - 1) / 0.00437


def _interpolation(centres: list[float], bins: range) -> Float[Tensor, "bin band"]:
    """Weights of linear interpolation from values at `centres` to `bins`."""
    knots = torch.tensor(centres, dtype=torch.float64)
    places = torch.arange(bins.start, bins.stop, dtype=torch.float64)
    above = torch.searchsorted(knots, places, right=True).clamp(1, len(knots) - 1)
    share = (places - knots[above - 1]) / (knots[above] - knots[above - 1])
    weights = torch.zeros(len(bins), len(centres), dtype=torch.float64)
    row = torch.arange(len(bins))
    weights[row, above - 1] = 1 - share
    weights[row, above] = share
    return weights
