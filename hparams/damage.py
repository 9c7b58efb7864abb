"""How recordings are damaged for a task that restores them: the values that such a task's dataclass inherits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from hparams.numbers import Decibels, Probability, require_order

Hertz = Annotated[float, Field(gt=0, le=500_000)]
Amount = Annotated[float, Field(gt=0, le=60)]
Quality = Annotated[float, Field(gt=0, le=100)]


@dataclass(frozen=True)
class DamageHParams:
    """Kinds of damage, drawn for each example: a subset of them in a random order.

    A task that inherits this and has a `__post_init__` of its own calls `super().__post_init__()` in it.
    """

    clean_prob: Annotated[
        Probability,
        Field(description="share of examples heard as they are: no damage, no room, no background"),
    ] = 0.2
    bg_prob: Annotated[
        Probability, Field(description="share of the other examples that have a background; needs bg_dir")
    ] = 0.5
    rir_prob: Annotated[
        Probability, Field(description="share of the other examples in a recorded room; needs rir_dir")
    ] = 0.0
    band_prob: Annotated[Probability, Field(description="probability of band limits")] = 0.5
    lowpass_range_hz: Annotated[
        tuple[Hertz, Hertz], Field(description="cut-off of the band limit, its logarithm drawn")
    ] = (2000.0, 16_000.0)
    highpass_prob: Annotated[
        Probability, Field(description="share of band limits that cut low frequencies too: a band-pass")
    ] = 0.3
    highpass_range_hz: Annotated[
        tuple[Hertz, Hertz], Field(description="lower cut-off of a band-pass, its logarithm drawn")
    ] = (80.0, 600.0)
    clip_prob: Annotated[Probability, Field(description="probability of hard clipping")] = 0.3
    clip_range_db: Annotated[
        tuple[Amount, Amount], Field(description="how far the peak of an example lies above where it clips")
    ] = (3.0, 20.0)
    drive_prob: Annotated[Probability, Field(description="probability of overdrive, a soft clipper")] = 0.3
    drive_range_db: Annotated[tuple[Amount, Amount], Field(description="gain into the soft clipper")] = (
        6.0,
        26.0,
    )
    eq_prob: Annotated[Probability, Field(description="probability of a peaking equaliser")] = 0.3
    eq_range_hz: Annotated[
        tuple[Hertz, Hertz], Field(description="its centre, the logarithm of which is drawn")
    ] = (100.0, 8000.0)
    eq_range_db: Annotated[tuple[Decibels, Decibels], Field(description="its gain")] = (-18.0, 12.0)
    eq_range_q: Annotated[
        tuple[Quality, Quality], Field(description="its quality, the logarithm of which is drawn")
    ] = (0.5, 4.0)
    reverb_prob: Annotated[
        Probability,
        Field(description="probability of a synthetic room, for examples that are not in a recorded one"),
    ] = 0.3
    reverb_range_seconds: Annotated[tuple[Amount, Amount], Field(description="T60 of the synthetic room")] = (
        0.2,
        1.2,
    )
    reverb_range_db: Annotated[
        tuple[Decibels, Decibels],
        Field(description="energy of its reverberation relative to the direct sound"),
    ] = (-12.0, 3.0)
    codec_prob: Annotated[
        Probability, Field(description="probability of quantisation as by a codec of a low bit rate")
    ] = 0.3
    codec_range_db: Annotated[
        tuple[Decibels, Decibels],
        Field(description="how far its noise lies below each band of the spectrum; low is a low bit rate"),
    ] = (2.0, 15.0)
    codec_range_hz: Annotated[
        tuple[Hertz, Hertz], Field(description="above this it keeps nothing; its logarithm is drawn")
    ] = (6000.0, 18_000.0)

    def __post_init__(self) -> None:
        for name in DamageHParams.__dataclass_fields__:
            if "_range_" in name:
                require_order(f"task.{name}", getattr(self, name))
