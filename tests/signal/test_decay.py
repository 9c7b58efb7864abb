"""Decay measures against exponentials whose T60 is known, and against their definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from data_shards.synthetic_string import KarplusString
from enhancer.signal.decay import (
    LONGEST_T60_SECONDS,
    OCTAVE_CENTRES_HZ,
    end_dc,
    fit_decay,
    holds_partial,
    octave_levels,
    octave_t60,
    period_gains_db,
)

RATE_HZ = 44_100


def tone(hz, t60, seconds=3.0, amplitude=0.5):
    time = torch.arange(round(seconds * RATE_HZ), dtype=torch.float64) / RATE_HZ
    return amplitude * torch.sin(2 * math.pi * hz * time + 0.3) * 10 ** (-3 * time / t60)


@pytest.mark.parametrize("t60", [0.3, 0.8, 2.0, 8.0])
@pytest.mark.parametrize("centre", OCTAVE_CENTRES_HZ[:-1])
def test_a_decaying_tone_has_its_t60_in_its_band(centre, t60):
    decay, _ = octave_t60(octave_levels(tone(1.1 * centre, t60)[None], RATE_HZ))
    found = decay.t60_seconds[0, OCTAVE_CENTRES_HZ.index(centre)]
    assert found.item() == pytest.approx(t60, rel=0.01)


def test_each_band_has_its_own_t60():
    wanted = {125: 3.0, 1000: 1.5, 8000: 0.4}
    wave = sum(tone(hz, t60) for hz, t60 in wanted.items())
    decay, _ = octave_t60(octave_levels(wave[None], RATE_HZ))
    for hz, t60 in wanted.items():
        found = decay.t60_seconds[0, OCTAVE_CENTRES_HZ.index(hz)].item()
        assert found == pytest.approx(t60, rel=0.02), hz


def test_levels_are_mean_squares_and_a_mean_is_left_out():
    levels = octave_levels((tone(1000, 1e9, amplitude=0.5) + 0.3)[None], RATE_HZ)
    assert levels.whole_db[0].numpy() == pytest.approx(10 * math.log10(0.125), abs=0.01)
    assert levels.band_db[0, 4].numpy() == pytest.approx(10 * math.log10(0.125), abs=0.01)


def test_white_noise_has_its_energy_in_the_bands(random):
    wave = 0.1 * torch.randn(1, 5 * RATE_HZ, generator=random)
    levels = octave_levels(wave, RATE_HZ)
    widths = np.diff([20, *(centre * 2**0.5 for centre in OCTAVE_CENTRES_HZ[:-1]), RATE_HZ / 2])
    mean = 10 * np.log10((10 ** (levels.band_db[0].numpy() / 10)).mean(-1))
    assert mean == pytest.approx(10 * np.log10(0.01 * widths / (RATE_HZ / 2)), abs=1.2)


def test_a_noise_floor_does_not_slow_the_decay(random):
    noise = 1e-2 * torch.randn(3 * RATE_HZ, generator=random, dtype=torch.float64)
    wave = (tone(440, 1.0) + noise)[None]
    levels = octave_levels(wave, RATE_HZ)
    floor_db = octave_levels(noise[None], RATE_HZ).band_db.mean(-1)
    band = OCTAVE_CENTRES_HZ.index(500)
    aware = octave_t60(levels, floor_db)[0].t60_seconds[0, band].item()
    unaware = octave_t60(levels)[0].t60_seconds[0, band].item()
    assert aware == pytest.approx(1.0, rel=0.05)
    assert unaware > 1.1


def test_a_line_is_that_of_least_squares_and_ends_at_its_level(random):
    level_db = -3.0 * torch.arange(40.0, dtype=torch.float64) + torch.randn(40, generator=random)
    decay = fit_decay(level_db, 0.05, torch.tensor(-45.0), fewest=2)
    count = int(decay.frames)
    assert level_db[:count].min() >= -45 > level_db[count]
    slope = np.polyfit(0.05 * np.arange(count), level_db[:count].numpy(), 1)[0]
    assert decay.t60_seconds.item() == pytest.approx(-60 / slope)
    assert decay.range_db.item() == pytest.approx(-slope * 0.05 * (count - 1))


def test_what_does_not_fall_has_the_longest_t60_and_what_falls_too_little_none():
    rising = fit_decay(torch.arange(10.0, dtype=torch.float64), 0.1, torch.tensor(-100.0), fewest=2)
    assert rising.t60_seconds.item() == LONGEST_T60_SECONDS
    decay, _ = octave_t60(octave_levels(tone(500, 100.0)[None], RATE_HZ))
    assert decay.t60_seconds[0, 3].isnan()


def test_a_wave_too_short_to_have_a_decay_is_an_error():
    with pytest.raises(ValueError, match=r"0\.100 s is too short.*needed 0\.372 s"):
        octave_levels(torch.ones(1, RATE_HZ // 10), RATE_HZ)


@pytest.mark.parametrize("hz", [30.0, 82.4, 440.0])
def test_dc_at_the_end_is_heard_beneath_a_tone(hz):
    wave = tone(hz, 1e9, amplitude=0.1)
    assert abs(end_dc(wave[None], RATE_HZ).item()) < 1e-6
    assert end_dc((wave - 2e-4)[None], RATE_HZ).item() == pytest.approx(-2e-4, abs=1e-6)


@pytest.mark.parametrize("f0_hz", [41.2, 220.3, 1318.5])
def test_the_gain_per_period_of_an_exponential_is_its_t60(f0_hz):
    # A tone of 60 / (f0 T60) dB less in each period.
    gains = period_gains_db(tone(f0_hz, 2.0)[None], RATE_HZ, torch.tensor([f0_hz]))[0]
    assert gains.median().item() == pytest.approx(-60 / (f0_hz * 2.0), rel=0.05)
    assert gains.max() < 0


def test_a_karplus_strong_tone_decays_as_its_loop_says():
    string = KarplusString(220.0, 2.5, damping=0.05)
    decay, _ = octave_t60(octave_levels(torch.from_numpy(string.render(3.0))[None, 2000:], RATE_HZ))
    assert decay.t60_seconds[0, OCTAVE_CENTRES_HZ.index(250)].item() == pytest.approx(2.5, rel=0.01)
    # 440 Hz alone lies in the next band.
    assert decay.t60_seconds[0, OCTAVE_CENTRES_HZ.index(500)].item() == pytest.approx(
        string.t60_at(440), rel=0.02
    )


def test_bands_without_a_partial_are_told_by_counting_partials(random):
    edges = [20.0, *(centre * math.sqrt(2) for centre in OCTAVE_CENTRES_HZ)]
    for f0 in (30 * 2 ** (7 * torch.rand(50, generator=random))).tolist():
        partials = f0 * np.arange(1, 2000)
        wanted = [bool(((partials >= low) & (partials < high)).any()) for low, high in pairwise(edges)]
        assert holds_partial(torch.tensor([f0]))[0].tolist() == wanted, f0
