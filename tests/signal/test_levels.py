"""Levels and gains against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enhancer.signal.levels import (
    SILENCE_DB,
    db_to_gain,
    gain_for_level,
    gain_for_snr,
    power_db,
    rms,
)


def test_a_sine_of_full_scale_is_3_db_below_full_scale():
    sine = torch.sin(2 * math.pi * 10 * torch.arange(1000) / 1000)
    assert rms(sine).item() == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert power_db(sine).item() == pytest.approx(-3.0103, abs=1e-3)


def test_digital_silence_is_at_the_floor():
    assert power_db(torch.zeros(3, 10)).tolist() == [-200.0] * 3


@settings(max_examples=30, deadline=None)
@given(gain_db=st.floats(-120, 120))
def test_gain_and_decibels_are_inverse(gain_db):
    gain = db_to_gain(torch.tensor([gain_db], dtype=torch.float64))
    assert 20 * math.log10(gain.item()) == pytest.approx(gain_db, abs=1e-9)


def test_the_noise_gain_gives_the_wanted_ratio(random):
    speech = torch.randn(4, 5000, generator=random) * torch.tensor([[1.0], [0.1], [0.01], [0.5]])
    noise = torch.randn(4, 5000, generator=random) * torch.tensor([[0.3], [0.9], [0.001], [0.5]])
    wanted = torch.tensor([-12.0, 0.0, 5.5, 12.0])
    scaled = noise * gain_for_snr(speech, noise, wanted)[:, None]
    measured = 10 * (speech.square().sum(-1) / scaled.square().sum(-1)).log10()
    torch.testing.assert_close(measured, wanted, atol=1e-3, rtol=0)


def test_where_either_is_silent_the_noise_keeps_its_level(random):
    loud = torch.randn(2, 100, generator=random)
    quiet = torch.stack([torch.zeros(100), torch.full((100,), 0.99 * 10 ** (SILENCE_DB / 20))])
    assert gain_for_snr(quiet, loud, torch.zeros(2)).tolist() == [1.0, 1.0]
    assert gain_for_snr(loud, quiet, torch.zeros(2)).tolist() == [1.0, 1.0]


def test_the_level_gain_reaches_the_level_but_not_beyond_its_limit():
    wave = torch.tensor([[0.5], [0.001], [0.0], [0.25], [1e-6]]).expand(-1, 100)
    level_db = torch.tensor([-20.0, -20.0, -20.0, math.nan, -20.0])
    gain = gain_for_level(wave, level_db, max_gain_db=30.0)
    torch.testing.assert_close(gain, torch.tensor([0.2, 10**1.5, 1.0, 1.0, 1.0]))
