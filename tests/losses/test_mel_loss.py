"""The multi-scale mel loss against a computation of its own in numpy, and torchaudio's filterbank and spectrogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enhancer.losses.mel import MultiScaleMel
from enhancer.signal.mel_distance import SCALES, mel_distance
from enhancer.signal.stft import power_of_frames
from enhancer.signal.torchaudio import torchaudio
from tests.signal.test_mel import slaney_filterbank

RATE_HZ = 44_100


@pytest.fixture
def waves(random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """An estimate and a target of two rows; one of them has a rest."""
    target = 0.2 * torch.randn(2, 6001, generator=random)
    target[1, 2000:4000] = 0
    return target + 0.1 * torch.randn(2, 6001, generator=random), target


def naive_log_mel(wave: np.ndarray, window: int, num_mels: int) -> np.ndarray:
    """Frame by frame, by the definition of the DFT's magnitude."""
    padded = np.pad(wave, window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    starts = range(0, len(padded) - window + 1, window // 4)
    frames = [np.abs(np.fft.rfft(padded[start : start + window] * hann)) for start in starts]
    bands = slaney_filterbank(RATE_HZ, window, num_mels)
    return np.log10(np.maximum(np.array(frames) @ bands, 1e-5))


def test_it_is_the_sum_over_seven_scales_that_numpy_finds(waves) -> None:
    assert [window for window, _ in SCALES] == [32, 64, 128, 256, 512, 1024, 2048]
    assert [num_mels for _, num_mels in SCALES] == [5, 10, 20, 40, 80, 160, 320]
    estimate, target = (wave.double().numpy() for wave in waves)
    expected = [
        sum(
            np.abs(naive_log_mel(estimate[row], *scale) - naive_log_mel(target[row], *scale)).mean()
            for scale in SCALES
        )
        for row in range(2)
    ]
    found = mel_distance(*waves, RATE_HZ)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4)
    assert min(expected) > 0.5
    np.testing.assert_allclose(MultiScaleMel(RATE_HZ)(*waves).item(), np.mean(expected), rtol=2e-4)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
def test_it_is_what_torchaudios_spectrogram_and_filterbank_give(waves) -> None:
    expected = torch.zeros(2)
    for window, num_mels in SCALES:
        transform = torchaudio.transforms.MelSpectrogram(
            RATE_HZ,
            window,
            hop_length=window // 4,
            n_mels=num_mels,
            power=1.0,
            norm="slaney",
            mel_scale="slaney",
        )
        estimate, target = (transform(wave).clamp(min=1e-5).log10() for wave in waves)
        expected += (estimate - target).abs().mean((1, 2))
    torch.testing.assert_close(mel_distance(*waves, RATE_HZ), expected, rtol=1e-4, atol=0)


def test_a_tenth_of_the_amplitude_is_one_decade_in_each_of_seven_scales(random: torch.Generator) -> None:
    """Noise so loud that the tenth of it is far above the floor in the bands of the shortest window too."""
    target = 30 * torch.randn(1, 20_000, generator=random)
    assert mel_distance(0.1 * target, target, RATE_HZ).item() == pytest.approx(7, rel=1e-4)


def test_its_gradient_is_the_slope_of_its_value(waves) -> None:
    """Along a random direction, against a difference in float64 of the naive computation."""
    estimate, target = waves[0][:1].clone().requires_grad_(), waves[1][:1]
    mel_distance(estimate, target, RATE_HZ).sum().backward()
    direction = torch.randn(1, 6001, generator=torch.Generator().manual_seed(1))

    def value(step: float) -> float:
        wave = (estimate.detach() + step * direction)[0].double().numpy()
        wanted = target[0].double().numpy()
        return sum(np.abs(naive_log_mel(wave, *s) - naive_log_mel(wanted, *s)).mean() for s in SCALES)

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose((estimate.grad * direction).sum().item(), slope, rtol=2e-2, atol=1e-3)


def test_the_gradient_of_a_power_is_that_of_torchs_own_fft(random: torch.Generator) -> None:
    frames = torch.randn(3, 5, 24, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, 17, generator=random, dtype=torch.float64)
    (by_ours,) = torch.autograd.grad((power_of_frames(frames, 32) * weight).sum(), frames)
    (by_torch,) = torch.autograd.grad((torch.fft.rfft(frames, n=32).abs().square() * weight).sum(), frames)
    torch.testing.assert_close(by_ours, by_torch)


def test_silence_asks_for_nothing_that_is_not_finite() -> None:
    estimate = torch.zeros(1, 3000, requires_grad=True)
    mel_distance(estimate, torch.zeros(1, 3000), RATE_HZ).sum().backward()
    assert torch.equal(estimate.grad, torch.zeros(1, 3000))


def test_a_waveform_too_short_to_be_mirrored_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="1024 samples are given; the mel distance needs 1025"):
        mel_distance(torch.zeros(1, 1024), torch.zeros(1, 1024), RATE_HZ)
