"""Sample-rate conversion against tones, torchaudio and its own whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from enhancer.signal.resample import resample, resample_blocks
from enhancer.signal.torchaudio import torchaudio


def tone(frequency_hz, rate_hz, seconds=0.5):
    time = torch.arange(int(rate_hz * seconds), dtype=torch.float64) / rate_hz
    return torch.sin(2 * math.pi * frequency_hz * time).float()


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(48_000, 44_100), (44_100, 16_000), (8000, 44_100), (22_050, 44_100)]
)
def test_a_tone_stays_that_tone_without_delay(from_hz, to_hz):
    ours, ideal = resample(tone(440, from_hz), from_hz, to_hz), tone(440, to_hz)
    middle = slice(to_hz // 10, -to_hz // 10)
    assert abs(ours.shape[-1] - ideal.shape[-1]) <= 1
    torch.testing.assert_close(ours[middle], ideal[: ours.shape[-1]][middle], atol=1e-4, rtol=0)


def test_what_the_lower_rate_cannot_hold_is_removed():
    high = resample(tone(12_000, 44_100), 44_100, 16_000)
    assert high[1000:-1000].abs().max() < 1e-4


def test_speech_band_agrees_with_torchaudio(random):
    spectrum = torch.zeros(24_001, dtype=torch.complex64)
    spectrum[100:3000] = torch.randn(2900, generator=random, dtype=torch.complex64) * 50
    wave = torch.fft.irfft(spectrum)
    theirs = torchaudio.functional.resample(wave, 48_000, 44_100, lowpass_filter_width=64)
    ours = resample(wave, 48_000, 44_100)
    torch.testing.assert_close(ours[2000:-2000], theirs[2000:-2000], atol=2e-3 * wave.abs().max(), rtol=0)


@pytest.mark.parametrize("size", [1, 37, 1000, 50_000])
def test_blocks_join_to_the_whole(size, random):
    wave = torch.randn(2, 5000, generator=random)
    blocks = list(resample_blocks(wave.split(size, dim=-1), 48_000, 44_100))
    assert all(block.shape[0] == 2 for block in blocks)
    torch.testing.assert_close(torch.cat(blocks, -1), resample(wave, 48_000, 44_100), atol=1e-6, rtol=0)


def test_leading_axes_are_kept(random):
    wave = torch.randn(3, 2, 480, generator=random)
    ours = resample(wave, 48_000, 24_000)
    assert ours.shape == (3, 2, 240)
    np.testing.assert_array_equal(ours[1, 1], resample(wave[1, 1], 48_000, 24_000))


def test_equal_rates_change_nothing(noise_wave):
    assert resample(noise_wave, 44_100, 44_100) is noise_wave
    (block,) = resample_blocks([noise_wave], 8000, 8000)
    assert block is noise_wave


def test_an_impossible_rate_is_refused(noise_wave):
    with pytest.raises(ValueError, match="from 44100 Hz to 0 Hz"):
        resample(noise_wave, 44_100, 0)
