"""The SI-SDR loss against its textbook form, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enhancer.losses.si_sdr import negative_si_sdr


def textbook_db(estimate: np.ndarray, target: np.ndarray) -> float:
    """10 log10(|a s|^2 / |a s - e|^2 + 0.1), a making the error orthogonal to s, in double precision."""
    scale = np.dot(estimate, target) / np.dot(target, target)
    ratio = np.sum((scale * target) ** 2) / np.sum((scale * target - estimate) ** 2)
    return 10 * np.log10(ratio + 0.1)


@pytest.mark.parametrize("noise_level", [0.01, 0.3, 3.0, 100.0])
def test_it_is_the_mean_of_the_textbook_values_above_its_floor(noise_level: float) -> None:
    generator = torch.Generator().manual_seed(5)
    target = 0.1 * torch.randn(4, 5000, generator=generator)
    estimate = 0.6 * target + 0.1 * noise_level * torch.randn(4, 5000, generator=generator)
    values = [
        textbook_db(e.double().numpy(), t.double().numpy()) for e, t in zip(estimate, target, strict=True)
    ]
    assert float(negative_si_sdr(estimate, target)) == pytest.approx(-np.mean(values), abs=1e-4)


def test_the_scale_of_the_estimate_does_not_matter(noise_wave: torch.Tensor) -> None:
    target = noise_wave.roll(1, -1) + noise_wave
    loud, quiet = negative_si_sdr(3 * noise_wave, target), negative_si_sdr(0.05 * noise_wave, target)
    torch.testing.assert_close(loud, quiet, atol=1e-3, rtol=0)


def test_silent_targets_silent_estimates_and_perfect_ones_have_finite_values_and_gradients(
    noise_wave: torch.Tensor,
) -> None:
    for estimate, target, value in [
        (noise_wave, torch.zeros_like(noise_wave), 0.0),
        (torch.zeros_like(noise_wave), noise_wave, -10 * np.log10(1 + 0.1)),
        (noise_wave, noise_wave, -50.0),
    ]:
        leaf = estimate.clone().requires_grad_()
        loss = negative_si_sdr(leaf, target)
        loss.backward()
        assert loss.item() == pytest.approx(value, abs=1e-3)
        assert torch.isfinite(leaf.grad).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    estimate, target = (0.1 * torch.randn(2, 64, generator=generator) for _ in range(2))
    leaf = estimate.clone().requires_grad_()
    negative_si_sdr(leaf, target).backward()
    direction = torch.randn(2, 64, generator=generator)
    step = 1e-3
    ahead, behind = (negative_si_sdr(estimate + sign * step * direction, target) for sign in (1, -1))
    slope = float((ahead - behind) / (2 * step))
    assert float((leaf.grad * direction).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-2)


def test_rows_with_little_in_common_do_not_pull_much_harder_than_others() -> None:
    """What the floor is for: the length of the gradient, times that of the estimate, at -30, -20 and 0 dB.

    Without the floor it would be about 30 and 10 times as long as at 0 dB.
    """
    generator = torch.Generator().manual_seed(4)
    target, noise = (torch.randn(1, 20_000, generator=generator) for _ in range(2))
    noise -= (noise * target).sum() / target.square().sum() * target
    pull = {}
    for level_db in (-30.0, -20.0, 0.0):
        estimate = (0.1 * (10 ** (level_db / 20) * target + noise)).requires_grad_()
        negative_si_sdr(estimate, target).backward()
        pull[level_db] = float(estimate.grad.norm() * estimate.detach().norm())
    assert pull[-30.0] < pull[-20.0] < 2 * pull[0.0]
