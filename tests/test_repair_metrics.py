"""Distances below a cutoff against the project's distances, closed forms, and what lies above."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from enhancer.metrics import LogMelDistance, StftDistance
from enhancer.repair_metrics import DISTANCES, RepairDistance
from enhancer.signal.mel import MelSpectrogram
from hparams.stft import loss_resolutions

RATE_HZ = 44_100


def mel() -> MelSpectrogram:
    return MelSpectrogram(RATE_HZ)


def distance() -> RepairDistance:
    return RepairDistance(mel(), 128, RATE_HZ, loss_resolutions(RATE_HZ))


def waves(rows: int = 3, seconds: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (rows, round(seconds * RATE_HZ))
    return 0.1 * torch.randn(shape, generator=generator), 0.05 * torch.randn(shape, generator=generator)


def test_without_a_cutoff_they_are_the_distances_of_the_whole_spectrum() -> None:
    estimate, target = waves()
    found = distance()(estimate, target, torch.full((3,), 44_100.0))
    whole = LogMelDistance(mel())(estimate, target)
    torch.testing.assert_close(found["log_mel_distance_db"], whole, atol=1e-4, rtol=1e-4)
    whole = StftDistance(loss_resolutions(RATE_HZ))(estimate, target)
    torch.testing.assert_close(found["stft_distance"], whole, atol=1e-4, rtol=1e-4)


def test_the_log_spectral_distance_is_that_of_the_formula() -> None:
    estimate, target = waves(1)
    found = distance().log_spectral(estimate, target, torch.tensor([9000.0]))
    window = np.hanning(2049)[:-1]
    frames = []
    padded = [np.pad(wave[0].double().numpy(), (1024, 4096)) for wave in (estimate, target)]
    for start in range(0, 512 * (-(-estimate.shape[-1] // 512) + 1), 512):
        ours, theirs = (np.abs(np.fft.rfft(wave[start : start + 2048] * window)) ** 2 for wave in padded)
        below = np.fft.rfftfreq(2048, 1 / RATE_HZ) < 9000
        floor = 1e-8 * 0.375 * 2048
        ratio = 10 * np.log10(np.maximum(ours, floor) / np.maximum(theirs, floor))[below]
        frames.append(math.sqrt(np.mean(ratio**2)))
    assert found.item() == pytest.approx(np.mean(frames), rel=1e-3)


@pytest.mark.parametrize("gain_db", [-6.0, 3.0])
def test_a_gain_is_as_many_decibels_off(gain_db: float) -> None:
    _, target = waves()
    found = distance()(target * 10 ** (gain_db / 20), target, torch.tensor([3000.0, 9000.0, 20_000.0]))
    for name in ("log_mel_distance_db", "log_spectral_distance_db"):
        torch.testing.assert_close(found[name], torch.full((3,), abs(gain_db)), atol=0.02, rtol=0)
    expected = abs(10 ** (gain_db / 20) - 1) + abs(gain_db) / 20 * math.log(10)
    torch.testing.assert_close(found["stft_distance"], torch.full((3,), expected), atol=2e-3, rtol=0)


def test_what_differs_above_the_cutoff_does_not_count() -> None:
    _, target = waves(1)
    time = torch.arange(target.shape[-1]) / RATE_HZ
    whistle = target + 0.3 * torch.hann_window(len(time)) * torch.sin(2 * torch.pi * 15_000 * time)
    below = distance()(whistle, target, torch.tensor([11_025.0]))
    above = distance()(whistle, target, torch.tensor([22_050.0]))
    for name in DISTANCES:
        assert below[name].item() < 0.03 * above[name].item(), name


def test_equal_waves_are_nowhere_apart_and_silence_is_finite() -> None:
    _, target = waves()
    for wave in (target, torch.zeros_like(target)):
        found = distance()(wave, wave, torch.full((3,), 8000.0))
        assert all(bool((values == 0).all()) for values in found.values())
    found = distance()(target, torch.zeros_like(target), torch.full((3,), 8000.0))
    assert all(bool(values.isfinite().all()) and bool((values > 1).all()) for values in found.values())
