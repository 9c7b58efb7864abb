"""Metrics against naive computations and their known identities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from enhancer.losses.stft import MultiResolutionStft
from enhancer.metrics import (
    SDR_LIMIT_DB,
    LogMelDistance,
    StftDistance,
    device_metrics,
    response_excess_db,
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


def response(wave: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    return signal.welch(wave, rate_hz, "hann", 2048, detrend=False)


@pytest.mark.parametrize("gain_db", [-6.0, 0.0, 7.31])
def test_a_shelf_is_its_own_excess_above_10_khz(gain_db):
    """Noise whose part above 10 kHz is louder by a gain, by an FFT filter; below it anything goes."""
    rate = 44_100
    wave = np.random.default_rng(0).standard_normal((2, 3 * rate))
    spectrum = np.fft.rfft(wave)
    frequency = np.fft.rfftfreq(wave.shape[1], 1 / rate)
    spectrum[:, frequency > 9_900] *= 10 ** (gain_db / 20)
    spectrum[:, frequency < 5_000] *= 3
    estimate = np.fft.irfft(spectrum, wave.shape[1])
    mean, peak = response_excess_db(torch.from_numpy(estimate), torch.from_numpy(wave), rate, 10_000.0)
    np.testing.assert_allclose(mean.numpy(), gain_db, atol=0.01)
    np.testing.assert_allclose(peak.numpy(), gain_db, atol=0.5)
    for row in range(2):
        lines, loud = response(estimate[row], rate)
        ratio_db = 10 * np.log10(loud / response(wave[row], rate)[1])[lines >= 10_000]
        assert mean[row].item() == pytest.approx(ratio_db.mean(), abs=1e-4)
        assert peak[row].item() == pytest.approx(ratio_db.max(), abs=1e-4)


def test_every_frequency_counts_alike_in_the_response_and_by_its_energy_in_the_sum():
    """A lone tone 20 dB too loud: nearly all of the energy above 10 kHz, and a few of 500 bins."""
    rate = 44_100
    noise = 1e-3 * torch.randn(1, 2 * rate, generator=torch.Generator().manual_seed(0))
    tone = torch.sin(2 * math.pi * 15_000 / rate * torch.arange(2 * rate))[None]
    estimate, target = noise + 0.1 * tone, noise + 0.01 * tone
    values = {name: column.item() for name, column in device_metrics(estimate, target, rate).items()}
    assert values["excess_above_10k_db"] == pytest.approx(19, abs=1)
    assert values["response_excess_above_10k_db"] < 1
    assert values["peak_excess_above_10k_db"] == pytest.approx(20, abs=0.2)


def test_without_a_band_above_10_khz_or_any_sound_there_the_excess_is_plain():
    wave = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    mean, peak = response_excess_db(wave, wave, 16_000, 10_000.0)
    assert mean.isnan().all() and peak.isnan().all()
    silence = torch.zeros(1, 4000)
    assert response_excess_db(silence, silence, 44_100, 10_000.0)[0].item() == 0
    assert response_excess_db(wave, silence, 44_100, 10_000.0)[0].item() == pytest.approx(140, abs=3)
    assert response_excess_db(wave[:, :5], wave[:, :5], 44_100, 10_000.0)[0].item() == 0
