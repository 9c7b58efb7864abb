"""The values of task `restore`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from hparams.damage import DamageHParams
from hparams.numbers import (
    Decibels,
    NonNegativeFloat,
    Probability,
    Seconds,
    require_mel_samples,
    require_order,
)

if TYPE_CHECKING:
    from hparams.schema import HParams

Solver = Literal["euler", "midpoint", "rk4"]


@dataclass(frozen=True)
class RestoreHParams(DamageHParams):
    """Task `restore`, stage 2: how latents of damaged recordings flow into those of clean ones."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["restore"] = "restore"
    stage1_run: Annotated[
        Path, Field(description="finished run of task enhance, copied into this run's folder at its start")
    ] = Path("runs/enhancer_stage1")
    denoiser_run: Annotated[
        Path, Field(description="finished run of task denoise, copied into this run's folder at its start")
    ] = Path("runs/base")
    num_latents: Annotated[int, Field(ge=1, le=4096, description="latents of a mel frame, as in stage 1")] = (
        64
    )
    width: Annotated[int, Field(ge=1, le=8192, description="channels of the velocity network's blocks")] = (
        1024
    )
    num_blocks: Annotated[int, Field(ge=1, le=64, description="blocks of the velocity network")] = 8
    scale: Annotated[float, Field(gt=0, le=16, description="width inside a block against its channels")] = 4.0
    kernel_size: Annotated[
        int, Field(ge=1, le=255, description="frames that a block's convolution spans, odd")
    ] = 15
    early_ms: Annotated[
        NonNegativeFloat,
        Field(description="the target keeps this much of its room; 0 asks for the dry recording"),
    ] = 0.0
    recompute_blocks: Annotated[
        bool,
        Field(
            description="each block of the velocity network is computed again in the backward pass instead of being "
            "kept: less memory, more time, the same gradients"
        ),
    ] = False
    silence_prob: Annotated[
        Probability, Field(description="share of examples without foreground, whose target is silence")
    ] = 0.01
    level_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="RMS of the clean target, dBFS, drawn per example")
    ] = (-30.0, -16.0)
    nfe: Annotated[
        int,
        Field(ge=1, le=1024, description="evaluations of the velocity network for a recording, unless said"),
    ] = 16
    solver: Annotated[Solver, Field(description="of the flow's differential equation, unless said")] = (
        "midpoint"
    )
    strength: Annotated[
        Probability,
        Field(
            description="share of the denoised mel spectrogram in what the network hears, unless said; the rest is "
            "that of the recording"
        ),
    ] = 1.0
    prior_mix: Annotated[
        Probability,
        Field(
            description="share of noise in what the flow starts from in use; the rest is the recording's latents"
        ),
    ] = 0.5
    prior_mix_range: Annotated[
        tuple[Probability, Probability],
        Field(description="the same in training, drawn per example; prior_mix lies in it"),
    ] = (0.0, 1.0)
    valid_items: Annotated[
        int, Field(gt=0, le=1_000_000, description="mixtures on the fixed validation list")
    ] = 36
    valid_seconds: Annotated[Seconds, Field(description="length of each validation mixture")] = 3.0
    valid_snr_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="SNR range of the validation list")
    ] = (-5.0, 10.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_order("task.level_range_db", self.level_range_db)
        require_order("task.valid_snr_range_db", self.valid_snr_range_db)
        require_order("task.prior_mix_range", self.prior_mix_range)
        low, high = self.prior_mix_range
        if not low <= self.prior_mix <= high:
            raise ValueError(
                f"task.prior_mix {self.prior_mix:g} lies outside of task.prior_mix_range {low:g} to {high:g}, so that "
                "the network never learns from such a start; set one to fit the other"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"task.kernel_size {self.kernel_size} is even, so that no frame is in its middle; give an odd one, "
                f"such as {self.kernel_size + 1}"
            )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        require_mel_samples("training_seconds", run.training_seconds, run.wav_rate)
        require_mel_samples("task.valid_seconds", self.valid_seconds, run.wav_rate)
