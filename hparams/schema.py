"""What a run is: frozen dataclasses with the user's field names and defaults.

`HParams` keeps the flat names of the field's widely used enhancement trainer; `task` is a tagged union
of per-task dataclasses (`hparams.tasks`). Types and ranges are checked by pydantic in `hparams.load`;
rules that span several fields are checked here. Nothing in this package imports the rest of the project.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from hparams.deepspeed import deepspeed_config
from hparams.numbers import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Probability,
    RateHz,
    Seconds,
    Seed,
    WindowSamples,
)
from hparams.place import URL_PATTERN
from hparams.stft import StftConfig, loss_resolutions
from hparams.tasks import ContextHParams, DenoiseHParams, TaskHParams

# A URL stays text: as a Path it would lose a slash.
CorpusPlace = Annotated[Annotated[str, Field(pattern=URL_PATTERN)] | Path, Field(union_mode="left_to_right")]


@dataclass(frozen=True)
class HParams:
    """One training run. The field order is the order of `hparams.yaml` and of the documentation table."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    fg_dir: Annotated[CorpusPlace, Field(description="corpus of foreground (clean) recordings")] = Path(
        "data/fg"
    )
    bg_dir: Annotated[CorpusPlace, Field(description="corpus of backgrounds")] = Path("data/bg")
    rir_dir: Annotated[CorpusPlace, Field(description="corpus of room impulse responses")] = Path("data/rir")
    pair_dir: Annotated[CorpusPlace | None, Field(description="corpus of ready-made input/target pairs")] = (
        None
    )
    note_dir: Annotated[CorpusPlace | None, Field(description="corpus of single notes of strings")] = None
    load_fg_only: Annotated[
        bool, Field(description="no background and no room: only the distortions are learned away")
    ] = False
    praat_augment_prob: Annotated[
        Probability,
        Field(description="share of foregrounds given another voice by Praat; needs the [praat] extra"),
    ] = 0.0

    wav_rate: Annotated[RateHz, Field(description="sample rate of corpora and model, Hz")] = 44_100
    n_fft: Annotated[WindowSamples, Field(description="FFT length of the mel front end")] = 2048
    win_size: Annotated[WindowSamples, Field(description="window of the mel front end, samples")] = 2048
    hop_size: Annotated[
        WindowSamples, Field(description="hop of the mel front end and of the denoiser, samples")
    ] = 420
    num_mels: Annotated[int, Field(gt=0, le=4096, description="mel bands")] = 128
    stft_magnitude_min: Annotated[
        PositiveFloat, Field(description="floor of magnitudes before the logarithm")
    ] = 1e-4
    preemphasis: Annotated[
        float, Field(ge=0, lt=1, description="coefficient of y[n] = x[n] - c x[n-1] before the mel front end")
    ] = 0.97
    mix_alpha_range: Annotated[
        tuple[float, float],
        Field(
            description="alpha*fg + (1-alpha)*bg on energy-normalised signals, "
            "which is an SNR of 20 log10(alpha/(1-alpha)) dB; alpha is drawn per example"
        ),
    ] = (0.2, 0.8)

    nj: Annotated[
        NonNegative,
        Field(
            description="loader workers per rank, at most; never more than the rank's CPU cores; "
            "0 loads in the main process"
        ),
    ] = 64
    training_seconds: Annotated[Seconds, Field(description="length of a training crop")] = 1.0
    batch_size_per_gpu: Annotated[
        Positive,
        Field(description="examples that a rank takes at once, and per step where it takes no parts"),
    ] = 16
    gradient_accumulation_steps: Annotated[
        Positive,
        Field(
            description="parts of batch_size_per_gpu examples that a rank takes one after another for one step; the "
            "global batch is ranks * batch_size_per_gpu * this"
        ),
    ] = 1
    min_lr: Annotated[PositiveFloat, Field(description="learning rate at the first step of the warm-up")] = (
        1e-5
    )
    max_lr: Annotated[PositiveFloat, Field(description="learning rate after the warm-up")] = 1e-4
    warmup_steps: Annotated[Positive, Field(description="steps from min_lr to max_lr")] = 1000
    max_steps: Annotated[
        Positive,
        Field(
            description="steps of the whole run; the learning rate is back at min_lr there unless "
            "lr_plateau_patience is set"
        ),
    ] = 1_000_000
    lr_plateau_patience: Annotated[
        NonNegative,
        Field(
            description="evaluations in a row without a new best after which the learning rate is lowered, never "
            "below min_lr; 0: it falls from step to step instead"
        ),
    ] = 0
    lr_plateau_factor: Annotated[
        float, Field(gt=0, lt=1, description="factor by which it is lowered on such a plateau")
    ] = 0.5
    early_stop_patience: Annotated[
        NonNegative,
        Field(
            description="evaluations in a row without a new best after which the run is finished; 0: only at max_steps"
        ),
    ] = 0
    gradient_clipping: Annotated[
        NonNegativeFloat, Field(description="largest gradient norm; 0 turns clipping off")
    ] = 1.0
    optimizer: Annotated[
        Literal["adamw", "muon", "psgd", "soap"],
        Field(
            description="adamw; muon: Muon for matrices and AdamW for all else; psgd (Kronecker factors) and soap come "
            "with the [optimizers] extra. All but adamw need zero_stage 0"
        ),
    ] = "adamw"
    adamw_max_lr: Annotated[
        PositiveFloat | None,
        Field(
            description="max_lr of what Muon leaves to AdamW, whose rate is always in proportion to that of the "
            "matrices; null: the same"
        ),
    ] = None

    task: Annotated[TaskHParams, Field(description="the task and its own values")] = field(
        default_factory=DenoiseHParams
    )

    seed: Annotated[Seed, Field(description="weights, draws, crops and mixes are functions of it")] = 0
    valid_seed: Annotated[Seed, Field(description="seed of the fixed validation list")] = 0
    valid_fraction: Annotated[
        float,
        Field(gt=0, lt=1, description="share of groups (speakers, recordings, rooms) kept for validation"),
    ] = 0.1
    precision: Annotated[
        Literal["fp32", "bf16"],
        Field(description="bf16 keeps fp32 master weights; autocast on the Accelerate backend"),
    ] = "fp32"
    zero_stage: Annotated[Literal[0, 1, 2, 3], Field(description="ZeRO stage of the DeepSpeed backend")] = 0
    ema_decay: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share that a step keeps of the moving average of the weights, which is judged and used; "
            "0 takes the weights of the step",
        ),
    ] = 0.0
    log_every: Annotated[Positive, Field(description="steps between logged lines")] = 10
    eval_every: Annotated[Positive, Field(description="steps between evaluations")] = 5000
    save_every: Annotated[Positive, Field(description="steps between checkpoints")] = 1000
    keep_checkpoints: Annotated[
        Positive, Field(description="newest checkpoints kept; the best one is kept beside them")
    ] = 3
    keep_every_steps: Annotated[
        NonNegative,
        Field(description="the first checkpoint at or after every multiple of it is kept for good; 0: none"),
    ] = 0
    async_checkpoints: Annotated[
        bool,
        Field(
            description="checkpoints are written while training goes on, from a copy in host memory, which is kept"
        ),
    ] = True
    checkpoint_copy_url: Annotated[
        str | None,
        Field(
            pattern=URL_PATTERN,
            description="where else hparams, metrics, frozen/ and checkpoints of this run are kept, such as "
            "s3://bucket/runs/base; a run folder without checkpoints is filled from there",
        ),
    ] = None
    max_bad_steps: Annotated[
        Positive, Field(description="skipped steps in a row after which the run ends as diverged (exit 70)")
    ] = 10
    data_timeout_seconds: Annotated[
        PositiveFloat, Field(description="longest wait for one batch before the run fails")
    ] = 120.0
    hang_timeout_seconds: Annotated[
        float,
        Field(ge=5, description="a rank that gives no sign of life for so long ends the run (exit 71)"),
    ] = 15.0
    stall_timeout_seconds: Annotated[
        float,
        Field(
            ge=5,
            description="the run ends (exit 71) when no rank finishes a step, a batch of an evaluation, a save or a "
            "phase of starting for so long",
        ),
    ] = 1200.0
    comm_timeout_seconds: Annotated[
        PositiveFloat,
        Field(
            description="longest wait of a rank for the others before the run fails, such as for rank 0, which "
            "alone draws the pictures of an evaluation"
        ),
    ] = 1800.0

    copy_timeout_seconds: Annotated[
        NonNegativeFloat,
        Field(
            description="longest wait at the end of a run, stopping included, for the copies at checkpoint_copy_url"
        ),
    ] = 600.0

    def __post_init__(self) -> None:
        if self.win_size > self.n_fft:
            raise ValueError(
                f"win_size {self.win_size} is above n_fft {self.n_fft}; raise n_fft or lower win_size"
            )
        low, high = self.mix_alpha_range
        if not 0 < low <= high < 1:
            raise ValueError(
                f"mix_alpha_range is ({low}, {high}); needed 0 < low <= high < 1, such as (0.2, 0.8)"
            )
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr {self.min_lr} is above max_lr {self.max_lr}; swap them or lower min_lr")
        self._check_optimizer()
        self.task.check(self)
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is not below max_steps {self.max_steps}; "
                "lower warmup_steps or train for longer"
            )

    def _check_optimizer(self) -> None:
        if self.optimizer != "adamw" and self.zero_stage:
            raise ValueError(
                f"optimizer {self.optimizer} works on matrices, but zero_stage {self.zero_stage} hands an optimiser "
                "all weights as one long vector, so that it would silently be another one; set zero_stage to 0, or "
                "optimizer to adamw"
            )
        if self.adamw_max_lr is not None and self.optimizer != "muon":
            raise ValueError(
                f"adamw_max_lr is {self.adamw_max_lr}, but optimizer {self.optimizer} has one rate, max_lr; "
                "leave adamw_max_lr null, or set optimizer to muon"
            )

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The DeepSpeed configuration these values ask for; see `hparams.deepspeed`."""
        return deepspeed_config(self)

    @property
    def stft_cfgs(self) -> list[StftConfig]:
        """The three resolutions of the STFT loss; a UserError at any rate but 44.1 kHz."""
        return loss_resolutions(self.wav_rate)

    @property
    def example_seconds(self) -> float:
        """Length of one training example: training_seconds, or the window of a context run."""
        if isinstance(self.task, ContextHParams):
            return self.task.context_at(self.wav_rate) / self.wav_rate
        return self.training_seconds

    @property
    def crop_samples(self) -> int:
        """Samples that are read for one training example, a lead included."""
        lead_seconds = self.task.lead_seconds if isinstance(self.task, DenoiseHParams) else 0.0
        return round(self.training_seconds * self.wav_rate) + round(lead_seconds * self.wav_rate)
