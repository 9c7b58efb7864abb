"""From raw crops and drawn parameters to what the model hears and what it should say.

The foreground the model hears goes through a room and a bad recording chain, then a background is added. The
target is the undistorted foreground with the first reflections of its room: aligned, since the room's direct
path has no delay, and scaled by the very gain the mixture is scaled by, so that a mask of at most 1 can reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from enhancer.signal.convolution import RirBank
from enhancer.signal.distortion import add_noise, band_limit, overdrive, peaking_eq
from enhancer.signal.levels import db_to_gain, gain_for_level, gain_for_snr, power_db
from enhancer.signal.types import PcmBatch, PerRow, WaveBatch

PEAK = 0.99
"""Mixtures with a larger peak are turned down to it, targets with them."""
MAX_GAIN_DB = 40.0
"""Largest gain on a mixture and its target: a near-silent crop stays quiet, and never is a target of hiss."""
MAX_MAKEUP_DB = 20.0
"""Largest gain that brings a distorted foreground back to its level."""

FLOAT_PARAMETERS = (
    "room_gain_db",
    "eq_hz",
    "eq_gain_db",
    "eq_q",
    "lowpass_hz",
    "highpass_hz",
    "drive_db",
    "noise_snr_db",
)
INTEGER_PARAMETERS = ("rir", "noise_seed", "is_pair")
UNDISTORTED: dict[str, float | int] = {
    "eq_hz": 1000.0,
    "eq_gain_db": 0.0,
    "eq_q": 1.0,
    "lowpass_hz": math.inf,
    "highpass_hz": 0.0,
    "drive_db": 0.0,
    "noise_snr_db": math.inf,
    "noise_seed": 0,
}
"""The parameters of distortions with all of them off."""


@dataclass(frozen=True)
class Mix:
    """What the model hears and what it should say, both [B, T], under one gain per row."""

    mixture: WaveBatch
    target: WaveBatch


def mix(batch: Mapping[str, Tensor], bank: RirBank | None, rate_hz: int, early_samples: int = 1) -> Mix:
    """Mixtures and targets of a batch of the mix stream; all rows at once, on the device of `batch["fg"]`.

    | key | shape | meaning |
    |---|---|---|
    | fg, bg | int16 [B, T] | clean crop and background; of a pair row the recorded target and mixture |
    | is_pair | bool [B] | the recorded mixture is taken as it is |
    | rir | int64 [B] | row of `bank`, -1 for no room |
    | room_gain_db | float [B] | gain of the room's response after its direct path |
    | snr_db | float [B] | foreground as heard (room, distortions, before noise) over background, power |
    | level_db | float [B] | RMS of the mixture in dBFS; NaN keeps the recorded level |
    | eq_hz, eq_gain_db, eq_q | float [B] | `distortion.peaking_eq` |
    | lowpass_hz, highpass_hz | float [B] | `distortion.band_limit` |
    | drive_db | float [B] | `distortion.overdrive` |
    | noise_snr_db, noise_seed | float, int64 [B] | `distortion.add_noise` |

    Of a room the target keeps the first `early_samples` taps, the direct path included: 1 makes it dry.
    Where the foreground is silent the target is zero and the mixture is the background at `level_db`; where
    the background is silent the mixture is the foreground. The gain is at most MAX_GAIN_DB, and less where
    the mixture's peak would pass PEAK, except for pair rows that keep their level. Raises ValueError where a
    row asks for a room that `bank` does not hold.
    """
    host = _on_host(batch)
    foreground, background = to_float(batch["fg"]), to_float(batch["bg"])
    is_pair, level_db = batch["is_pair"], batch["level_db"]

    heard, target = in_room(foreground, bank, host, early_samples)
    heard = distort(heard, host, rate_hz)
    background_gain = gain_for_snr(heard, background, batch["snr_db"])
    heard = add_noise(heard, host["noise_snr_db"], host["noise_seed"])
    mixture = torch.addcmul(heard, background, background_gain[:, None])
    pairs = host["is_pair"].nonzero().squeeze(1).to(mixture.device)
    if len(pairs):
        mixture.index_copy_(0, pairs, background.index_select(0, pairs))

    gain, headroom = _gain_and_headroom(mixture, level_db)
    gain = (gain * torch.where(is_pair & level_db.isnan(), 1.0, headroom))[:, None]
    return Mix(mixture=mixture.mul_(gain), target=target * gain)


def foreground_at_level(batch: Mapping[str, Tensor]) -> WaveBatch:
    """The clean foregrounds `fg` alone at their `level_db`, [B, T]; keys and limits of the gain as for `mix`."""
    wave = to_float(batch["fg"])
    gain, headroom = _gain_and_headroom(wave, batch["level_db"])
    return wave * (gain * headroom)[:, None]


def _gain_and_headroom(wave: WaveBatch, level_db: PerRow) -> tuple[PerRow, PerRow]:
    """The gain to `level_db`, and by how much it must be smaller for the peak."""
    gain = gain_for_level(wave, level_db, MAX_GAIN_DB)
    peak = torch.linalg.vector_norm(wave, ord=torch.inf, dim=-1)
    return gain, (PEAK / (gain * peak)).clamp(max=1)


def distort(wave: WaveBatch, host: Mapping[str, Tensor], rate_hz: int) -> WaveBatch:
    """Equaliser, band limits and overdrive, after which the row has its old RMS (at most MAX_MAKEUP_DB up).

    `host` holds FLOAT_PARAMETERS, on the CPU. Rows with every effect off are returned bit for bit.
    """
    is_on = host["eq_gain_db"] != 0
    is_on |= (host["lowpass_hz"] < rate_hz / 2) | (host["highpass_hz"] > 0)
    is_on |= host["drive_db"] != 0
    rows = is_on.nonzero().squeeze(1)
    if not len(rows):
        return wave
    own = {key: host[key][rows] for key in FLOAT_PARAMETERS}
    rows = rows.to(wave.device)
    clean = wave.index_select(0, rows)
    bad = peaking_eq(clean, own["eq_hz"], own["eq_gain_db"], own["eq_q"], rate_hz)
    bad = band_limit(bad, own["lowpass_hz"], own["highpass_hz"], rate_hz)
    bad = overdrive(bad, own["drive_db"])
    makeup = db_to_gain((power_db(clean) - power_db(bad)).clamp(max=MAX_MAKEUP_DB))
    return wave.index_copy(0, rows, bad * makeup[:, None])


def in_room(
    wave: WaveBatch, bank: RirBank | None, host: Mapping[str, Tensor], early_samples: int
) -> tuple[WaveBatch, WaveBatch]:
    """The foreground as the room makes it, and with the first `early_samples` taps of the room alone."""
    index, gain_db = host["rir"], host["room_gain_db"]
    if bank is None:
        if bool((index >= 0).any()):
            raise ValueError("a row of the batch asks for a room, but there is no bank of impulse responses")
        return wave, wave
    if early_samples <= 1:
        wet, early = bank.apply(wave, index), wave
    else:
        wet, early = bank.apply_first(wave, index, (bank.rirs.shape[1], early_samples))
    if not bool(gain_db.any()):
        return wet, early
    # The direct path is 1 at sample 0, so what the room adds is the difference.
    room_gain = db_to_gain(gain_db)[:, None].to(wave)
    return torch.lerp(wave, wet, room_gain), early if early is wave else torch.lerp(wave, early, room_gain)


def to_float(pcm: PcmBatch) -> WaveBatch:
    return pcm * (1 / 32768)


def _on_host(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that say which rows have work, in two transfers and not a wait for each."""
    floats = torch.stack([batch[key].float() for key in FLOAT_PARAMETERS]).cpu()
    integers = torch.stack([batch[key].long() for key in INTEGER_PARAMETERS]).cpu()
    return dict(zip(FLOAT_PARAMETERS, floats, strict=True)) | dict(
        zip(INTEGER_PARAMETERS, integers, strict=True)
    )
