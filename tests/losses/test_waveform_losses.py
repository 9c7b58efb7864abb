"""Waveform losses against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enhancer.losses.waveform import waveform_l1, waveform_mse


@pytest.mark.parametrize(
    ("loss", "definition"),
    [(waveform_l1, lambda e, t: np.mean(np.abs(e - t))), (waveform_mse, lambda e, t: np.mean((e - t) ** 2))],
)
def test_a_loss_is_its_definition_and_the_mean_over_ranks(loss, definition, random):
    estimate, target = torch.randn(2, 8, 50, generator=random)
    value = loss(estimate, target).item()
    assert value == pytest.approx(definition(estimate.numpy(), target.numpy()), rel=1e-6)
    halves = [loss(estimate[part], target[part]).item() for part in (slice(4), slice(4, 8))]
    assert value == pytest.approx(np.mean(halves), rel=1e-6)


@pytest.mark.parametrize("loss", [waveform_l1, waveform_mse])
def test_half_precision_estimates_are_compared_in_float32(loss, random):
    estimate, target = torch.randn(2, 2, 1000, generator=random)
    assert loss(estimate.bfloat16(), target).dtype == torch.float32
