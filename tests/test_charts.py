"""What the pictures show, against loops written out, filters whose response scipy knows, and both ways of drawing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from enhancer.charts import (
    SPECTROGRAM_FLOOR_DB,
    Wave,
    difference_chart,
    moments,
    overlay_chart,
    response_chart,
    spectrograms,
    waves_of_task,
)
from enhancer.report import svg
from enhancer.tasks.figures import chart_figure, show_charts, show_sounds

RATE_HZ = 44_100


@pytest.mark.parametrize("count", [1, 7, 100])
def test_the_loudest_and_the_worst_moment_are_those_of_a_loop(count: int, random: torch.Generator) -> None:
    target, error = torch.randn(2, 300, generator=random)
    estimate = target + error
    found = moments(estimate, target, count)
    for name, energy in (("loudest", target**2), ("worst", (estimate - target) ** 2)):
        sums = [float(energy[start : start + count].double().sum()) for start in range(300 - count + 1)]
        assert found[name] == int(np.argmax(sums))


def test_a_wave_that_is_shorter_than_the_moment_is_shown_from_its_start() -> None:
    assert moments(torch.ones(5), torch.ones(5), 5) == {"loudest": 0, "worst": 0}
    assert moments(torch.ones(5), torch.ones(5), 50) == {"loudest": 0, "worst": 0}


def test_the_difference_to_a_filtered_target_is_the_response_of_the_filter(random: torch.Generator) -> None:
    target = torch.randn(20 * RATE_HZ, generator=random)
    b, a = signal.butter(2, 3000, fs=RATE_HZ)
    filtered = torch.from_numpy(signal.lfilter(b, a, target.numpy()).astype(np.float32))
    chart = difference_chart([Wave("estimate", "0", filtered)], target, RATE_HZ)
    (line,) = chart.lines
    is_known = (line.x > 200) & (line.x < 15_000)
    _, response = signal.freqz(b, a, line.x[is_known], fs=RATE_HZ)
    np.testing.assert_allclose(line.y[is_known], 20 * np.log10(np.abs(response)), atol=0.5)
    assert chart.shaded_from == 10_000


def test_bands_that_nobody_hears_are_gaps(random: torch.Generator) -> None:
    """A target whose upper half is 120 dB down, and an estimate that is 6 dB above it."""
    noise = torch.randn(4 * RATE_HZ, generator=random).double()
    spectrum = torch.fft.rfft(noise)
    spectrum[len(spectrum) // 2 :] *= 1e-6
    target = torch.fft.irfft(spectrum)
    (line,) = difference_chart([Wave("estimate", "0", 2 * target)], target, RATE_HZ).lines
    np.testing.assert_allclose(line.y[line.x < 9000], 20 * math.log10(2), atol=1e-6)
    assert np.isnan(line.y[line.x > 13_000]).all()


def test_levels_are_told_from_the_loudest_band_down() -> None:
    wave = torch.sin(2 * math.pi * 1000 * torch.arange(RATE_HZ) / RATE_HZ)
    chart = response_chart([Wave("estimate", "0", wave), Wave("target", "target", 0.1 * wave)], RATE_HZ)
    assert [line.name for line in chart.lines] == ["target", "estimate"]  # the target lies below
    assert chart.y_range is not None and chart.y_range[1] == pytest.approx(-3.01 + 3, abs=0.1)
    assert chart.x_range == (20.0, RATE_HZ / 2)


def test_an_overlay_starts_at_its_moment() -> None:
    ramp = torch.arange(1000.0)
    chart = overlay_chart("here", [Wave("estimate", "0", ramp)], 1000, 300, 50)
    np.testing.assert_allclose(chart.lines[0].y, np.arange(300, 350))
    np.testing.assert_allclose(chart.lines[0].x, np.arange(50))


def test_spectrograms_share_one_scale() -> None:
    wave = torch.sin(2 * math.pi * 1000 * torch.arange(RATE_HZ) / RATE_HZ)
    shown = spectrograms(waves_of_task({"dry": wave, "estimate": wave / 10, "target": 0 * wave}), RATE_HZ)
    assert list(shown.names) == ["dry", "estimate", "target"]
    highest = [float(level_db.max()) for level_db in shown.level_db]
    assert highest == pytest.approx([0, -20, SPECTROGRAM_FLOOR_DB], abs=1e-3)
    assert (shown.seconds, shown.highest_hz) == (1.0, RATE_HZ / 2)


class Album:
    """Media that keeps what it is given."""

    def __init__(self) -> None:
        self.sounds: dict[str, Tensor] = {}
        self.figures: dict[str, Any] = {}

    def audio(self, name: str, wave: Tensor, rate_hz: int) -> None:
        self.sounds[name] = wave

    def figure(self, name: str, figure: Any) -> None:
        self.figures[name] = figure


def test_tensorboard_gets_response_and_overlays(random: torch.Generator) -> None:
    dry, target, error = torch.randn(3, 9000, generator=random)
    waves = {"dry": dry, "estimate": target + 0.1 * error, "target": target}
    album = Album()
    show_sounds(album, 2, waves, RATE_HZ)
    show_charts(album, 2, waves, RATE_HZ)
    assert set(album.sounds) == {"2/dry", "2/estimate", "2/target"}
    assert set(album.figures) == {"2/spectrogram", "2/response", "2/loudest", "2/worst"}
    levels, difference = album.figures["2/response"].axes
    for axis, chart in (
        (levels, response_chart(waves_of_task(waves), RATE_HZ)),
        (difference, difference_chart([Wave("estimate", "0", waves["estimate"])], target, RATE_HZ)),
    ):
        assert axis.get_xscale() == "log"
        assert [line.get_label() for line in axis.lines][: len(chart.lines)] == [
            line.name for line in chart.lines
        ]
        np.testing.assert_allclose(axis.lines[0].get_ydata(), chart.lines[0].y)
    (worst,) = album.figures["2/worst"].axes
    start = moments(waves["estimate"], target, round(0.025 * RATE_HZ))["worst"]
    np.testing.assert_allclose(worst.lines[0].get_ydata()[:10], target[start : start + 10], atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_model_that_puts_out_no_numbers_is_drawn_all_the_same(value: float) -> None:
    """As PNG and as SVG: training must not end because of its pictures."""
    target = torch.sin(torch.arange(9000) / 10)
    broken = torch.full_like(target, value)
    waves = [Wave("target", "target", target), Wave("estimate", "0", broken)]
    start = moments(broken, target, 100)["worst"]
    charts = [
        response_chart(waves, RATE_HZ),
        difference_chart(waves[1:], target, RATE_HZ),
        overlay_chart("worst", waves, RATE_HZ, start, 100),
    ]
    chart_figure(charts).canvas.draw()
    for chart in charts:
        text = svg.figure(chart)
        assert "nan" not in text and "inf" not in text
