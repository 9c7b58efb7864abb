"""How well a free-running string decays as the real one does, per row, and which of the known failures it has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from enhancer.signal.decay import (
    FLOOR_DB,
    Decay,
    Levels,
    PerBand,
    audible_bands,
    end_dc,
    fit_decay,
    holds_partial,
    octave_levels,
    octave_t60,
    period_gains_db,
)
from enhancer.signal.pitch import cents, estimate_f0
from enhancer.signal.spectral_distance import stft_distance
from enhancer.signal.types import PerRow, WaveBatch

AUDIBLE_DB = 50.0
"""Octave bands that begin further below the loudest one are not judged."""
NOISE_MARGIN_DB = 10.0
STEADY_SHARE, LEFT_OFF_SHARE = 0.2, 0.1
LARGEST_ERROR = 10.0
"""Of a T60, relative: stands for all that is further off, such as a tone that never decays."""

NEVER_RATIO = 4.0
"""`never decays`: a T60 this many times the target's, of the whole note or of the last part of what is judged."""
NEVER_ABOVE_DB = 10.0
"""... which there ends this much above the target's level."""
FAST_RATIO = 0.5
"""`decays much too fast`: a T60 below this share of the target's."""
SETTLE_DBFS = -80.0
SETTLE_BELOW_PEAK_DB = -60.0
"""`settles on a value other than zero`: DC at the end above both, the second relative to the target's peak."""
BLOW_UP_DB = 20.0
"""`blows up`: NaN, infinite, or a peak this much above the target's."""

BAND_LIMIT = 0.2
"""T60 of every octave band of a note should be within this share of the recording's."""
HELD_AGAINST = ("t60_error", "t60_worst_error", "level_error_db")
ALSO_OF_LINEAR = (*HELD_AGAINST, "t60_bands_within", "num_failures")

JUDGED = {
    "": "the model",
    "linear_": "the plain linear filter",
    "foretold_": "the model, T60 foretold from the first seconds of the note",
    "linear_foretold_": "the plain linear filter, T60 foretold likewise",
}
"""By the prefix of its metrics what was judged."""

NEVER = "never decays"
FAST = "decays much too fast"
SETTLES = "settles on a value other than zero"
BLOWS_UP = "blows up"
FAILURES = {
    "never_decays": NEVER,
    "decays_too_fast": FAST,
    "settles_off_zero": SETTLES,
    "blows_up": BLOWS_UP,
}
"""Names of the metrics that are 1 where a failure is there, and what it is called."""


@dataclass(frozen=True)
class Resolution:
    """One STFT resolution, in samples."""

    n_fft: int
    hop_length: int
    win_length: int


RESOLUTIONS = tuple(Resolution(size, size // 4, size) for size in (512, 1024, 2048))


def string_metrics(
    estimate: WaveBatch,
    target: WaveBatch,
    rate_hz: int,
    f0_hz: PerRow,
    noise_db: PerBand | None = None,
) -> dict[str, PerRow]:
    """What models of strings are judged by, per row; NaN where it cannot be told, as of an estimate that blows up.

    Args:
        estimate: [B, T], what the model makes alone from the end of the attack on.
        target: [B, T], the note there. T is a second at least, better four.
        rate_hz: of both.
        f0_hz: [B], of the notes.
        noise_db: [B, bands], noise floor of the recording in the bands of OCTAVE_CENTRES_HZ, dB re full scale; NaN or
            None where it is not known.

    Returns:
        t60_error, t60_worst_error: |T60 / T60 of the target - 1|, mean and worst of the octave bands that are judged:
            that hold a partial of f0, begin within AUDIBLE_DB of the loudest and whose target falls by 10 dB or
            more before it is NOISE_MARGIN_DB above the noise. Both are fitted down to the same level. At most
            LARGEST_ERROR a band.
        t60_bands, t60_bands_within: how many bands that were, and how many of them are within BAND_LIMIT.
        t60_unsteady_bands: of how many of them the target itself says no T60 to STEADY_SHARE: without the first or the
            last tenth of what is fitted its T60 is another by more. They are judged all the same.
        t60_whole_error: likewise of all bands together, signed.
        f0_error_cents: of the estimate's f0 against the target's, both measured, absolute.
        end_dc_dbfs: of the last half second of the estimate.
        energy_gain_db_per_period, energy_gain_max_db: median and maximum of the gain from one period to the next.
        level_error_db: mean absolute difference of the decay curves in dB over the judged bands and their frames.
        spectral_distance: of STFT magnitudes, see `stft_distance`.
        never_decays, decays_too_fast, settles_off_zero, blows_up: 1 where it happens, see `failures`; and
        num_failures.
    """
    rows = []
    for row in range(len(target)):
        noise = None if noise_db is None else noise_db[row : row + 1]
        rows.append(_row_metrics(estimate[row], target[row], rate_hz, float(f0_hz[row]), noise))
    return {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float32, device=target.device)
        for name in rows[0]
    }


def named_failures(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row of metrics, by name."""
    return [text for name, text in FAILURES.items() if row.get(name)]


def is_within_bands(row: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether a note is as it should be, by what JUDGED says of `prefix`: T60 of every band, no failure; NaN is not."""
    return row[f"{prefix}t60_worst_error"] <= BAND_LIMIT and row[f"{prefix}num_failures"] == 0


def judged_prefixes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of JUDGED those that `rows` tell of. Where every note is too short to foretell anything, that is left out."""
    found = []
    for prefix in JUDGED:
        name = f"{prefix}t60_worst_error"
        if not all(name in row for row in rows):
            continue
        is_known = any(row[name] is not None and row[name] == row[name] for row in rows)
        if is_known or "foretold" not in prefix:
            found.append(prefix)
    return found


def is_of_another(name: str) -> bool:
    """Whether a metric says how something else than the model as it is trained and told did, or what lies between."""
    return name.startswith(tuple(prefix for prefix in JUDGED if prefix)) or name.endswith("_below_linear")


def beside_linear(own: Mapping[str, float], linear: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a plain linear filter that a model is held against, and by how much the model's own are below."""
    beside = {f"linear_{name}": linear[name] for name in ALSO_OF_LINEAR}
    return beside | {f"{name}_below_linear": linear[name] - own[name] for name in HELD_AGAINST}


def failures(estimate: Tensor, target: Tensor, rate_hz: int, f0_hz: float) -> list[str]:
    """Names of what is wrong with an estimate [T] of a target [T] in the large; an empty list where nothing is.

    `blows up`: NaN, infinite, or BLOW_UP_DB above the target's peak; no other name is then looked for. `never decays`:
    over the time in which the target falls by 10 dB or more the estimate's T60 is NEVER_RATIO times as long; or it is
    in the last third of that time, and the estimate ends NEVER_ABOVE_DB above the target. `decays much too fast`: the
    T60 is below FAST_RATIO of the target's. `settles on a value other than zero`: see SETTLE_DBFS and
    SETTLE_BELOW_PEAK_DB. Means are taken out before decays are looked at.
    """
    if not bool(estimate.isfinite().all()):
        return [BLOWS_UP]
    peak = float(target.abs().max())
    if float(estimate.abs().max()) > peak * 10 ** (BLOW_UP_DB / 20):
        return [BLOWS_UP]
    found = _decay_failures(estimate, target, rate_hz)
    dc = abs(float(end_dc(estimate[None], rate_hz)))
    if dc > max(10 ** (SETTLE_DBFS / 20), peak * 10 ** (SETTLE_BELOW_PEAK_DB / 20)):
        found.append(SETTLES)
    return found


def _decay_failures(estimate: Tensor, target: Tensor, rate_hz: int) -> list[str]:
    levels = octave_levels(torch.stack([estimate, target]), rate_hz)
    mine, wanted = levels.whole_db
    decay = _whole_decay(wanted, wanted, levels.hop_seconds)
    if not decay.range_db >= 10:
        return []
    count = int(decay.frames)
    own = _whole_decay(mine, wanted, levels.hop_seconds, count)
    t60, own_t60 = float(decay.t60_seconds), float(own.t60_seconds)
    if math.isnan(own_t60) or own_t60 < FAST_RATIO * t60:
        return [FAST]
    if own_t60 > NEVER_RATIO * t60:
        return [NEVER]
    last = slice(max(count - max(count // 3, 4), 0), count)
    slopes = [_slope(level[last], levels.hop_seconds) for level in (mine, wanted)]
    is_above = float(mine[count - 1]) > float(wanted[count - 1]) + NEVER_ABOVE_DB
    return [NEVER] if is_above and slopes[0] > slopes[1] / NEVER_RATIO else []


def _whole_decay(level_db: Tensor, wanted_db: Tensor, hop_seconds: float, count: int | None = None) -> Decay:
    """Line through a whole note's levels [N] down to FIT_RANGE_DB below the start of `wanted_db`."""
    stop = (wanted_db[0] - 60).clamp_min(FLOOR_DB + 10)
    return fit_decay(level_db[:count], hop_seconds, stop, 2)


def _slope(level_db: Tensor, hop_seconds: float) -> float:
    time = torch.arange(len(level_db), dtype=level_db.dtype, device=level_db.device) * hop_seconds
    time = time - time.mean()
    return float((time * (level_db - level_db.mean())).sum() / time.square().sum())


def _row_metrics(
    estimate: Tensor, target: Tensor, rate_hz: int, f0_hz: float, noise_db: PerBand | None
) -> dict[str, float]:
    named = failures(estimate, target, rate_hz, f0_hz)
    flags = {name: float(text in named) for name, text in FAILURES.items()}
    flags["num_failures"] = float(len(named))
    if not bool(estimate.isfinite().all()):
        return dict.fromkeys(MEASURED, math.nan) | flags
    values = decay_errors(estimate, target, rate_hz, f0_hz, noise_db)
    pitches = [estimate_f0(wave, rate_hz, near_hz=f0_hz) for wave in (estimate, target)]
    gains = period_gains_db(estimate[None], rate_hz, torch.tensor([f0_hz]))[0]
    values |= {
        "f0_error_cents": abs(cents(pitches[0].f0_hz, pitches[1].f0_hz)),
        "end_dc_dbfs": 20 * math.log10(max(abs(float(end_dc(estimate[None], rate_hz))), 1e-10)),
        "energy_gain_db_per_period": float(gains.median()) if len(gains) else math.nan,
        "energy_gain_max_db": float(gains.max()) if len(gains) else math.nan,
        "spectral_distance": float(stft_distance(estimate[None].float(), target[None].float(), RESOLUTIONS)),
    }
    return {name: values[name] for name in MEASURED} | flags


MEASURED = (
    "t60_error", "t60_worst_error", "t60_bands", "t60_bands_within", "t60_unsteady_bands", "t60_whole_error",
    "f0_error_cents", "end_dc_dbfs", "energy_gain_db_per_period", "energy_gain_max_db", "level_error_db",
    "spectral_distance",
)  # fmt: skip


def decay_errors(
    estimate: Tensor, target: Tensor, rate_hz: int, f0_hz: float, noise_db: PerBand | None = None
) -> dict[str, float]:
    """The T60 metrics and `level_error_db` of `string_metrics` for one row; waves [T], noise_db [1, bands]."""
    levels = octave_levels(torch.stack([estimate, target]), rate_hz)
    wanted, stop_db = octave_t60(_row(levels, 1), noise_db, NOISE_MARGIN_DB)
    is_judged = (audible_bands(_row(levels, 1), AUDIBLE_DB) > 0) & wanted.t60_seconds.isfinite()
    is_judged &= holds_partial(torch.tensor([f0_hz]))
    bands = is_judged[0].nonzero()[:, 0].tolist()
    errors, differences, unsteady = [], [], 0
    for band in bands:
        count = int(wanted.frames[0, band])
        own = fit_decay(levels.band_db[0, band, :count], levels.hop_seconds, stop_db[0, band], 2)
        t60 = float(own.t60_seconds)
        ratio = (0.0 if math.isnan(t60) else t60) / float(wanted.t60_seconds[0, band])
        errors.append(min(abs(ratio - 1), LARGEST_ERROR))
        unsteady += not _is_steady(levels.band_db[1, band, :count], levels.hop_seconds)
        heard = torch.maximum(levels.band_db[:, band, :count], stop_db[0, band])
        differences.append(float((heard[0] - heard[1]).abs().mean()))
    return {
        "t60_error": sum(errors) / len(errors) if errors else math.nan,
        "t60_worst_error": max(errors, default=math.nan),
        "t60_bands": float(len(bands)),
        "t60_bands_within": float(sum(error <= BAND_LIMIT for error in errors)),
        "t60_unsteady_bands": float(unsteady),
        "t60_whole_error": _whole_error(levels.whole_db, levels.hop_seconds),
        "level_error_db": sum(differences) / len(differences) if differences else math.nan,
    }


def _is_steady(level_db: Tensor, hop_seconds: float) -> bool:
    """Whether T60 of levels [N] stays within STEADY_SHARE without the first or the last LEFT_OFF_SHARE of them."""
    left_off = math.ceil(LEFT_OFF_SHARE * len(level_db))
    slope = _slope(level_db, hop_seconds)
    others = [_slope(part, hop_seconds) for part in (level_db[left_off:], level_db[:-left_off])]
    return all(other < 0 and abs(slope / other - 1) <= STEADY_SHARE for other in others)


def _whole_error(whole_db: Tensor, hop_seconds: float) -> float:
    wanted = _whole_decay(whole_db[1], whole_db[1], hop_seconds)
    own = _whole_decay(whole_db[0], whole_db[1], hop_seconds, int(wanted.frames))
    t60 = float(own.t60_seconds)
    ratio = (0.0 if math.isnan(t60) else t60) / float(wanted.t60_seconds)
    return min(ratio - 1, LARGEST_ERROR)


def _row(levels: Levels, row: int) -> Levels:
    return Levels(levels.band_db[row : row + 1], levels.whole_db[row : row + 1], levels.hop_seconds)
