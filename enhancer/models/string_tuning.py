"""Trial runs of a string: it rings, its decay is measured as that of a note is, and its losses are put right.

What `calibrated` makes of a T60 is right for partials of given strengths and filters that do as they are asked. Those
of a note are as its history has them, filters overlap, and a network has its own share in the decay; so the string is
run from its history, each octave band's T60 is compared with what it should be, and the loss of the band multiplied by
their ratio. The loop stays one that never gains: nothing but its losses is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.decay import FIT_RANGE_DB, fit_decay, holds_partial, octave_levels, window_samples

RUNS = 6
SHARE = 0.8
"""Of the logarithm of a ratio that one run puts right: neighbouring bands share filters."""
LARGEST_STEP = 0.7
NEAR_ENOUGH = 0.01
"""No further run where the worst band is this close, relative."""
LONGEST_SECONDS = 8.0

PerBand = Float[Tensor, "batch band"]
PerRow = Float[Tensor, " batch"]


def tuned(
    ring: Callable[[PerBand, int], Float[Tensor, "batch sample"]],
    num_samples: int,
    rate_hz: int,
    f0_hz: PerRow,
    t60: PerBand,
    t60_range_db: PerBand | None = None,
) -> tuple[PerBand, Float[Tensor, "batch sample"] | None]:
    """The change of those tried by which T60 comes nearest to `t60` over `num_samples`, by each row's worst band.

    And what the string then does for `num_samples`, or None where it has not been run as long.

    Args:
        ring: so many samples of the string whose losses are multiplied by exp(change) in each octave band.
        num_samples: over which `t60` holds; no more than LONGEST_SECONDS of them are run.
        rate_hz: sample rate.
        f0_hz: of each row.
        t60: seconds in the octave bands; NaN is not known. Bands that hold no partial are left alone.
        t60_range_db: by how much the level had fallen where the line that `t60` is of ended; NaN or None:
            FIT_RANGE_DB, or as far as it comes.
    """
    count = min(num_samples, round(LONGEST_SECONDS * rate_hz))
    change = torch.zeros_like(t60, dtype=torch.float64)
    if count < 2 * window_samples(rate_hz):
        return change, None
    wanted = torch.where(holds_partial(f0_hz), t60.double(), math.nan)
    range_db = torch.full_like(wanted, FIT_RANGE_DB)
    if t60_range_db is not None:
        range_db = torch.where(t60_range_db.isnan(), range_db, t60_range_db.double())
    best, least = change, torch.full_like(f0_hz, math.inf, dtype=torch.float64)
    best_wave: Tensor | None = None
    for _ in range(RUNS):
        wave = ring(change, count)
        levels = octave_levels(wave, rate_hz)
        own = fit_decay(levels.band_db, levels.hop_seconds, levels.band_db[..., 0] - range_db, 2).t60_seconds
        # A band that has gone before its line has two points: as short as can be told.
        own = torch.where(own.isnan(), levels.hop_seconds, own)
        ratio = torch.where(wanted.isnan(), 1.0, own / wanted)
        worst = (ratio - 1).abs().amax(1)
        is_nearer = worst < least
        best = torch.where(is_nearer[:, None], change, best)
        best_wave = wave if best_wave is None else torch.where(is_nearer[:, None], wave, best_wave)
        least = torch.minimum(worst, least)
        if bool((least < NEAR_ENOUGH).all()):
            break
        change = change + SHARE * ratio.log().clamp(-LARGEST_STEP, LARGEST_STEP)
    return best, best_wave if count == num_samples else None
