"""How a tone dies away: levels in octave bands over time, and the T60 of each from a line through them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from enhancer.signal.stft import hann_window
from enhancer.signal.types import PerRow, WaveBatch

OCTAVE_CENTRES_HZ = (62.5, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)
"""The lowest band reaches down to LOWEST_HZ, the highest up to half the rate; the others by half an octave around."""
LOWEST_HZ = 20.0
WINDOW_SECONDS = 0.186
HOPS_PER_WINDOW = 8
FLOOR_DB = -200.0

FIT_RANGE_DB = 60.0
"""No fit looks further below the level at its start."""
FEWEST_RANGE_DB = 10.0
"""What a band has to fall by for its T60 to be told."""
FEWEST_FRAMES = 4
LONGEST_T60_SECONDS = 1000.0
"""Stands for all that is longer, and for levels that do not fall."""

BandLevels = Float[Tensor, "batch band frame"]
PerBand = Float[Tensor, "batch band"]


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels over time in dB, 0 for a mean square of 1, none below FLOOR_DB.

    Frame n is the mean over a Hann window that begins at sample n * hop_samples: of an exponential decay every frame
    is the one before it times a constant, so that its slope is exact.
    """

    band_db: BandLevels
    whole_db: Float[Tensor, "batch frame"]
    """All bands together."""
    hop_seconds: float


@dataclass(frozen=True, eq=False)
class Decay:
    """Straight lines through levels in dB, over any leading axes.

    t60_seconds: time to fall by 60 dB, 0 < T60 <= LONGEST_T60_SECONDS; NaN where there are too few frames or too little
    fall to tell. range_db: how far the line falls over its frames. frames: how many they are, from the first on.
    """

    t60_seconds: Float[Tensor, "*row"]
    range_db: Float[Tensor, "*row"]
    frames: Int64[Tensor, "*row"]


def window_samples(rate_hz: int) -> int:
    """Samples of the window of `octave_levels`: a power of two near 0.19 s."""
    return 1 << round(math.log2(WINDOW_SECONDS * rate_hz))


def octave_levels(wave: WaveBatch, rate_hz: int) -> Levels:
    """Levels of `wave` [B, T] in the bands of OCTAVE_CENTRES_HZ, without its mean.

    A band is a sum of bins of an STFT, each bin in one band. Bands above half the rate are silent.
    Raises ValueError where T is shorter than two windows.
    """
    size = window_samples(rate_hz)
    hop = size // HOPS_PER_WINDOW
    if wave.shape[-1] < 2 * size:
        raise ValueError(
            f"a wave of {wave.shape[-1] / rate_hz:.3f} s is too short for its decay to be told; needed "
            f"{2 * size / rate_hz:.3f} s"
        )
    window = hann_window(size, torch.float64, wave.device)
    hz = torch.fft.rfftfreq(size, 1 / rate_hz, dtype=torch.float64, device=wave.device)
    last = len(OCTAVE_CENTRES_HZ) - 1
    band = torch.floor(torch.log2(hz.clamp_min(1e-9) / OCTAVE_CENTRES_HZ[0]) + 0.5).clamp(0, last)
    band = torch.where(hz < LOWEST_HZ, -1.0, band)
    belongs = (band[:, None] == torch.arange(last + 1, device=wave.device)).double()
    rows = []
    for row in wave.double():
        frames = row.unfold(-1, size, hop)
        # A mean beside the tone is another matter, and would leak into the lowest band.
        mean = (frames @ window) / window.sum()
        power = torch.fft.rfft((frames - mean[:, None]) * window).abs().square()
        rows.append(power @ belongs * (2 / (size * window.square().sum())))
    energy = torch.stack(rows).transpose(-1, -2)
    return Levels(_decibels(energy), _decibels(energy.sum(-2)), hop / rate_hz)


def fit_decay(
    level_db: Float[Tensor, "*row frame"], hop_seconds: float, stop_db: Float[Tensor, "*row"], fewest: int
) -> Decay:
    """Least-squares lines through levels from the first frame to the last one before they fall below `stop_db`.

    A line ends FIT_RANGE_DB below its first level in any case. `fewest`: frames that a line needs.
    """
    stop_db = torch.maximum(stop_db, level_db[..., 0] - FIT_RANGE_DB)
    # cummin: a level that has fallen below once stays out.
    is_inside = level_db.cummin(-1).values >= stop_db[..., None]
    count = is_inside.sum(-1)
    time = torch.arange(level_db.shape[-1], device=level_db.device, dtype=level_db.dtype) * hop_seconds
    weight = is_inside.to(level_db.dtype)
    total = count.clamp_min(1).to(level_db.dtype)
    mean_time = (weight * time).sum(-1) / total
    mean_db = (weight * level_db).sum(-1) / total
    deviation = weight * (time - mean_time[..., None])
    spread = deviation.square().sum(-1)
    slope = (deviation * (level_db - mean_db[..., None])).sum(-1) / spread.clamp_min(1e-30)
    t60 = torch.where(slope < 0, -60 / slope.clamp_max(-1e-30), math.inf).clamp_max(LONGEST_T60_SECONDS)
    range_db = -slope * (count - 1).clamp_min(0) * hop_seconds
    return Decay(torch.where(count >= fewest, t60, math.nan), range_db, count)


def octave_t60(
    levels: Levels, noise_db: PerBand | None = None, margin_db: float = 10.0
) -> tuple[Decay, Float[Tensor, "batch band"]]:
    """Decays of each octave band of `levels`, and the levels [B, bands] at which their lines end.

    A line ends `margin_db` above the noise floor `noise_db` (same scale; None or NaN: not known) and at FIT_RANGE_DB
    below its start. T60 is NaN for a band that falls by less than FEWEST_RANGE_DB.
    """
    stop_db = _stop_db(levels.band_db, noise_db, margin_db)
    decay = fit_decay(levels.band_db, levels.hop_seconds, stop_db, FEWEST_FRAMES)
    is_told = decay.range_db >= FEWEST_RANGE_DB
    return Decay(
        torch.where(is_told, decay.t60_seconds, math.nan), decay.range_db, decay.frames
    ), torch.maximum(stop_db, levels.band_db[..., 0] - FIT_RANGE_DB)


def audible_bands(levels: Levels, below_loudest_db: float) -> Float[Tensor, "batch band"]:
    """1 for bands that begin at most `below_loudest_db` below the one that begins loudest, else 0."""
    first = levels.band_db[..., 0]
    return (first >= first.amax(-1, keepdim=True) - below_loudest_db).double()


def holds_partial(f0_hz: PerRow) -> Bool[Tensor, "batch band"]:
    """Which octave bands a harmonic tone of `f0_hz` [B] has a partial in: all others hold nothing of it."""
    edges = torch.tensor([LOWEST_HZ, *(centre * 2**0.5 for centre in OCTAVE_CENTRES_HZ)], dtype=torch.float64)
    f0 = f0_hz.double()[:, None]
    # The first partial at or above the lower edge.
    first = torch.ceil(edges[:-1].to(f0) / f0).clamp_min(1) * f0
    return first < edges[1:].to(f0)


def end_dc(wave: WaveBatch, rate_hz: int, seconds: float = 0.5) -> PerRow:
    """Mean of the last `seconds` of `wave`, signed, under a squared Hann window, which hears next to nothing of tones.

    A tone of 30 Hz leaks by -130 dB of its level into 0.5 s.
    """
    count = min(wave.shape[-1], round(seconds * rate_hz))
    window = hann_window(count, torch.float64, wave.device).square()
    return wave[..., -count:].double() @ window / window.sum()


def period_gains_db(wave: WaveBatch, rate_hz: int, f0_hz: PerRow, floor_db: float = -100.0) -> list[Tensor]:
    """Energy of each period over that of the one before it, dB, for each row of `wave` [B, T]: a list of [periods - 1].

    Periods are 1 / f0 long, not whole numbers of samples: the running sum of energy is interpolated between samples.
    Ratios of periods whose mean square is below `floor_db` dBFS are left out: they are of nothing but rounding.
    """
    return [_gains_of_row(row, rate_hz / float(f0), floor_db) for row, f0 in zip(wave, f0_hz, strict=True)]


def _gains_of_row(row: Tensor, period: float, floor_db: float) -> Tensor:
    total = torch.nn.functional.pad(row.double().square().cumsum(0), (1, 0))
    edges = torch.arange(0, row.shape[-1], period, dtype=torch.float64, device=row.device)
    place = edges.floor().long().clamp_max(row.shape[-1] - 1)
    at_edges = total[place] + (edges - place) * (total[place + 1] - total[place])
    energy = at_edges.diff()
    is_heard = energy / period >= 10 ** (floor_db / 10)
    pairs = is_heard[1:] & is_heard[:-1]
    return 10 * torch.log10(energy[1:][pairs] / energy[:-1][pairs])


def _stop_db(band_db: BandLevels, noise_db: PerBand | None, margin_db: float) -> PerBand:
    lowest = torch.full_like(band_db[..., 0], FLOOR_DB + margin_db)
    if noise_db is None:
        return lowest
    known = torch.where(noise_db.isnan(), FLOOR_DB, noise_db.to(band_db))
    return torch.maximum(lowest, known + margin_db)


def _decibels(energy: Tensor) -> Tensor:
    return 10 * energy.clamp_min(10 ** (FLOOR_DB / 10)).log10()
