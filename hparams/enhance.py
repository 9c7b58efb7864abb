"""The values of task `enhance`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from hparams.numbers import (
    Decibels,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Seconds,
    require_mel_samples,
    require_order,
)

if TYPE_CHECKING:
    from hparams.schema import HParams

Width = Annotated[int, Field(ge=1, le=8192)]
Blocks = Annotated[int, Field(ge=0, le=64)]
Scale = Annotated[float, Field(gt=0, le=16)]
Period = Annotated[int, Field(ge=2, le=1000)]


@dataclass(frozen=True)
class EnhanceHParams:
    """Task `enhance`, stage 1: a mel autoencoder and a vocoder learn together, against discriminators."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["enhance"] = "enhance"
    num_latents: Annotated[int, Field(ge=1, le=4096, description="latents of a mel frame")] = 64
    num_extra: Annotated[
        int,
        Field(ge=0, le=4096, description="channels that the decoder gives the vocoder beside the mel bands"),
    ] = 32
    autoencoder_width: Annotated[Width, Field(description="channels of the autoencoder's blocks")] = 1024
    autoencoder_blocks: Annotated[
        Blocks, Field(description="blocks of the encoder, and again of the decoder")
    ] = 6
    autoencoder_scale: Annotated[Scale, Field(description="width inside a block against its channels")] = 4.0
    vocoder_width: Annotated[Width, Field(description="channels of the vocoder's blocks")] = 768
    vocoder_blocks: Annotated[Blocks, Field(description="blocks of the vocoder")] = 8
    vocoder_scale: Annotated[Scale, Field(description="width inside a block against its channels")] = 3.0
    vocoder_window: Annotated[
        int,
        Field(
            ge=4,
            le=1 << 16,
            multiple_of=2,
            description="samples of the STFT that the vocoder gives; its hop is hop_size",
        ),
    ] = 1680
    recompute_blocks: Annotated[
        bool,
        Field(
            description="each block of the generator is computed again in the backward pass instead of being kept: "
            "less memory, more time, the same gradients"
        ),
    ] = False
    periods: Annotated[
        tuple[Period, ...],
        Field(
            min_length=1,
            max_length=16,
            description="of the discriminators by period, samples; primes overlap least",
        ),
    ] = (2, 3, 7, 13, 17)
    period_width: Annotated[
        int, Field(ge=1, le=1024, description="channels of their first layer; the fifth has 16 times as many")
    ] = 64
    resolution_width: Annotated[
        int, Field(ge=1, le=1024, description="channels of the discriminators by spectrogram")
    ] = 32
    gan_start_step: Annotated[
        NonNegative,
        Field(
            description="steps, skipped ones too, after which the discriminators learn and are listened to; until then "
            "they are idle"
        ),
    ] = 5000
    collapse_steps: Annotated[
        Positive,
        Field(
            description="steps in a row with the discriminators' loss at a bound, after which log and report say that "
            "they have collapsed"
        ),
    ] = 500
    level_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="RMS of a crop, dBFS, drawn per example")
    ] = (-30.0, -16.0)
    autoencoder_weight: Annotated[
        PositiveFloat, Field(description="weight of the squared error of normalised mel frames")
    ] = 150.0
    mel_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-scale mel loss of the waveform")
    ] = 15.0
    stft_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-resolution STFT loss of the waveform")
    ] = 1.0
    adversarial_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the discriminators' judgement")
    ] = 1.0
    features_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the distance of the discriminators' features")
    ] = 2.0
    valid_items: Annotated[
        int, Field(gt=0, le=1_000_000, description="crops on the fixed validation list")
    ] = 32
    valid_seconds: Annotated[Seconds, Field(description="length of each validation crop")] = 2.0

    def __post_init__(self) -> None:
        require_order("task.level_range_db", self.level_range_db)
        if self.mel_weight == self.stft_weight == 0:
            raise ValueError(
                "task.mel_weight and task.stft_weight are both 0, so the waveform would be learned from the "
                "discriminators alone; set one above 0"
            )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        if self.vocoder_window % run.hop_size or self.vocoder_window < 2 * run.hop_size:
            raise ValueError(
                f"task.vocoder_window {self.vocoder_window} is not two or more whole hops of hop_size {run.hop_size}; "
                f"set it to a multiple such as {4 * run.hop_size}"
            )
        require_mel_samples("training_seconds", run.training_seconds, run.wav_rate)
        require_mel_samples("task.valid_seconds", self.valid_seconds, run.wav_rate)
