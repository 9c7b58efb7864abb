"""What the pictures of an evaluation show, as plain numbers: TensorBoard and the report draw the same.

A `Chart` is drawn by `enhancer.tasks.figures` with matplotlib and by `enhancer.report.svg` as SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enhancer.signal.average_spectrum import LOWEST_HZ, band_levels
from enhancer.signal.decay import OCTAVE_CENTRES_HZ, Levels, audible_bands, octave_levels, window_samples
from enhancer.signal.stft import Stft

EXCESS_FROM_HZ = 10_000.0
"""Above it neural models of devices add what the device does not have, which HFHinge is there to punish."""
OVERLAY_SECONDS = 0.025
SPECTROGRAM_FLOOR_DB = -90.0
SHOWN_BELOW_LOUDEST_DB = 90.0
MOST_DIFFERENCE_DB = 40.0
LINEAR_FILTER, GRIFFIN_LIM, DENOISER = "linear filter", "Griffin-Lim", "denoiser alone"
BASELINES = (LINEAR_FILTER, GRIFFIN_LIM, DENOISER)
"""What tasks call the plain ways that their models are judged beside."""
SHOWN_BAND_DB = 50.0
"""Bands of a decay that begin further below the loudest one are not drawn."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Line:
    """One curve. `x`, `y` and the edges `low`, `high` of a band around it: float [N]; NaN in `y` is a gap.

    `tone` says what it stands for, which gives it its colour: `input`, `target`, `baseline`, or `0`, `1`, ... for one
    of several estimates or runs. A `target` is drawn wide and pale, an `input` dashed, a `baseline` dotted.
    """

    name: str
    tone: str
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    texts: Sequence[str] = ()
    """What is told of each point when it is pointed at; with it the points are marked."""


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes. Ranges that are None follow the curves."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_log_x: bool = False
    is_log_y: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    shaded_from: float | None = None
    """The picture is tinted from this x on."""
    zero_line: bool = False


@dataclass(frozen=True)
class Wave:
    """Samples [T] under the name that the picture gives them; `tone` as of a Line."""

    name: str
    tone: str
    samples: Tensor


@dataclass(frozen=True)
class Spectrograms:
    """Magnitudes on one scale: `level_db` in the order of the waves, float32 [F, N], SPECTROGRAM_FLOOR_DB to 0."""

    names: Sequence[str]
    level_db: Sequence[Tensor]
    seconds: float
    highest_hz: float


def waves_of_task(waves: Mapping[str, Tensor]) -> list[Wave]:
    """The waves [T] of a task with their tones: the target, the estimate, a baseline, and what the model hears."""
    tones = {"target": "target", "estimate": "0", **dict.fromkeys(BASELINES, "baseline")}
    return [Wave(name, tones.get(name, "input"), wave) for name, wave in waves.items()]


def moment_of_most(energy: Tensor, count: int) -> int:
    """Where the `count` neighbouring samples with the greatest sum of `energy` [T] begin; 0 where T is no longer."""
    if len(energy) <= count:
        return 0
    total = torch.cat([energy.new_zeros(1, dtype=torch.float64), energy.double().cumsum(0)])
    return int((total[count:] - total[:-count]).argmax())


def moments(estimate: Tensor, target: Tensor, count: int) -> dict[str, int]:
    """First samples of the `count` samples where the target is `loudest` and where the estimate is `worst`.

    By energy: sum of target**2, and sum of (estimate - target)**2. Waves [T].
    """
    return {
        "loudest": moment_of_most(target.square(), count),
        "worst": moment_of_most((estimate - target).square(), count),
    }


def overlay_samples(rate_hz: int) -> int:
    """Samples of an overlay: short enough for single periods to be seen."""
    return max(2, round(OVERLAY_SECONDS * rate_hz))


def overlay_chart(title: str, waves: Sequence[Wave], rate_hz: int, start: int, count: int) -> Chart:
    """`count` samples of each wave from sample `start` on, over each other, the target at the bottom."""
    lines = []
    for wave in sorted(waves, key=lambda wave: wave.tone != "target"):
        piece = wave.samples[start : start + count].detach().double().cpu().numpy()
        lines.append(Line(wave.name, wave.tone, 1000 * np.arange(len(piece)) / rate_hz, piece))
    return Chart(title, "time (ms)", "amplitude", lines, zero_line=True)


def response_chart(waves: Sequence[Wave], rate_hz: int) -> Chart:
    """Level of each wave in bands of a sixth octave, tinted from 10 kHz on."""
    lines = []
    for wave in sorted(waves, key=lambda wave: wave.tone != "target"):
        centre, level_db = (values.cpu().numpy() for values in band_levels(wave.samples.detach(), rate_hz))
        lines.append(Line(wave.name, wave.tone, centre, level_db))
    # A model that puts out NaN must not end the run that shows it.
    levels = np.concatenate([[-60.0], *(line.y[np.isfinite(line.y)] for line in lines)])
    levels = levels[1:] if len(levels) > 1 else levels
    top, bottom = float(levels.max()), float(levels.min())
    return Chart(
        "Frequency response", "frequency (Hz)", "level (dB)", lines, is_log_x=True, x_range=_octaves(rate_hz),
        y_range=(max(bottom, top - SHOWN_BELOW_LOUDEST_DB) - 3, top + 3), shaded_from=EXCESS_FROM_HZ,
    )  # fmt: skip


def difference_chart(estimates: Sequence[Wave], target: Tensor, rate_hz: int) -> Chart:
    """Level of each estimate minus that of the target [T] in bands of a sixth octave: above 0 is too much.

    Bands where both are too far below the target's loudest one to be heard are gaps.
    """
    _, wanted_db = band_levels(target.detach(), rate_hz)
    audible_db = wanted_db.max() - SHOWN_BELOW_LOUDEST_DB
    lines = []
    for wave in estimates:
        centre, level_db = band_levels(wave.samples.detach(), rate_hz)
        is_heard = torch.maximum(level_db, wanted_db) >= audible_db
        difference = (level_db - wanted_db).where(is_heard, torch.nan)
        lines.append(Line(wave.name, wave.tone, centre.cpu().numpy(), difference.cpu().numpy()))
    highest = max(float(np.nanmax(np.abs(line.y), initial=0.0)) for line in lines)
    limit = min(max(6.0, highest + 1), MOST_DIFFERENCE_DB)
    return Chart(
        "Estimate against target", "frequency (Hz)", "estimate - target (dB)", lines, is_log_x=True,
        x_range=_octaves(rate_hz), y_range=(-limit, limit), shaded_from=EXCESS_FROM_HZ, zero_line=True,
    )  # fmt: skip


def decay_charts(waves: Sequence[Wave], rate_hz: int) -> list[Chart]:
    """Level of each wave over time: of all of it, and of each octave band that the target can be heard in.

    Waves [T] of one length; the target is one of them. None where they are too short for a decay to be told.
    """
    if min(wave.samples.shape[-1] for wave in waves) < 2 * window_samples(rate_hz):
        return []
    ordered = sorted(waves, key=lambda wave: wave.tone != "target")
    levels = octave_levels(torch.stack([wave.samples.detach().cpu() for wave in ordered]), rate_hz)
    target = Levels(levels.band_db[:1], levels.whole_db[:1], levels.hop_seconds)
    is_shown = audible_bands(target, SHOWN_BAND_DB)[0].bool().tolist()
    curves = [("Decay", levels.whole_db)]
    for band, centre in enumerate(OCTAVE_CENTRES_HZ):
        if is_shown[band]:
            curves.append((f"Decay in the octave around {centre:g} Hz", levels.band_db[:, band]))
    return [_decay_chart(title, ordered, level_db, levels.hop_seconds) for title, level_db in curves]


def _decay_chart(title: str, waves: Sequence[Wave], level_db: Tensor, hop_seconds: float) -> Chart:
    heights: Array = level_db.cpu().double().numpy()
    seconds = np.arange(heights.shape[1], dtype=np.float64) * hop_seconds
    lines = [Line(wave.name, wave.tone, seconds, row) for wave, row in zip(waves, heights, strict=True)]
    known = heights[np.isfinite(heights)]
    top = float(known.max()) if len(known) else 0.0
    bottom = max(float(known.min()) if len(known) else 0.0, top - SHOWN_BELOW_LOUDEST_DB)
    return Chart(title, "time (s)", "level (dB)", lines, y_range=(bottom - 3, top + 3))


def spectrograms(waves: Sequence[Wave], rate_hz: int) -> Spectrograms:
    """STFT magnitudes (window 2048, hop 512) in dB below the loudest bin of all waves."""
    stft = Stft(window_samples=2048, hop_samples=512)
    magnitudes = [stft(wave.samples.detach().float().cpu()[None])[0].abs() for wave in waves]
    loudest = max(float(magnitude.max()) for magnitude in magnitudes) or 1.0
    floor = 10 ** (SPECTROGRAM_FLOOR_DB / 20)
    return Spectrograms(
        [wave.name for wave in waves],
        [20 * torch.log10((magnitude / loudest).clamp_min(floor)) for magnitude in magnitudes],
        max(wave.samples.shape[-1] for wave in waves) / rate_hz,
        rate_hz / 2,
    )


def _octaves(rate_hz: int) -> tuple[float, float]:
    return LOWEST_HZ, rate_hz / 2
