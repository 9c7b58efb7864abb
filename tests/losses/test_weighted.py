"""The weighted sum of losses."""

from __future__ import annotations

import math

import pytest
import torch

from enhancer.losses.waveform import waveform_l1, waveform_mse
from enhancer.losses.weighted import WeightedLoss


def test_it_sums_the_terms_and_reports_each_raw_and_weighted(random):
    estimate, target = torch.randn(2, 3, 40, generator=random)
    estimate.requires_grad_()
    total, values = WeightedLoss({"l1": (2.0, waveform_l1), "mse": (0.5, waveform_mse)})(estimate, target)
    l1, mse = waveform_l1(estimate, target), waveform_mse(estimate, target)
    torch.testing.assert_close(total, 2 * l1 + 0.5 * mse)
    expected = {"l1": l1, "l1_weighted": 2 * l1, "mse": mse, "mse_weighted": 0.5 * mse}
    torch.testing.assert_close(values, {name: value.detach() for name, value in expected.items()})
    assert total.requires_grad and not any(value.requires_grad for value in values.values())


def test_a_term_of_weight_zero_is_never_computed(noise_wave):
    def explode(estimate, target):
        raise AssertionError("computed")

    _, values = WeightedLoss({"l1": (1.0, waveform_l1), "off": (0.0, explode)})(noise_wave, noise_wave)
    assert list(values) == ["l1", "l1_weighted"]


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(ValueError, match="'l1'"):
        WeightedLoss({"l1": (weight, waveform_l1)})


@pytest.mark.parametrize("terms", [{}, {"l1": (0.0, waveform_l1)}])
def test_a_loss_of_nothing_is_refused(terms):
    with pytest.raises(ValueError, match="nothing would be learned"):
        WeightedLoss(terms)
