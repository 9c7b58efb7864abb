"""How a note will go on to fall, from its first seconds: what a recording of its beginning alone can say of its T60.

Strings fall in stages, and partials beat: how steep a band is at first is not how steep it will be. By how much the two
differ is learned from notes that were heard to their end: the logarithm of the dB per second that are still to come, by
ridge regression on those of the beginning and its halves, the octave band and the pitch. Nothing else of a note is
known to it. Its answer is computed at once, before training by steps begins.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.signal.decay import (
    FIT_RANGE_DB,
    HOPS_PER_WINDOW,
    OCTAVE_CENTRES_HZ,
    PerBand,
    audible_bands,
    fit_decay,
    holds_partial,
    octave_levels,
    window_samples,
)
from enhancer.signal.types import PerRow, WaveBatch

NUM_FEATURES = 5
HELD_BACK = 10.0
"""Of the ridge, in observations of a feature of variance 1."""
SLOWEST, FASTEST = 2.0, 400.0
"""dB per second: what falls more slowly, or rises for a while as beats do, counts as the first."""
AUDIBLE_DB = 50.0
FEWEST_FRAMES = 8
MIDDLE_HZ, MIDDLE_F0_HZ = 512.0, 181.0
GOES_ON = (0.0, 1.0, 0.0, 0.0, 0.0)
"""Weights before anything is learned: of what was heard its later half."""

BandLevels = Float[Tensor, "note band frame"]


class Outlook(nn.Module):
    """Foretells the decay of octave bands behind the first `seconds` of a note.

    Args:
        rate_hz: sample rate.
        seconds: of a note that are heard, from the end of its attack on: two windows of `octave_levels` or more.

    Before `learn` a band goes on as it fell in the second half of what was heard.
    """

    middle: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, rate_hz: int, seconds: float = 1.0) -> None:
        super().__init__()
        self.rate_hz, self.seconds = rate_hz, seconds
        self.register_buffer("middle", torch.zeros(NUM_FEATURES))
        self.register_buffer("weight", torch.tensor(GOES_ON))
        self.register_buffer("bias", torch.zeros(()))

    @property
    def hop_seconds(self) -> float:
        """Between two frames of levels."""
        return window_samples(self.rate_hz) / HOPS_PER_WINDOW / self.rate_hz

    @property
    def heard_samples(self) -> int:
        """What is heard of a note."""
        return max(round(self.seconds * self.rate_hz), 2 * window_samples(self.rate_hz))

    def forward(self, note: WaveBatch, f0_hz: PerRow) -> PerBand:
        """T60 in seconds of each octave band behind the first `seconds` of `note` [B, T], of which no more is heard.

        `note` begins at the end of the attack. NaN for bands without a partial, or AUDIBLE_DB below the loudest.
        """
        levels = octave_levels(note[:, : self.heard_samples], self.rate_hz)
        rate = self._rate(levels.band_db, f0_hz)
        is_heard = (audible_bands(levels, AUDIBLE_DB) > 0) & holds_partial(f0_hz)
        return torch.where(is_heard, FIT_RANGE_DB / rate, torch.nan).float()

    def over(self, note: WaveBatch, f0_hz: PerRow, start: int, count: int) -> PerBand:
        """T60 of the lines through `count` samples from sample `start` on, which are heard up to `seconds`.

        What is not yet heard goes on in straight lines from the last level. NaN as in `forward`.
        """
        later = self.forward(note, f0_hz)
        known = octave_levels(note[:, start : self.heard_samples], self.rate_hz).band_db
        size = window_samples(self.rate_hz)
        missing = max((count - size) * HOPS_PER_WINDOW // size + 1 - known.shape[-1], 0)
        ahead = torch.arange(1, missing + 1, dtype=known.dtype, device=known.device) * self.hop_seconds
        level_db = torch.cat([known, known[..., -1:] - FIT_RANGE_DB / later.double()[..., None] * ahead], -1)
        level_db = torch.where(later.isnan()[..., None], known[..., :1], level_db)
        stop_db = level_db[..., 0] - FIT_RANGE_DB
        t60 = fit_decay(level_db, self.hop_seconds, stop_db, 2).t60_seconds
        # A band that is gone within two frames is as short as can be told.
        return torch.where(later.isnan(), torch.nan, t60.nan_to_num(self.hop_seconds)).float()

    @torch.no_grad()
    def learn(self, level_db: BandLevels, f0_hz: PerRow, stop_db: Float[Tensor, "note band"]) -> None:
        """Learn from notes that were heard to their end.

        Args:
            level_db: of `octave_levels` from the end of the attack on; NaN behind the end of a note.
            f0_hz: of each.
            stop_db: levels at which the noise begins.

        Bands that are over when the first seconds are have nothing to tell. Where less is told than there are features,
        nothing is learned.
        """
        size = window_samples(self.rate_hz)
        frames = (self.heard_samples - size) * HOPS_PER_WINDOW // size + 1
        heard, ahead = level_db[..., :frames].double(), level_db[..., frames - 1 :].double()
        first = heard[..., 0]
        is_told = (first >= first.amax(-1, keepdim=True) - AUDIBLE_DB) & holds_partial(f0_hz)
        later = self._later(ahead, stop_db)
        is_told &= later.isfinite()
        if int(is_told.sum()) <= NUM_FEATURES:
            return
        rows, rates = self._features(heard, f0_hz)[is_told], later[is_told]
        middle = rows.mean(0)
        away = rows - middle
        scale = away.std(0).clamp_min(1e-6)
        away = away / scale
        pull = HELD_BACK * torch.eye(NUM_FEATURES, dtype=away.dtype)
        weight = torch.linalg.solve(away.T @ away + pull, away.T @ (rates - rates.mean())) / scale
        for own, found in ((self.middle, middle), (self.weight, weight), (self.bias, rates.mean())):
            own.copy_(found)

    def _later(self, level_db: BandLevels, stop_db: Float[Tensor, "note band"]) -> Float[Tensor, "note band"]:
        """Logarithm of dB per second of lines from the first of these levels to the last above `stop_db`, or NaN."""
        fall = level_db - level_db[..., :1]
        stop = torch.maximum(stop_db - level_db[..., 0], torch.full_like(fall[..., 0], -FIT_RANGE_DB))
        is_inside = fall.nan_to_num(-torch.inf).cummin(-1).values >= stop[..., None]
        time = torch.arange(fall.shape[-1], dtype=fall.dtype) * self.hop_seconds * is_inside
        rate = -(time * fall.nan_to_num()).sum(-1) / time.square().sum(-1).clamp_min(1e-9)
        return torch.where(is_inside.sum(-1) >= FEWEST_FRAMES, rate.clamp(SLOWEST, FASTEST).log(), torch.nan)

    def _rate(self, heard_db: BandLevels, f0_hz: PerRow) -> Float[Tensor, "note band"]:
        """dB per second behind what was heard."""
        away = self._features(heard_db, f0_hz) - self.middle.double()
        return (away @ self.weight.double() + self.bias.double()).exp().clamp(SLOWEST, FASTEST)

    def _features(self, heard_db: BandLevels, f0_hz: PerRow) -> Float[Tensor, "note band feature"]:
        """How fast what was heard fell: all of it, its later and its earlier half; octaves of the band and of f0."""
        half = heard_db.shape[-1] // 2
        stop_db = heard_db[..., 0] - FIT_RANGE_DB
        parts = (heard_db, heard_db[..., half:], heard_db[..., :half])
        lines = [fit_decay(part, self.hop_seconds, stop_db, 2).t60_seconds for part in parts]
        falls = [(FIT_RANGE_DB / line).nan_to_num(FASTEST).clamp(SLOWEST, FASTEST).log() for line in lines]
        octave = torch.tensor(OCTAVE_CENTRES_HZ, dtype=heard_db.dtype, device=heard_db.device) / MIDDLE_HZ
        pitch = (f0_hz.to(heard_db) / MIDDLE_F0_HZ).log2()[:, None].expand_as(falls[0])
        return torch.stack([*falls, octave.log2().expand_as(falls[0]), pitch], -1)
