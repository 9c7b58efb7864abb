"""The values of task `pitch`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from hparams.numbers import (
    MOST_SAMPLES,
    Decibels,
    NonNegativeFloat,
    PositiveFloat,
    Seconds,
    require_mel_samples,
    require_order,
)
from hparams.shifting import MOST_SEMITONES

if TYPE_CHECKING:
    from hparams.schema import HParams

Semitones = Annotated[int, Field(ge=-MOST_SEMITONES, le=MOST_SEMITONES)]
Channels = Annotated[int, Field(gt=0, le=8192)]
Count = Annotated[int, Field(ge=0, le=64)]
Factor = Annotated[int, Field(gt=0, le=64)]
Engine = Literal["signalsmith", "rubberband", "parselmouth", "phase_vocoder", "varispeed"]


EXAMPLES = {"codec_weights": "runs/codec_small", "perceptual_weights": "cdpam.safetensors"}


@dataclass(frozen=True)
class PitchHParams:
    """Task `pitch`: a ConvNeXt U-Net learns to undo what a pitch shifter does to a recording."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["pitch"] = "pitch"
    model: Annotated[
        Literal["wave_unet", "spec_unet"],
        Field(description="1-D on the waveform, or 2-D on the complex spectrogram"),
    ] = "wave_unet"
    channels: Annotated[
        tuple[Channels, ...],
        Field(
            description="channels before the first level (1 of a waveform, 2 of a spectrogram) and of each level"
        ),
    ] = (1, 8, 64, 256, 512)
    blocks: Annotated[
        tuple[Count, ...], Field(description="ConvNeXt blocks of each level, on the way down and again up")
    ] = (4, 4, 4, 4)
    factors: Annotated[
        tuple[Factor, ...],
        Field(description="how much shorter each level is: in samples, of a spectrogram in bins"),
    ] = (8, 8, 4, 2)
    frame_factors: Annotated[
        tuple[Factor, ...], Field(description="of a spectrogram: how much shorter in frames")
    ] = (1, 2, 2, 2)
    scale_vs_channels: Annotated[
        PositiveFloat, Field(description="width inside the pointwise layers of a block against its channels")
    ] = 4.0
    kernel_size: Annotated[
        int, Field(ge=1, le=255, description="of the depthwise convolutions, odd; of a spectrogram both ways")
    ] = 7
    window_size: Annotated[
        int,
        Field(
            ge=64, le=MOST_SAMPLES, description="of a spectrogram: samples of its window; the hop is hop_size"
        ),
    ] = 1680
    predict: Annotated[
        Literal["signal", "difference"],
        Field(description="the network gives the repaired signal, or what is added to the input"),
    ] = "difference"
    is_conditioned: Annotated[
        bool, Field(description="the model is told by how many semitones the recording was shifted")
    ] = True
    pairs: Annotated[
        Literal["prebuilt", "drawn"],
        Field(
            description="pairs of the corpus pair_dir, or shifted by the loader workers from recordings in fg_dir"
        ),
    ] = "prebuilt"
    semitones: Annotated[
        tuple[Semitones, Semitones], Field(description="range of drawn pairs: whole semitones, 0 passed over")
    ] = (-12, 12)
    engines: Annotated[tuple[Engine, ...], Field(min_length=1, description="shifters of drawn pairs")] = (
        "signalsmith",
    )
    level_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="RMS of the input, dBFS, drawn per example")
    ] = (-32.0, -14.0)
    l1_weight: Annotated[NonNegativeFloat, Field(description="weight of the waveform L1 loss")] = 1.0
    stft_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-resolution STFT loss; 44.1 kHz only")
    ] = 1.0
    mel_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-scale mel loss of the DAC paper")
    ] = 0.0
    features_weight: Annotated[
        NonNegativeFloat, Field(description="weight of feature matching with the encoder of codec_weights")
    ] = 0.0
    codec_weights: Annotated[
        Path | None,
        Field(description="codec to listen with: a run folder, or a .safetensors file of a DacModel"),
    ] = None
    feature_blocks: Annotated[
        tuple[Count, ...],
        Field(min_length=1, description="blocks of its encoder whose residual units are matched, from 0 on"),
    ] = (0, 1)
    perceptual_weight: Annotated[
        NonNegativeFloat, Field(description="weight of CDPAM's distance; needs perceptual_weights")
    ] = 0.0
    perceptual_weights: Annotated[
        Path | None, Field(description="CDPAM's weights, a .safetensors file: docs/codec.md")
    ] = None
    is_balanced: Annotated[
        bool,
        Field(
            description="these weights are how hard each term pulls at the output, in shares of each other, rather "
            "than factors: the balancer of EnCodec"
        ),
    ] = False
    valid_items: Annotated[
        int, Field(gt=0, le=1_000_000, description="pairs on the fixed validation list")
    ] = 64
    valid_seconds: Annotated[Seconds, Field(description="length of each of them")] = 4.0

    def __post_init__(self) -> None:
        require_order("task.level_range_db", self.level_range_db)
        require_order("task.semitones", self.semitones)
        if self.semitones == (0, 0):
            raise ValueError("task.semitones is (0, 0), which shifts nothing; give a range such as (-12, 12)")
        self._check_weights()
        levels = len(self.channels) - 1
        lengths = {"blocks": len(self.blocks), "factors": len(self.factors)}
        if self.model == "spec_unet":
            lengths["frame_factors"] = len(self.frame_factors)
        for name, count in lengths.items():
            if count != levels or levels < 1:
                raise ValueError(
                    f"task.{name} has {count} values, but task.channels {list(self.channels)} makes {levels} levels; "
                    f"give {max(levels, 1)} values, or one more channel than levels"
                )
        first = 1 if self.model == "wave_unet" else 2
        if self.channels[0] != first:
            what = "a waveform has" if first == 1 else "real and imaginary part are"
            raise ValueError(
                f"task.channels begins with {self.channels[0]}, but {what} {first}; begin with {first}, such as "
                f"{[first, *self.channels[1:]]}"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"task.kernel_size {self.kernel_size} is even, so that no sample is in its middle; give an odd one, "
                f"such as {self.kernel_size + 1}"
            )

    def _check_weights(self) -> None:
        weights = {name: value for name, value in vars(self).items() if name.endswith("_weight")}
        if not any(weights.values()):
            raise ValueError(
                f"{', '.join(f'task.{name}' for name in weights)} are all 0, so nothing would be learned; "
                "set one above 0"
            )
        for weight, file in (("features", "codec_weights"), ("perceptual", "perceptual_weights")):
            if (getattr(self, f"{weight}_weight") > 0) != (getattr(self, file) is not None):
                value, found = getattr(self, f"{weight}_weight"), getattr(self, file)
                raise ValueError(
                    f"task.{weight}_weight is {value:g} and task.{file} is {found or 'not set'}; give both, "
                    f"such as task.{weight}_weight=1 task.{file}={EXAMPLES[file]}, or neither"
                )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        if self.model == "spec_unet" and (
            self.window_size % run.hop_size or self.window_size < 2 * run.hop_size or self.window_size % 2
        ):
            raise ValueError(
                f"task.window_size {self.window_size} is not an even number of two or more whole hops of hop_size "
                f"{run.hop_size}; set it to a multiple such as {4 * run.hop_size}"
            )
        if self.mel_weight:
            require_mel_samples("training_seconds", run.training_seconds, run.wav_rate)
        if self.stride_samples > MOST_SAMPLES:
            raise ValueError(
                f"task.factors {list(self.factors)} make a stride of {self.stride_samples} samples; lower them"
            )

    @property
    def stride_samples(self) -> int:
        """Samples of a waveform that become one value of the deepest level."""
        return math.prod(self.factors)
