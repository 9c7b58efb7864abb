"""Losses of strings against decays whose error is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from enhancer.losses.string import DecayCurve, energy_gain, relative_l1, relative_mse
from enhancer.signal.decay import OCTAVE_CENTRES_HZ

RATE_HZ = 44_100


def tone(f0_hz: float, t60_seconds: float, seconds: float = 1.0, gain: float = 0.1) -> Tensor:
    time = torch.arange(round(seconds * RATE_HZ)).double() / RATE_HZ
    return (gain * torch.sin(2 * math.pi * f0_hz * time) * 10 ** (-3 * time / t60_seconds)).float()[None]


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_relative_errors_are_those_of_a_factor_at_any_level(level: float) -> None:
    target = level * tone(220.0, 2.0)
    assert relative_mse(0.7 * target, target).item() == pytest.approx(0.09, rel=1e-4)
    assert relative_l1(0.7 * target, target).item() == pytest.approx(0.3, rel=1e-4)


def test_each_row_counts_alike() -> None:
    target = torch.cat([tone(220.0, 2.0), 1e-3 * tone(110.0, 1.0)])
    estimate = torch.cat([target[:1], 2 * target[1:]])
    assert relative_l1(estimate, target).item() == pytest.approx(0.5, rel=1e-4)


def test_decay_curves_of_different_t60_part_by_the_difference_of_their_slopes() -> None:
    """T60 2 s against 3 s: 30 against 20 dB a second, over 1 s, seen at the middle of each frame."""
    loss = DecayCurve(RATE_HZ, OCTAVE_CENTRES_HZ, range_db=40.0)
    target, estimate = tone(350.0, 2.0), tone(350.0, 3.0)
    frames = loss.levels(target).shape[-1]
    middles = (torch.arange(frames) * 1024 + 2048) / RATE_HZ
    assert loss(estimate, target).item() == pytest.approx(float(10 * middles.mean()), abs=0.1)
    assert loss(target, target).item() == 0
    assert loss(1e-2 * estimate, 1e-2 * target).item() == pytest.approx(
        loss(estimate, target).item(), abs=0.05
    )


def test_the_level_of_a_sine_is_in_its_octave() -> None:
    levels = DecayCurve(RATE_HZ, OCTAVE_CENTRES_HZ).levels(tone(500.0, 1e6))[0].mean(-1)
    assert int(levels.argmax()) == 3
    assert levels[[0, 1, 5, 6]].max() < levels[3] - 60


def test_a_silent_band_has_finite_gradients() -> None:
    estimate = torch.zeros(1, 9000, requires_grad=True)
    DecayCurve(RATE_HZ, OCTAVE_CENTRES_HZ)(estimate, tone(220.0, 2.0)[:, :9000]).backward()
    assert estimate.grad.isfinite().all()


def test_energy_gain_is_that_of_growing_periods_only() -> None:
    """A period of 100.25 samples; growth by 1 dB a period costs ln(10) / 10, a decay nothing."""
    period = torch.tensor([100.25])
    time = torch.arange(20_000).double() / 100.25
    wave = torch.sin(2 * math.pi * 3 * time)
    growing = (1e-3 * wave * 10 ** (time / 20))[None, :8000].float()
    assert energy_gain(growing, period).item() == pytest.approx(math.log(10) / 10, rel=1e-3)
    decaying = (wave * 10 ** (-time / 20))[None, :8000].float()
    assert energy_gain(decaying, period).item() == pytest.approx(0, abs=1e-4)
    assert energy_gain(growing[:, :150], period).item() == 0
