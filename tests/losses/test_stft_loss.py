"""The multi-resolution STFT loss against the paper's formula in numpy and scipy; its gradient and its silence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.signal
import torch

from enhancer.losses.stft import MultiResolutionStft
from enhancer.signal.spectral_distance import FLOOR_DB, QUIET_DB, noise_power, spectral_distance
from enhancer.signal.stft import power_spectrogram


@dataclass(frozen=True)
class Cfg:
    n_fft: int
    hop_length: int
    win_length: int


RESOLUTIONS = [Cfg(512, 100, 400), Cfg(1024, 256, 1024), Cfg(2048, 512, 2048)]


def scipy_magnitudes(wave, cfg):
    """Floored magnitudes [F, N] of a window in the middle of zeros, which moves phases only."""
    frames = -(-len(wave) // cfg.hop_length) + 1
    padded = np.zeros(cfg.win_length // 2 + frames * cfg.hop_length + cfg.win_length)
    padded[cfg.win_length // 2 :][: len(wave)] = wave
    _, _, spectrum = scipy.signal.stft(
        padded,
        nperseg=cfg.win_length,
        noverlap=cfg.win_length - cfg.hop_length,
        nfft=cfg.n_fft,
        boundary=None,
        padded=False,
    )
    magnitude = np.abs(spectrum[:, :frames]) * cfg.win_length / 2
    return np.sqrt(np.maximum(magnitude**2, noise_power(FLOOR_DB, cfg.win_length)))


def paper_loss(estimate, target):
    """Equations 4 to 6 of Parallel WaveGAN, one example."""
    total = 0.0
    for cfg in RESOLUTIONS:
        x, y = scipy_magnitudes(estimate, cfg), scipy_magnitudes(target, cfg)
        total += np.linalg.norm(y - x) / np.linalg.norm(y) + np.mean(np.abs(np.log(y) - np.log(x)))
    return total / len(RESOLUTIONS)


def test_it_is_the_formula_of_the_paper_averaged_over_rows(random):
    target = 0.1 * torch.randn(3, 5000, generator=random) * torch.tensor([[1.0], [0.1], [3.0]])
    estimate = 0.7 * target + 0.02 * torch.randn(3, 5000, generator=random)
    expected = np.mean([paper_loss(e, t) for e, t in zip(estimate.double(), target.double(), strict=True)])
    assert MultiResolutionStft(RESOLUTIONS)(estimate, target).item() == pytest.approx(expected, rel=1e-5)


def test_the_mean_over_ranks_is_the_mean_over_rows(random):
    target = torch.randn(8, 3000, generator=random) * torch.logspace(-3, 0, 8)[:, None]
    estimate = target + 0.1 * torch.randn(8, 3000, generator=random)
    loss = MultiResolutionStft(RESOLUTIONS)
    halves = torch.stack([loss(estimate[:4], target[:4]), loss(estimate[4:], target[4:])])
    torch.testing.assert_close(loss(estimate, target), halves.mean(), atol=0, rtol=1e-6)


@pytest.mark.parametrize("cfg", [Cfg(16, 4, 16), Cfg(16, 5, 12), Cfg(10, 3, 7)])
def test_the_gradient_is_that_of_finite_differences(cfg, random):
    target = torch.randn(2, 30, generator=random, dtype=torch.float64)
    estimate = torch.randn(2, 30, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: spectral_distance(e, target, cfg), (estimate,))


def test_the_gradient_is_that_of_plain_autograd_with_quiet_bins_and_padding_frames(random):
    cfg = RESOLUTIONS[0]
    target = torch.randn(2, 3000, generator=random)
    estimate = torch.randn(2, 3000, generator=random)
    estimate[:, 1000:2000] *= 1e-6
    estimate.requires_grad_()
    convergence, log_distance = spectral_distance(estimate, target, cfg)
    (ours,) = torch.autograd.grad((convergence + 3 * log_distance).sum(), estimate)

    sizes = (cfg.win_length, cfg.hop_length, cfg.n_fft)
    floor = noise_power(FLOOR_DB, cfg.win_length)
    x = power_spectrogram(estimate, *sizes).clamp(min=floor).sqrt()
    y = power_spectrogram(target, *sizes).clamp(min=floor).sqrt()
    plain = (y - x).square().sum((1, 2)).sqrt() / y.square().sum((1, 2)).sqrt()
    plain = plain + 3 * (y.log() - x.log()).abs().mean((1, 2))
    (theirs,) = torch.autograd.grad(plain.sum(), estimate)
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-3)


def test_a_perfect_estimate_has_no_loss_and_no_gradient(noise_wave):
    estimate = noise_wave.clone().requires_grad_()
    value = MultiResolutionStft(RESOLUTIONS)(estimate, noise_wave)
    value.backward()
    assert value.item() == 0
    assert not estimate.grad.any()


@pytest.mark.parametrize("cfg", RESOLUTIONS)
def test_noise_power_is_what_white_noise_has(cfg, random):
    noise = 0.1 * torch.randn(200_000, generator=random)
    power = power_spectrogram(noise, cfg.win_length, cfg.hop_length, cfg.n_fft)[10:-10]
    assert power.mean().item() == pytest.approx(noise_power(-20.0, cfg.win_length), rel=0.03)


def gradient_norm(estimate, target):
    estimate = estimate.clone().requires_grad_()
    MultiResolutionStft(RESOLUTIONS)(estimate, target).backward()
    assert estimate.grad.isfinite().all()
    return estimate.grad.norm().item()


@pytest.mark.parametrize("level", [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_a_silent_target_asks_for_silence_with_a_gradient_of_about_the_usual_size(level, random):
    estimate, voice = torch.randn(2, 1, 44_100, generator=random)
    silent = gradient_norm(level * estimate, torch.zeros(1, 44_100))
    usual = gradient_norm(level * estimate, 10 ** (QUIET_DB / 20) * voice)
    assert silent < 1.5 * usual + 0.1
    assert silent < 25


@pytest.mark.parametrize("level", [0.0, 1e-9])
def test_where_both_are_silent_nothing_is_asked(level, random):
    assert gradient_norm(level * torch.randn(1, 8000, generator=random), torch.zeros(1, 8000)) == 0


def test_autocast_does_not_round_it(noise_wave):
    loss = MultiResolutionStft(RESOLUTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(noise_wave, noise_wave.flip(0))
    assert torch.equal(inside, loss(noise_wave, noise_wave.flip(0)))


def test_a_target_that_requires_a_gradient_is_refused(noise_wave):
    target = noise_wave.clone().requires_grad_()
    with pytest.raises(ValueError, match="detach it"):
        MultiResolutionStft(RESOLUTIONS)(noise_wave, target)


@pytest.mark.parametrize(
    ("resolutions", "text"),
    [([], "at least one"), ([Cfg(256, 100, 400)], "not below win_length"), ([Cfg(511, 100, 400)], "even")],
)
def test_impossible_resolutions_are_refused(resolutions, text):
    with pytest.raises(ValueError, match=text):
        MultiResolutionStft(resolutions)
