"""The phase vocoder: length, pitch and level of what it makes longer or shorter."""

from __future__ import annotations

import math

import pytest
import torch

from enhancer.signal.phase_vocoder import time_stretched

RATE_HZ = 44_100


def test_a_factor_of_one_gives_the_wave_itself(noise_wave: torch.Tensor) -> None:
    torch.testing.assert_close(time_stretched(noise_wave[0], 1.0), noise_wave[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0])
def test_a_tone_gets_longer_at_its_pitch(factor: float) -> None:
    time = torch.arange(2 * RATE_HZ, dtype=torch.float64) / RATE_HZ
    tone = (0.3 * torch.sin(2 * torch.pi * 987.0 * time)).float()
    longer = time_stretched(tone, factor)
    assert longer.shape[-1] == round(factor * len(tone))
    inside = longer[4096:-8192].double()
    spectrum = torch.fft.rfft(inside * torch.hann_window(len(inside), dtype=torch.float64), 1 << 20).abs()
    heard_hz = spectrum.argmax().item() * RATE_HZ / (1 << 20)
    assert heard_hz == pytest.approx(987.0, abs=0.2)
    # Without phase locking the bins around a partial keep the phases of its onset, and cancel in part: its known flaw.
    share = inside.square().mean().sqrt().item() / (0.3 / math.sqrt(2))
    assert 0.75 < share < 1.02


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_factor_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor"):
        time_stretched(torch.zeros(100), factor)
