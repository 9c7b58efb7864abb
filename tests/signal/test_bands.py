"""The warped frequency axis against its definition: constants stay, lines stay, bands are a quarter ERB apart."""

from __future__ import annotations

import math

import pytest
import torch

from enhancer.signal.bands import Bands

RATE_HZ, NUM_BINS = 44_100, 841
BIN_HZ = RATE_HZ / 2 / (NUM_BINS - 1)


@pytest.fixture
def bands() -> Bands:
    return Bands(NUM_BINS, RATE_HZ, 4000.0)


def test_the_top_of_the_spectrum_takes_few_bands(bands: Bands) -> None:
    """ERB-rate 21.4 log10(1 + 0.00437 f): four bands per unit between 4 kHz and 22.05 kHz."""
    units = 21.4 * math.log10((1 + 0.00437 * 22_050) / (1 + 0.00437 * 4000))
    singles = math.floor(4000 / BIN_HZ) + 1
    assert singles < bands.num_bands
    assert bands.num_bands - singles == pytest.approx(4 * units, abs=1)


def test_a_constant_stays_a_constant_both_ways(bands: Bands) -> None:
    torch.testing.assert_close(bands.gather(torch.ones(2, NUM_BINS, 3)), torch.ones(2, bands.num_bands, 3))
    torch.testing.assert_close(bands.spread(torch.ones(2, bands.num_bands, 3)), torch.ones(2, NUM_BINS, 3))


def test_a_line_stays_a_line_within_the_slopes_of_the_bands(bands: Bands) -> None:
    """The first and the last band have one slope, a third of 4 and of 23 bins off; others grow by under 4 %."""
    ramp = torch.arange(NUM_BINS, dtype=torch.float32)[:, None]
    centres = bands.gather(ramp)
    assert bool((centres.diff(dim=0) > 0).all())
    again = bands.spread(centres)
    inside = int(centres[-2])
    torch.testing.assert_close(again[:inside], ramp[:inside], atol=4 / 3, rtol=0)
    low = math.floor(4000 / BIN_HZ)
    torch.testing.assert_close(again[:low], ramp[:low])


def test_below_the_split_each_bin_is_its_own_band(bands: Bands) -> None:
    bins = torch.randn(NUM_BINS, 5, generator=torch.Generator().manual_seed(0))
    low = math.floor(4000 / BIN_HZ)
    assert torch.equal(bands.gather(bins)[:low], bins[:low])
    assert torch.equal(bands.spread(bands.gather(bins))[:low], bins[:low])


def test_a_band_hears_no_more_than_its_neighbours_reach(bands: Bands) -> None:
    """An impulse in one bin comes back within the two bands around it, about half an ERB to each side."""
    for place in (300, 500, 840):
        impulse = torch.zeros(NUM_BINS, 1)
        impulse[place] = 1
        back = bands.spread(bands.gather(impulse)).squeeze(1)
        reach = (back.abs() > 1e-9).nonzero().squeeze(1) - place
        erb_bins = 24.7 * (0.00437 * place * BIN_HZ + 1) / BIN_HZ
        assert reach.abs().max() <= 0.6 * erb_bins + 2


@pytest.mark.parametrize("split_hz", [22_050.0, 1e9])
def test_a_split_at_the_top_keeps_every_bin(split_hz: float) -> None:
    bands = Bands(NUM_BINS, RATE_HZ, split_hz)
    bins = torch.randn(2, NUM_BINS, 3)
    assert bands.num_bands == NUM_BINS
    assert bands.gather(bins) is bins and bands.spread(bins) is bins


@pytest.mark.parametrize(("num_bins", "rate_hz"), [(33, 8000), (401, 16_000), (2049, 96_000)])
@pytest.mark.parametrize("split_hz", [0.0, 1000.0, 4000.0])
def test_other_rates_and_windows(num_bins: int, rate_hz: int, split_hz: float) -> None:
    bands = Bands(num_bins, rate_hz, split_hz)
    constant = torch.ones(num_bins, 1, dtype=torch.float64)
    torch.testing.assert_close(bands.spread(bands.gather(constant)), constant, atol=1e-6, rtol=0)
    assert bands.num_bands <= num_bins


def test_gradients_are_the_transpose() -> None:
    small = Bands(33, 8000, 1000.0)
    bins = torch.randn(33, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: small.spread(small.gather(x)), (bins,))
