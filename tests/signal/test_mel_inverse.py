"""From log-mel spectrograms back: band centres, the envelope of an STFT, and Griffin-Lim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from enhancer.signal.mel import TOP_DB, MelSpectrogram, band_centres_hz, mel_filterbank
from enhancer.signal.mel_inverse import MelEnvelope, griffin_lim
from enhancer.signal.stft import Stft
from enhancer.signal.torchaudio import torchaudio

RATE_HZ = 44_100


def test_the_bands_are_torchaudios_mel_scale_of_a_spectrogram(noise_wave):
    """Front end without pre-emphasis against `torchaudio.transforms.MelSpectrogram` on the same frames."""
    whole = noise_wave[..., : 23 * 420]
    theirs = torchaudio.transforms.MelSpectrogram(
        RATE_HZ,
        n_fft=2048,
        hop_length=420,
        n_mels=128,
        power=1.0,
        pad_mode="constant",
        norm="slaney",
        mel_scale="slaney",
    )(whole)
    ours = MelSpectrogram(RATE_HZ, preemphasis=0.0)(whole)
    torch.testing.assert_close(ours, 20 * theirs.clamp(min=1e-4).log10(), atol=1e-3, rtol=0)


def test_the_scale_runs_from_the_floor_to_the_top(noise_wave):
    mel = MelSpectrogram(RATE_HZ)
    scaled = mel.scaled(noise_wave)
    torch.testing.assert_close(scaled, (mel(noise_wave) + 80) / 95)
    torch.testing.assert_close(mel.unscaled(scaled), mel(noise_wave), atol=1e-4, rtol=0)
    assert mel.scaled(torch.zeros(1, 3000)).unique().tolist() == [0.0]
    assert mel.unscaled(torch.ones(1, 1)).tolist() == [[TOP_DB]]


@pytest.mark.parametrize(("rate_hz", "num_mels"), [(44_100, 128), (16_000, 80)])
def test_a_band_is_highest_at_its_centre(rate_hz, num_mels):
    bank = mel_filterbank(rate_hz, 1 << 16, num_mels).numpy()
    bin_hz = rate_hz / (1 << 16)
    np.testing.assert_allclose(
        band_centres_hz(rate_hz, num_mels).numpy(), bank.argmax(0) * bin_hz, atol=1.01 * bin_hz
    )


def test_the_envelope_of_noise_is_its_mean_magnitude_at_any_window():
    """White noise of RMS s: the magnitudes of its STFT are Rayleigh, and the bands see their mean."""
    wave = 0.1 * torch.randn(1, 8 * RATE_HZ, generator=torch.Generator().manual_seed(1))
    mel = MelSpectrogram(RATE_HZ)
    for window_samples in (1680, 840):
        envelope = MelEnvelope(mel, RATE_HZ, window_samples)(mel(wave).transpose(1, 2))
        found = envelope.exp()[0, 10:-10, 5:-5].mean()
        magnitude = 0.1 * math.sqrt(0.375 * window_samples) * math.sqrt(math.pi) / 2
        assert float(found) == pytest.approx(magnitude, rel=0.05), window_samples


def test_the_envelope_follows_a_slope():
    """A filter of one pole: its response is found to a decibel or two wherever it is smooth over a band."""
    noise = torch.randn(1, 4 * RATE_HZ, generator=torch.Generator().manual_seed(2))
    hz = torch.fft.rfftfreq(noise.shape[-1], 1 / RATE_HZ)
    slope = 1 / (1 + hz / 1000)
    wave = torch.fft.irfft(torch.fft.rfft(noise) * slope, n=noise.shape[-1])
    mel = MelSpectrogram(RATE_HZ)
    envelope_db = MelEnvelope(mel, RATE_HZ, 1680)(mel(wave).transpose(1, 2)).mean(1)[0] * 20 / math.log(10)
    true_db = 10 * Stft(1680, 420)(wave).abs().square().mean(-1).log10()[0]
    difference = (envelope_db - true_db)[4:-4]
    assert float((difference - difference.mean()).abs().max()) < 2.0


def test_griffin_lim_gives_back_the_mel_spectrogram_it_is_given(monkeypatch):
    """Far nearer than its random phases alone, and by itself the same each time."""
    at = torch.arange(RATE_HZ) / RATE_HZ
    wave = 0.2 * sum(torch.sin(2 * math.pi * 220 * k * at) / k for k in range(1, 20))[None]
    mel = MelSpectrogram(RATE_HZ)
    torch.manual_seed(8)
    state = torch.get_rng_state()
    restored = griffin_lim(mel(wave), mel, RATE_HZ, wave.shape[-1])
    assert torch.equal(torch.get_rng_state(), state)
    assert restored.shape == wave.shape
    inside = slice(5, -5)
    error_db = (mel(restored) - mel(wave))[..., inside].abs().mean()
    assert torch.equal(restored, griffin_lim(mel(wave), mel, RATE_HZ, wave.shape[-1]))
    monkeypatch.setattr("enhancer.signal.mel_inverse.ITERATIONS", 0)
    random_phases = griffin_lim(mel(wave), mel, RATE_HZ, wave.shape[-1])
    random_db = (mel(random_phases) - mel(wave))[..., inside].abs().mean()
    assert float(error_db) < 0.5 * float(random_db)


def test_griffin_lim_of_a_row_hangs_on_no_other(noise_wave):
    mel = MelSpectrogram(RATE_HZ)
    both = griffin_lim(mel(noise_wave), mel, RATE_HZ, noise_wave.shape[-1])
    for row in (0, 1):
        alone = griffin_lim(mel(noise_wave[row : row + 1]), mel, RATE_HZ, noise_wave.shape[-1])
        torch.testing.assert_close(alone[0], both[row], atol=1e-4, rtol=0)


def test_griffin_lim_of_silence_is_silence():
    mel = MelSpectrogram(RATE_HZ)
    silence = torch.zeros(1, 8400)
    assert float(griffin_lim(mel(silence), mel, RATE_HZ, 8400).abs().max()) < 1e-3
