"""The log-mel front end against a computation of its own in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch

from enhancer.signal.mel import MelSpectrogram, mel_filterbank

RATE_HZ = 44_100


def slaney_filterbank(rate_hz, n_fft, num_mels):
    """Triangles of unit area on Slaney's scale: linear below 1 kHz, 27 steps for each factor 6.4 above."""

    def to_mel(hz):
        return hz / (200 / 3) if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    def to_hz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    corners = [to_hz(mel) for mel in np.linspace(0, to_mel(rate_hz / 2), num_mels + 2)]
    bins_hz = np.linspace(0, rate_hz / 2, n_fft // 2 + 1)
    bands = np.zeros((n_fft // 2 + 1, num_mels))
    for band in range(num_mels):
        low, centre, high = corners[band : band + 3]
        rising, falling = (bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)
        bands[:, band] = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return bands


@pytest.mark.parametrize(("rate_hz", "n_fft", "num_mels"), [(44_100, 2048, 128), (16_000, 1024, 80)])
def test_the_bands_are_slaneys(rate_hz, n_fft, num_mels):
    ours = mel_filterbank(rate_hz, n_fft, num_mels).numpy()
    expected = slaney_filterbank(rate_hz, n_fft, num_mels)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * expected.max())


def test_the_front_end_is_its_formula(noise_wave):
    mel = MelSpectrogram(RATE_HZ)(noise_wave)
    emphasised = scipy.signal.lfilter([1, -0.97], [1], noise_wave.double().numpy())
    _, _, spectrum = scipy.signal.stft(emphasised, nperseg=2048, noverlap=2048 - 420)
    magnitude = np.abs(spectrum) * 1024
    expected = 20 * np.log10(
        np.maximum(np.einsum("bfn,fm->bmn", magnitude, slaney_filterbank(RATE_HZ, 2048, 128)), 1e-4)
    )
    frames = noise_wave.shape[-1] // 420
    assert mel.shape == (2, 128, frames + 2)
    np.testing.assert_allclose(mel[..., :frames].numpy(), expected[..., :frames], atol=2e-3)


def test_silence_is_at_the_floor_with_a_finite_gradient():
    wave = torch.zeros(1, 3000, requires_grad=True)
    mel = MelSpectrogram(RATE_HZ)(wave)
    assert mel.unique().tolist() == [-80.0]
    mel.sum().backward()
    assert wave.grad.isfinite().all()


def test_autocast_does_not_round_it(noise_wave):
    mel = MelSpectrogram(RATE_HZ)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mel(noise_wave)
    assert torch.equal(inside, mel(noise_wave))


def test_a_tone_is_loudest_in_the_band_around_it():
    tone = torch.sin(2 * math.pi * 5000 * torch.arange(RATE_HZ) / RATE_HZ)
    loudest = MelSpectrogram(RATE_HZ)(tone)[:, 50].argmax().item()
    assert loudest == slaney_filterbank(RATE_HZ, 2048, 128)[round(5000 * 2048 / RATE_HZ)].argmax()
