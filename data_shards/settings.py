"""What the mix stream needs of the hyper-parameters, as plain values.

Loader workers get this instead of `HParams`: unpickling it imports neither pydantic nor torch, which keeps
their start short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data_shards.damages import DamageSettings

if TYPE_CHECKING:
    from hparams.schema import HParams


@dataclass(frozen=True)
class MixSettings:
    """Values of one run; see the fields of the same names in `hparams.schema`."""

    seed: int
    valid_seed: int
    rate_hz: int
    crop_samples: int
    valid_samples: int
    valid_items: int
    snr_range_db: tuple[float, float]
    valid_snr_range_db: tuple[float, float]
    level_range_db: tuple[float, float]
    rir_prob: float
    distort_prob: float
    silence_prob: float
    praat_prob: float
    speed_range: tuple[float, float]
    second_bg_prob: float
    fg_eq_db: float
    bg_eq_db: float
    room_range_db: tuple[float, float]
    pair_fraction: float
    """Share of draws that are pairs; 0 without a pair corpus."""
    load_fg_only: bool
    damage: DamageSettings | None = None
    """Of a task that restores recordings."""

    @classmethod
    def of(cls, hp: HParams) -> MixSettings:
        """The settings that `hp` asks for, of a task of mixes or of foregrounds."""
        # Workers get these settings ready-made, and do not import pydantic.
        from hparams.damage import DamageHParams

        if isinstance(hp.task, DamageHParams):
            return cls._of_damages(hp)
        if hp.task.name in ("codec", "enhance"):
            return cls._of_foregrounds(hp)
        task: Any = hp.task
        low, high = (20 * math.log10(alpha / (1 - alpha)) for alpha in hp.mix_alpha_range)
        return cls(
            seed=hp.seed,
            valid_seed=hp.valid_seed,
            rate_hz=hp.wav_rate,
            crop_samples=hp.crop_samples,
            valid_samples=round(task.valid_seconds * hp.wav_rate),
            valid_items=task.valid_items,
            snr_range_db=(low, high),
            valid_snr_range_db=task.valid_snr_range_db,
            level_range_db=task.level_range_db,
            rir_prob=task.rir_prob,
            distort_prob=task.distort_prob,
            silence_prob=task.silence_prob,
            praat_prob=hp.praat_augment_prob,
            speed_range=task.speed_range,
            second_bg_prob=task.second_bg_prob,
            fg_eq_db=task.fg_eq_db,
            bg_eq_db=task.bg_eq_db,
            room_range_db=task.room_range_db,
            pair_fraction=0.0 if hp.pair_dir is None else task.pair_fraction,
            load_fg_only=hp.load_fg_only,
        )

    @classmethod
    def _of_foregrounds(cls, hp: HParams) -> MixSettings:
        """Foregrounds alone, at a drawn level: what these tasks give back is what they are given."""
        task: Any = hp.task
        return cls(
            seed=hp.seed,
            valid_seed=hp.valid_seed,
            rate_hz=hp.wav_rate,
            crop_samples=hp.crop_samples,
            valid_samples=round(task.valid_seconds * hp.wav_rate),
            valid_items=task.valid_items,
            snr_range_db=(0.0, 0.0),
            valid_snr_range_db=(0.0, 0.0),
            level_range_db=task.level_range_db,
            rir_prob=0.0,
            distort_prob=0.0,
            silence_prob=0.0,
            praat_prob=hp.praat_augment_prob,
            speed_range=(1.0, 1.0),
            second_bg_prob=0.0,
            fg_eq_db=0.0,
            bg_eq_db=0.0,
            room_range_db=(0.0, 0.0),
            pair_fraction=0.0,
            load_fg_only=True,
        )

    @classmethod
    def _of_damages(cls, hp: HParams) -> MixSettings:
        """Foregrounds with their damage; the task has the ranges of level and of SNR beside it."""
        task: Any = hp.task
        low, high = (20 * math.log10(alpha / (1 - alpha)) for alpha in hp.mix_alpha_range)
        is_fg_only = hp.load_fg_only or task.bg_prob == task.rir_prob == 0
        return replace(
            cls._of_foregrounds(hp),
            snr_range_db=(low, high),
            valid_snr_range_db=task.valid_snr_range_db,
            rir_prob=0.0 if is_fg_only else task.rir_prob,
            silence_prob=getattr(task, "silence_prob", 0.0),
            load_fg_only=is_fg_only,
            damage=DamageSettings.of(task),
        )
