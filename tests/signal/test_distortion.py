"""Distortions against scipy's filters and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch

from enhancer.signal.distortion import add_noise, band_limit, overdrive, peaking_eq

RATE_HZ = 44_100
INF = math.inf


def cookbook_peaking(centre_hz, gain_db, quality):
    """Coefficients b, a of R. Bristow-Johnson's cookbook."""
    amplitude = 10 ** (gain_db / 40)
    w0 = 2 * np.pi * centre_hz / RATE_HZ
    alpha = np.sin(w0) / (2 * quality)
    b = [1 + alpha * amplitude, -2 * np.cos(w0), 1 - alpha * amplitude]
    a = [1 + alpha / amplitude, -2 * np.cos(w0), 1 - alpha / amplitude]
    return b, a


@pytest.mark.parametrize(
    ("centre_hz", "gain_db", "quality"),
    [
        (1000, 6, 1),
        (100, -20, 5),
        (100, 30, 5),
        (4000, 12, 0.7),
        (20_000, -9, 2),
        (30, 24, 0.1),
        (60, -30, 0.3),
    ],
)
def test_the_equaliser_is_the_biquad_run_from_rest(centre_hz, gain_db, quality, random):
    wave = torch.randn(1, 5000, generator=random)
    ours = peaking_eq(
        wave,
        torch.tensor([float(centre_hz)]),
        torch.tensor([float(gain_db)]),
        torch.tensor([float(quality)]),
        RATE_HZ,
    )
    theirs = scipy.signal.lfilter(*cookbook_peaking(centre_hz, gain_db, quality), wave[0].double().numpy())
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours[0].numpy() / scale, theirs / scale, atol=2e-5)


@pytest.mark.parametrize(
    ("lowpass_hz", "highpass_hz"), [(4000, 0), (16_000, 0), (INF, 300), (INF, 1500), (3400, 300), (INF, 60)]
)
def test_band_limits_are_a_butterworth_run_both_ways(lowpass_hz, highpass_hz, random):
    wave = torch.zeros(1, 30_000)
    # The ends are silent: there scipy's start-up differs, and nothing else should.
    wave[:, 10_000:20_000] = torch.randn(1, 10_000, generator=random)
    ours = band_limit(wave, torch.tensor([float(lowpass_hz)]), torch.tensor([float(highpass_hz)]), RATE_HZ)
    theirs = wave[0].double().numpy()
    for cutoff_hz, kind in ((lowpass_hz, "lowpass"), (highpass_hz, "highpass")):
        if 0 < cutoff_hz < INF:
            sections = scipy.signal.butter(4, cutoff_hz, kind, fs=RATE_HZ, output="sos")
            theirs = scipy.signal.sosfiltfilt(sections, theirs, padlen=0)
    np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-4)


def test_a_tone_at_the_cut_off_loses_6_db():
    tone = torch.sin(2 * math.pi * 2000 * torch.arange(RATE_HZ) / RATE_HZ)[None]
    middle = slice(10_000, 30_000)
    for low, high in ((2000.0, 0.0), (INF, 2000.0)):
        limited = band_limit(tone, torch.tensor([low]), torch.tensor([high]), RATE_HZ)
        assert limited[0, middle].abs().max().item() == pytest.approx(0.5, abs=1e-3)


def test_overdrive_keeps_the_peak_and_is_a_scaled_tanh(random):
    wave = torch.randn(2, 1000, generator=random) * torch.tensor([[0.5], [0.001]])
    driven = overdrive(wave, torch.tensor([12.0, 40.0]))
    torch.testing.assert_close(driven.abs().amax(-1), wave.abs().amax(-1))
    for row, drive in enumerate((10 ** (12 / 20), 100.0)):
        peak = np.abs(wave[row].numpy()).max()
        expected = peak * np.tanh(drive * wave[row].numpy() / peak) / np.tanh(drive)
        np.testing.assert_allclose(driven[row].numpy(), expected, rtol=1e-5, atol=1e-9)


def test_overdrive_of_silence_is_silence():
    assert torch.equal(overdrive(torch.zeros(1, 10), torch.tensor([20.0])), torch.zeros(1, 10))


def test_noise_has_the_wanted_level_a_flat_spectrum_and_its_own_seed(random):
    wave = torch.randn(3, 50_000, generator=random) * torch.tensor([[0.5], [0.01], [0.5]])
    seed = torch.tensor([5, 5, 6])
    noise = add_noise(wave, torch.tensor([10.0, 20.0, 10.0]), seed) - wave
    measured = 10 * (wave.square().sum(-1) / noise.square().sum(-1)).log10()
    torch.testing.assert_close(measured, torch.tensor([10.0, 20.0, 10.0]), atol=1e-2, rtol=0)
    unit = noise / noise.norm(dim=-1, keepdim=True)
    assert (unit[0] @ unit[1]).item() == pytest.approx(1, abs=1e-4)
    assert abs((unit[0] @ unit[2]).item()) < 0.02
    _, density = scipy.signal.welch(noise[0].double().numpy(), nperseg=512)
    assert density[4:-4].max() / density[4:-4].min() < 3


def test_noise_depends_on_the_seed_and_not_on_the_neighbours(random):
    wave = torch.randn(4, 300, generator=random)
    snr_db, seed = torch.tensor([INF, 6.0, 9.0, INF]), torch.tensor([1, 2, 3, 4])
    together = add_noise(wave, snr_db, seed)
    for row in range(4):
        alone = add_noise(wave[row : row + 1], snr_db[row : row + 1], seed[row : row + 1])
        assert torch.equal(together[row], alone[0])


def effects():
    return {
        "peaking_eq": lambda wave, on: peaking_eq(
            wave, torch.full((4,), 800.0), on * 9.0, torch.full((4,), 2.0), RATE_HZ
        ),
        "lowpass": lambda wave, on: band_limit(
            wave, torch.where(on > 0, 3000.0, INF), torch.zeros(4), RATE_HZ
        ),
        "highpass": lambda wave, on: band_limit(wave, torch.full((4,), INF), on * 500.0, RATE_HZ),
        "overdrive": lambda wave, on: overdrive(wave, on * 15.0),
        "add_noise": lambda wave, on: add_noise(
            wave, torch.where(on > 0, 10.0, INF), torch.arange(4, dtype=torch.int64)
        ),
    }


@pytest.mark.parametrize("name", effects())
def test_rows_that_are_off_are_returned_bit_for_bit(name, random):
    wave = torch.randn(4, 1001, generator=random)
    before = wave.clone()
    bad = effects()[name](wave, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert torch.equal(bad[[0, 2]], wave[[0, 2]])
    assert (bad[[1, 3]] != wave[[1, 3]]).any(-1).all()
    assert torch.equal(effects()[name](wave, torch.zeros(4)), wave)
    assert torch.equal(wave, before)


def test_a_low_pass_above_half_the_rate_is_off(noise_wave):
    assert torch.equal(
        band_limit(noise_wave, torch.full((2,), 22_050.0), torch.zeros(2), RATE_HZ), noise_wave
    )


def test_impossible_frequencies_are_refused(noise_wave):
    two = torch.ones(2)
    with pytest.raises(ValueError, match=r"30000\.0, 30000\.0\] Hz.*below 22050\.0 Hz"):
        peaking_eq(noise_wave, 30_000 * two, two, two, RATE_HZ)
    with pytest.raises(ValueError, match="Q above 0"):
        peaking_eq(noise_wave, 1000 * two, two, 0 * two, RATE_HZ)
    with pytest.raises(ValueError, match=r"high-pass of at least 0 and below 22050\.0 Hz"):
        band_limit(noise_wave, INF * two, 30_000 * two, RATE_HZ)
