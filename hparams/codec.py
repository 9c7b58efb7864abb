"""The values of task `codec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from hparams.numbers import (
    Decibels,
    NonNegativeFloat,
    PositiveFloat,
    Probability,
    Seconds,
    require_mel_samples,
    require_order,
)

if TYPE_CHECKING:
    from hparams.schema import HParams

Stride = Annotated[int, Field(ge=2, le=64, multiple_of=2)]


@dataclass(frozen=True)
class CodecHParams:
    """Task `codec`: a neural codec of DAC's structure learns to give foreground recordings back from few codes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["codec"] = "codec"
    encoder_width: Annotated[
        int, Field(ge=1, le=256, description="channels of the encoder before its first stride; DAC has 64")
    ] = 64
    decoder_width: Annotated[
        int, Field(ge=1, le=8192, description="channels of the decoder before its first stride; DAC has 1536")
    ] = 1536
    strides: Annotated[
        tuple[Stride, ...],
        Field(
            min_length=1,
            max_length=8,
            description="by which the encoder lowers the rate, block by block; the decoder backwards; even",
        ),
    ] = (2, 4, 8, 8)
    num_codebooks: Annotated[
        int, Field(ge=1, le=64, description="codebooks, each for what those before it leave over")
    ] = 9
    codebook_size: Annotated[int, Field(ge=2, le=65_536, description="entries of a codebook")] = 1024
    codebook_dim: Annotated[int, Field(ge=1, le=256, description="dimensions of an entry")] = 8
    codebook_dropout: Annotated[
        Probability,
        Field(description="share of examples that use the first few codebooks only, a drawn number of them"),
    ] = 0.5
    level_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="RMS of a crop, dBFS, drawn per example")
    ] = (-30.0, -16.0)
    mel_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-scale mel loss of the DAC paper")
    ] = 15.0
    stft_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-resolution STFT loss; 44.1 kHz only")
    ] = 1.0
    l1_weight: Annotated[NonNegativeFloat, Field(description="weight of the waveform L1 loss")] = 0.0
    si_sdr_weight: Annotated[NonNegativeFloat, Field(description="weight of the negative SI-SDR (dB)")] = 0.0
    is_balanced: Annotated[
        bool,
        Field(
            description="these four weights are how hard each term pulls at the output, in shares of each other, "
            "rather than factors: the balancer of EnCodec"
        ),
    ] = False
    commitment_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the distance of latents from their entries")
    ] = 0.25
    codebook_weight: Annotated[
        PositiveFloat, Field(description="weight of the distance of entries from their latents")
    ] = 1.0
    valid_items: Annotated[
        int, Field(gt=0, le=1_000_000, description="crops on the fixed validation list")
    ] = 32
    valid_seconds: Annotated[Seconds, Field(description="length of each validation crop")] = 2.0

    def __post_init__(self) -> None:
        require_order("task.level_range_db", self.level_range_db)
        halvings = 1 << len(self.strides)
        if self.decoder_width % halvings:
            raise ValueError(
                f"task.decoder_width is {self.decoder_width}, which {len(self.strides)} strides cannot halve; needed a "
                f"multiple of {halvings}"
            )
        if self.mel_weight == self.stft_weight == self.l1_weight == self.si_sdr_weight == 0:
            raise ValueError(
                "task.mel_weight, task.stft_weight, task.l1_weight and task.si_sdr_weight are all 0, so nothing would "
                "be learned; set one above 0"
            )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        require_mel_samples("training_seconds", run.training_seconds, run.wav_rate)
        require_mel_samples("task.valid_seconds", self.valid_seconds, run.wav_rate)
