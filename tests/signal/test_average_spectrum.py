"""The average spectrum against scipy's Welch estimate, and band levels against the powers of known signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import signal

from enhancer.signal.average_spectrum import FLOOR_DB, average_power, band_levels

RATE_HZ = 44_100


@pytest.mark.parametrize(
    ("length", "window"), [(50_000, 8192), (50_000, 1000), (20_001, 999), (500, 8192), (4, 3)]
)
def test_the_power_density_is_that_of_scipy(length: int, window: int, random: torch.Generator) -> None:
    wave = torch.randn(length, generator=random)
    frequency, power = average_power(wave, RATE_HZ, window)
    used = min(window, length)
    theirs, wanted = signal.welch(
        wave.double().numpy(), RATE_HZ, signal.get_window("hann", used), noverlap=used // 2, detrend=False
    )
    np.testing.assert_allclose(frequency.numpy(), theirs, rtol=1e-12)
    np.testing.assert_allclose(power.numpy(), wanted, rtol=1e-6, atol=1e-12 * wanted.max())


@pytest.mark.parametrize(("frequency_hz", "amplitude"), [(1000.0, 0.5), (125.0, 1.0), (10_079.4, 0.01)])
def test_a_tone_in_the_middle_of_a_band_has_its_power_there(frequency_hz: float, amplitude: float) -> None:
    wave = amplitude * torch.sin(
        2 * math.pi * frequency_hz * torch.arange(RATE_HZ, dtype=torch.float64) / RATE_HZ
    )
    centre, level_db = band_levels(wave, RATE_HZ)
    loudest = int(level_db.argmax())
    assert float(centre[loudest]) == pytest.approx(frequency_hz, rel=1e-4)
    assert float(level_db[loudest]) == pytest.approx(10 * math.log10(amplitude**2 / 2), abs=0.05)


def test_bands_of_white_noise_hold_their_share_of_its_power(random: torch.Generator) -> None:
    """Power of a band is its width: 2**(1/12) - 2**(-1/12) of its centre, as a share of half the rate."""
    wave = 0.1 * torch.randn(40 * RATE_HZ, generator=random)
    centre, level_db = (values.numpy() for values in band_levels(wave, RATE_HZ))
    is_wide = (centre > 500) & (centre * 2 ** (1 / 12) < RATE_HZ / 2)
    width_hz = centre[is_wide] * (2 ** (1 / 12) - 2 ** (-1 / 12))
    wanted_db = 10 * np.log10(0.1**2 * width_hz / (RATE_HZ / 2))
    np.testing.assert_allclose(level_db[is_wide], wanted_db, atol=0.6)


@pytest.mark.parametrize("rate_hz", [8000, 44_100, 192_000])
def test_bands_lie_between_20_hz_and_half_the_rate(rate_hz: int, random: torch.Generator) -> None:
    centre, level_db = band_levels(torch.randn(rate_hz, generator=random), rate_hz)
    assert centre.min() >= 20 and centre.max() <= rate_hz / 2
    assert len(centre) == len(level_db) and (centre.diff() > 0).all()


def test_silence_is_at_the_floor_and_nothing_has_no_spectrum() -> None:
    _, level_db = band_levels(torch.zeros(9000), RATE_HZ)
    assert (level_db == FLOOR_DB).all()
    with pytest.raises(ValueError, match="1 samples has no spectrum"):
        average_power(torch.zeros(1), RATE_HZ)
