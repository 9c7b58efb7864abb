"""Draws what has happened to a recording that is to be restored: a subset of kinds of damage, in a random order.

Only numbers are drawn here; `enhancer.signal.damage` applies them. Each kind has a column `<kind>_place`: 0 where it is
off, else its place in the order, from 1 on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from data_shards.distortions import CLEAN, HIGHEST_FILTER
from data_shards.schedule import between, log_between

KINDS = ("band", "clip", "drive", "eq", "reverb", "codec")
UNDAMAGED: dict[str, float | int] = {
    **CLEAN,
    "clip_db": 0.0,
    "reverb_seconds": 0.0,
    "reverb_db": -np.inf,
    "reverb_seed": 0,
    "codec_db": np.inf,
    "codec_hz": np.inf,
    **{f"{kind}_place": 0 for kind in KINDS},
}
"""Every kind off; the equaliser, band limits and overdrive have the columns that all mixes have."""
NUMBERS: dict[str, str] = {
    name: "int64" if isinstance(value, int) else "float32"
    for name, value in UNDAMAGED.items()
    if name not in CLEAN
}
"""The columns that only damaged mixes have, name -> numpy type."""
NUM_UNIFORMS = 32
# Places in the row of uniform numbers: what is on, in which order, and how strong.
_ORDER, _STRENGTH = len(KINDS), 2 * len(KINDS)


@dataclass(frozen=True)
class DamageSettings:
    """Values of one run; see the fields of the same names in `hparams.damage`."""

    clean_prob: float
    bg_prob: float
    band_prob: float
    lowpass_range_hz: tuple[float, float]
    highpass_prob: float
    highpass_range_hz: tuple[float, float]
    clip_prob: float
    clip_range_db: tuple[float, float]
    drive_prob: float
    drive_range_db: tuple[float, float]
    eq_prob: float
    eq_range_hz: tuple[float, float]
    eq_range_db: tuple[float, float]
    eq_range_q: tuple[float, float]
    reverb_prob: float
    reverb_range_seconds: tuple[float, float]
    reverb_range_db: tuple[float, float]
    codec_prob: float
    codec_range_db: tuple[float, float]
    codec_range_hz: tuple[float, float]

    @classmethod
    def of(cls, task: Any) -> DamageSettings:
        """The settings that a task with the values of `hparams.damage` asks for."""
        return cls(**{field.name: getattr(task, field.name) for field in fields(cls)})

    def kinds_on(self, drawn: list[float], has_room: bool) -> tuple[str, ...]:
        """The kinds of an example, in their order. One in a recorded room has no synthetic one."""
        on = [
            place
            for place, kind in enumerate(KINDS)
            if drawn[place] < getattr(self, f"{kind}_prob") and not (kind == "reverb" and has_room)
        ]
        return tuple(KINDS[place] for place in sorted(on, key=lambda place: drawn[_ORDER + place]))


def draw_damage(
    settings: DamageSettings, kinds: tuple[str, ...], drawn: list[float], rate_hz: int
) -> dict[str, float | int]:
    """All columns of an example that has `kinds`, in this order, from NUM_UNIFORMS uniform numbers.

    A strength has its own number, whatever else is on.
    """
    (is_pass, low, high, clip, drive, hz, gain, q, t60, tail, seed, noise, cutoff) = drawn[_STRENGTH:][:13]
    highest_hz = HIGHEST_FILTER * rate_hz
    values = dict(UNDAMAGED)
    for place, kind in enumerate(kinds, start=1):
        values[f"{kind}_place"] = place
    if "band" in kinds:
        values["lowpass_hz"] = log_between(low, settings.lowpass_range_hz, highest_hz)
        if is_pass < settings.highpass_prob:
            values["highpass_hz"] = log_between(
                high, settings.highpass_range_hz, float(values["lowpass_hz"]) / 2
            )
    if "clip" in kinds:
        values["clip_db"] = between(clip, settings.clip_range_db)
    if "drive" in kinds:
        values["drive_db"] = between(drive, settings.drive_range_db)
    if "eq" in kinds:
        values["eq_hz"] = log_between(hz, settings.eq_range_hz, highest_hz)
        values["eq_gain_db"] = between(gain, settings.eq_range_db)
        values["eq_q"] = log_between(q, settings.eq_range_q)
    if "reverb" in kinds:
        values["reverb_seconds"] = between(t60, settings.reverb_range_seconds)
        values["reverb_db"] = between(tail, settings.reverb_range_db)
        values["reverb_seed"] = int(seed * 2**53)
    if "codec" in kinds:
        values["codec_db"] = between(noise, settings.codec_range_db)
        values["codec_hz"] = log_between(cutoff, settings.codec_range_hz, rate_hz / 2)
    return values
