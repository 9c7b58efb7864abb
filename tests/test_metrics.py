"""Metrics against naive computations and their known identities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enhancer.losses.stft import MultiResolutionStft
from enhancer.metrics import (
    SDR_LIMIT_DB,
    LogMelDistance,
    StftDistance,
    si_sdr,
    si_sdr_improvement,
)
from enhancer.signal.mel import MelSpectrogram


@dataclass(frozen=True)
class Cfg:
    n_fft: int
    hop_length: int
    win_length: int


RESOLUTIONS = [Cfg(512, 100, 400), Cfg(1024, 256, 1024)]


def naive_si_sdr(estimate, target):
    explained = sum(e * t for e, t in zip(estimate, target, strict=True)) / sum(t * t for t in target)
    signal = sum((explained * t) ** 2 for t in target)
    noise = sum((explained * t - e) ** 2 for e, t in zip(estimate, target, strict=True))
    return 10 * math.log10(signal / noise)


def test_si_sdr_is_its_definition(random):
    target = torch.randn(3, 200, generator=random)
    estimate = target + torch.tensor([[0.1], [1.0], [5.0]]) * torch.randn(3, 200, generator=random)
    expected = [naive_si_sdr(*pair) for pair in zip(estimate.tolist(), target.tolist(), strict=True)]
    np.testing.assert_allclose(si_sdr(estimate, target).numpy(), expected, atol=1e-4)


def test_noise_at_right_angles_gives_the_ratio_of_the_powers():
    # Le Roux et al. (2019): for an error orthogonal to the target SI-SDR is the plain SNR.
    angle = 2 * torch.pi * 5 * torch.arange(1000) / 1000
    target, error = torch.sin(angle)[None], torch.cos(angle)[None]
    assert si_sdr(target + 0.1 * error, target).item() == pytest.approx(20, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3).flatmap(lambda s: st.sampled_from([s, -s])),
    snr=st.floats(-40, 40),
    seed=st.integers(0, 99),
)
def test_si_sdr_ignores_scale_and_sign(scale, snr, seed):
    generator = torch.Generator().manual_seed(seed)
    target, noise = torch.randn(2, 1, 500, generator=generator)
    estimate = target + 10 ** (-snr / 20) * noise
    torch.testing.assert_close(si_sdr(scale * estimate, target), si_sdr(estimate, target), atol=1e-3, rtol=0)


def test_a_mean_removed_is_no_error(random):
    target = torch.randn(1, 1000, generator=random)
    estimate = 0.5 * target + 3
    assert si_sdr(estimate, target).item() < 0
    assert si_sdr(estimate, target, zero_mean=True).item() > 90


def test_silence_has_defined_values(random):
    loud, silent = torch.randn(1, 100, generator=random), torch.zeros(1, 100)
    assert si_sdr(loud, silent).item() == -SDR_LIMIT_DB
    assert si_sdr(silent, loud).item() == -SDR_LIMIT_DB
    assert si_sdr(silent, silent).item() == SDR_LIMIT_DB
    assert si_sdr(loud, loud).item() == SDR_LIMIT_DB


def test_the_improvement_of_halving_the_noise_is_6_db():
    angle = 2 * torch.pi * 5 * torch.arange(1000) / 1000
    target, error = torch.sin(angle)[None], torch.cos(angle)[None]
    gained = si_sdr_improvement(target + 0.25 * error, target + 0.5 * error, target)
    assert gained.item() == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_the_stft_distance_is_the_loss_per_row(random):
    estimate, target = torch.randn(2, 3, 4000, generator=random)
    rows = StftDistance(RESOLUTIONS)(estimate, target)
    one_by_one = [MultiResolutionStft(RESOLUTIONS)(estimate[[row]], target[[row]]) for row in range(3)]
    torch.testing.assert_close(rows, torch.stack(one_by_one))


def test_a_gain_is_its_own_log_mel_distance(random):
    target = 0.1 * torch.randn(2, 8000, generator=random)
    distance = LogMelDistance(MelSpectrogram(44_100))(target * torch.tensor([[0.5], [2.0]]), target)
    torch.testing.assert_close(distance, torch.full((2,), 20 * math.log10(2)), atol=1e-3, rtol=0)
