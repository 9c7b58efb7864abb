"""Bandwidth and level of recordings, against filters and tones that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from enhancer import restoration_metrics
from enhancer.restoration_metrics import bandwidth_hz, level_db, restored_share
from enhancer.signal import average_spectrum
from enhancer.signal.distortion import band_limit

RATE_HZ = 44_100


@pytest.mark.parametrize("cutoff_hz", [3000.0, 8000.0, 15_000.0])
def test_the_bandwidth_is_where_a_steep_filter_cuts(cutoff_hz: float, noise_wave: torch.Tensor) -> None:
    spectrum = torch.fft.rfft(noise_wave)
    hz = torch.fft.rfftfreq(noise_wave.shape[-1], 1 / RATE_HZ)
    cut = torch.fft.irfft(spectrum * (hz <= cutoff_hz), n=noise_wave.shape[-1])
    assert bandwidth_hz(cut, RATE_HZ).tolist() == pytest.approx([cutoff_hz] * 2, abs=700)
    assert bandwidth_hz(noise_wave, RATE_HZ).tolist() == pytest.approx([RATE_HZ / 2] * 2, abs=300)
    assert bandwidth_hz(torch.zeros(2, 4000), RATE_HZ).tolist() == [0.0, 0.0]


def test_a_low_pass_of_ours_makes_it_smaller(noise_wave: torch.Tensor) -> None:
    limits = (torch.tensor([4000.0] * 2), torch.zeros(2))
    limited = band_limit(noise_wave, *limits, RATE_HZ)
    assert (bandwidth_hz(limited, RATE_HZ) < 22_000).all()


def test_the_share_is_of_what_was_lost() -> None:
    own, before, whole = (
        torch.tensor(
            [[12.0, 4.0, 2.0, 22.0, 20.0], [4.0, 4.0, 4.0, 4.0, 19.5], [20.0, 20.0, 20.0, 20.0, 20.0]]
        )
        * 1000
    )
    share = restored_share(own, before, whole, 1000.0)
    assert share[:4].tolist() == pytest.approx([0.5, 0.0, -0.125, 1.0]) and math.isnan(share[4])


class NoFloat64(TorchFunctionMode):
    """A device that has none, as Apple's MPS."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        assert not (isinstance(found, torch.Tensor) and found.dtype == torch.float64), func
        return found


def test_where_there_is_no_float64_none_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, noise_wave: torch.Tensor
) -> None:
    expected = bandwidth_hz(noise_wave, RATE_HZ), level_db(noise_wave)
    for module in (restoration_metrics, average_spectrum):
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    with NoFloat64():
        found = bandwidth_hz(noise_wave, RATE_HZ), level_db(noise_wave)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_levels_are_those_of_known_tones() -> None:
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(RATE_HZ) / RATE_HZ)
    waves = torch.stack([tone, 0.01 * tone, torch.zeros(RATE_HZ)])
    assert level_db(waves).tolist() == pytest.approx([-3.01, -43.01, -120.0], abs=0.01)
