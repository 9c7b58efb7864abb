"""What a run is: frozen dataclasses with the user's field names and defaults.

`HParams` keeps the flat names of the field's widely used enhancement trainer; `task` is a tagged union
of per-task dataclasses (`name` is the tag). Types and ranges are checked by pydantic in `hparams.load`;
rules that span several fields are checked here. Nothing in this package imports the rest of the project.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from hparams.deepspeed import deepspeed_config
from hparams.place import URL_PATTERN
from hparams.stft import StftConfig, loss_resolutions

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# The most steps that cuDNN's recurrent layers take in one call; one sample alone would be no context.
FEWEST_CONTEXT_SAMPLES, MOST_CONTEXT_SAMPLES = 2, 65_535
ContextSamples = Annotated[int, Field(ge=FEWEST_CONTEXT_SAMPLES, le=MOST_CONTEXT_SAMPLES)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
Probability = Annotated[float, Field(ge=0, le=1)]
EqGain = Annotated[float, Field(ge=0, le=40)]
Decibels = Annotated[float, Field(ge=-120, le=120)]
# A URL stays text: as a Path it would lose a slash.
CorpusPlace = Annotated[Annotated[str, Field(pattern=URL_PATTERN)] | Path, Field(union_mode="left_to_right")]


@dataclass(frozen=True)
class DenoiseHParams:
    """Task `denoise`: an STFT-mask U-Net learns the clean foreground from a noisy, reverberant mixture."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["denoise"] = "denoise"
    width: Annotated[
        int, Field(ge=1, le=256, description="channels of the first U-Net level; 16 gives 10.6 M parameters")
    ] = 16
    window_size: Annotated[
        int, Field(ge=64, description="samples of the model's own STFT window; its hop is hop_size")
    ] = 1680
    split_hz: Annotated[
        NonNegativeFloat,
        Field(
            description="the model tells single STFT bins apart up to here and bands of a quarter ERB above; "
            "half of wav_rate or more keeps every bin"
        ),
    ] = 4000.0
    rir_prob: Annotated[
        Probability, Field(description="share of examples whose foreground is put into a room")
    ] = 0.5
    early_ms: Annotated[
        NonNegativeFloat,
        Field(
            description="the target keeps this much of its room, from the direct path on, and loses the reverberation "
            "after it; 0 asks for the dry recording"
        ),
    ] = 50.0
    distort_prob: Annotated[
        Probability,
        Field(description="probability of each input distortion (EQ, band limit, overdrive, noise)"),
    ] = 0.1
    silence_prob: Annotated[
        Probability, Field(description="share of examples without foreground, whose target is silence")
    ] = 0.01
    lead_seconds: Annotated[
        NonNegativeFloat,
        Field(
            description="mixed before each training crop and not trained on, so that rooms ring as in mid-recording"
        ),
    ] = 0.0
    speed_range: Annotated[
        tuple[PositiveFloat, PositiveFloat],
        Field(
            description="playback speed of foreground and background crops, drawn for each; pitch changes with it"
        ),
    ] = (1.0, 1.0)
    second_bg_prob: Annotated[
        Probability, Field(description="share of examples with two backgrounds on top of each other")
    ] = 0.0
    fg_eq_db: Annotated[
        EqGain, Field(description="largest gain or loss of a smooth equaliser drawn for each foreground")
    ] = 0.0
    bg_eq_db: Annotated[
        EqGain, Field(description="largest gain or loss of a smooth equaliser drawn for each background")
    ] = 0.0
    room_range_db: Annotated[
        tuple[Decibels, Decibels],
        Field(
            description="gain of a room response after its direct path, drawn per example: near and far microphones"
        ),
    ] = (0.0, 0.0)
    level_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="RMS of the mixture, dBFS, drawn per example")
    ] = (-38.0, -14.0)
    pair_fraction: Annotated[
        Probability,
        Field(description="share of examples drawn from pair_dir when it is set; the rest are own mixes"),
    ] = 1.0
    l1_weight: Annotated[NonNegativeFloat, Field(description="weight of the waveform L1 loss")] = 1.0
    stft_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-resolution STFT loss")
    ] = 1.0
    si_sdr_weight: Annotated[
        NonNegativeFloat,
        Field(description="weight of the negative SI-SDR (dB); 0 leaves it out"),
    ] = 0.0
    valid_items: Annotated[Positive, Field(description="mixtures on the fixed validation list")] = 64
    valid_seconds: Annotated[PositiveFloat, Field(description="length of each validation mixture")] = 4.0
    valid_snr_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="SNR range of the validation list")
    ] = (-5.0, 10.0)

    def __post_init__(self) -> None:
        _require_order("task.speed_range", self.speed_range)
        if self.speed_range[0] < 0.5 or self.speed_range[1] > 2:
            raise ValueError(
                f"task.speed_range is {self.speed_range}; needed values from 0.5 to 2, such as (0.8, 1.25)"
            )
        _require_order("task.room_range_db", self.room_range_db)
        _require_order("task.level_range_db", self.level_range_db)
        _require_order("task.valid_snr_range_db", self.valid_snr_range_db)
        if self.l1_weight == self.stft_weight == self.si_sdr_weight == 0:
            raise ValueError(
                "task.l1_weight, task.stft_weight and task.si_sdr_weight are all 0, so nothing would be learned; "
                "set one above 0"
            )


@dataclass(frozen=True)
class PedalHParams:
    """Task `pedal`: a small causal model learns a pedal or amplifier from what goes in and what comes out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["pedal"] = "pedal"
    model: Annotated[
        Literal["lstm", "gru", "wavenet"],
        Field(description="recurrent, or a dilated causal convolution network"),
    ] = "lstm"
    hidden_size: Annotated[Positive, Field(description="units of each recurrent layer")] = 96
    num_layers: Annotated[int, Field(ge=1, le=8, description="recurrent layers")] = 1
    has_skip: Annotated[
        bool, Field(description="add the dry signal to the output; .nam files cannot say that")
    ] = False
    warmup_samples: Annotated[
        NonNegative, Field(description="start of each segment that only fills the model's memory")
    ] = 1000
    update_samples: Annotated[
        Positive, Field(description="samples between updates, over which gradients go back in time")
    ] = 2048
    knobs: Annotated[
        tuple[str, ...],
        Field(description="knobs of the corpus that the model hears, in the order of its inputs"),
    ] = ()
    weight_decay: Annotated[NonNegativeFloat, Field(description="decoupled weight decay")] = 1e-4
    recurrent_weight_decay: Annotated[
        NonNegativeFloat, Field(description="the same for the recurrent weights (weight_hh)")
    ] = 3e-5
    esr_weight: Annotated[NonNegativeFloat, Field(description="weight of the error-to-signal ratio")] = 0.75
    preemphasis_esr_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the error-to-signal ratio after pre-emphasis")
    ] = 0.0
    preemphasis_filter: Annotated[
        Literal["highpass", "a_weighting"], Field(description="which pre-emphasis that term has")
    ] = "highpass"
    dc_weight: Annotated[NonNegativeFloat, Field(description="weight of the difference in mean")] = 0.10
    hf_hinge_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the penalty on excess high frequencies")
    ] = 0.15
    hf_hinge_fmin: Annotated[PositiveFloat, Field(description="where that penalty begins, Hz")] = 10_000.0
    hf_hinge_strength: Annotated[NonNegativeFloat, Field(description="factor inside that penalty")] = 0.5
    mse_weight: Annotated[NonNegativeFloat, Field(description="weight of the mean squared error")] = 0.0
    mae_weight: Annotated[NonNegativeFloat, Field(description="weight of the mean absolute error")] = 0.0
    stft_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-resolution STFT loss; 44.1 kHz only")
    ] = 0.0

    def __post_init__(self) -> None:
        weights = {name: value for name, value in vars(self).items() if name.endswith("_weight")}
        if not any(weights.values()):
            raise ValueError(
                f"{', '.join(f'task.{name}' for name in weights)} are all 0, so nothing would be learned; "
                "set one above 0"
            )


@dataclass(frozen=True)
class ContextHParams:
    """Task `context`: an LSTM learns the wet sample at the end of a window of dry samples, and forgets in between."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["context"] = "context"
    context_samples: Annotated[
        ContextSamples | None,
        Field(description="dry samples that each wet sample is made of; either this or context_ms is set"),
    ] = None
    context_ms: Annotated[
        PositiveFloat | None,
        Field(description="the same in milliseconds, which follow the rate of the corpus"),
    ] = None
    hidden_size: Annotated[Positive, Field(description="units of the LSTM")] = 64
    knobs: Annotated[
        tuple[str, ...],
        Field(description="knobs of the corpus that the model hears, in the order of its inputs"),
    ] = ()
    split: Annotated[
        Literal["time", "random"],
        Field(
            description="time: training and validation windows share no sample; random: they are drawn from one heap "
            "and overlap, so that the validation ESR is too good"
        ),
    ] = "time"
    train_windows: Annotated[
        Positive, Field(description="windows of an epoch, spread evenly over the recordings")
    ] = 75_000
    valid_windows: Annotated[Positive, Field(description="windows that are judged, likewise")] = 25_000

    def __post_init__(self) -> None:
        if (self.context_samples is None) == (self.context_ms is None):
            found = "neither is" if self.context_ms is None else "both are"
            raise ValueError(
                f"of task.context_samples and task.context_ms {found} set; give one and leave the other null, "
                "such as task.context_ms=10 task.context_samples=null"
            )

    def context_at(self, rate_hz: int) -> int:
        """Samples of a window at `rate_hz`."""
        if self.context_samples is not None:
            return self.context_samples
        assert self.context_ms is not None
        return round(self.context_ms * rate_hz / 1000)


DeviceHParams = PedalHParams | ContextHParams
"""Tasks that learn a device from a corpus of dry/wet pairs."""
DEVICE_TASKS = tuple(task.name for task in (PedalHParams, ContextHParams))
TaskHParams = Annotated[DenoiseHParams | PedalHParams | ContextHParams, Field(discriminator="name")]


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
    load_fg_only: Annotated[
        bool, Field(description="no background and no room: only the distortions are learned away")
    ] = False
    praat_augment_prob: Annotated[
        Probability,
        Field(description="share of foregrounds given another voice by Praat; needs the [praat] extra"),
    ] = 0.0

    wav_rate: Annotated[Positive, Field(description="sample rate of corpora and model, Hz")] = 44_100
    n_fft: Annotated[Positive, Field(description="FFT length of the mel front end")] = 2048
    win_size: Annotated[Positive, Field(description="window of the mel front end, samples")] = 2048
    hop_size: Annotated[
        Positive, Field(description="hop of the mel front end and of the denoiser, samples")
    ] = 420
    num_mels: Annotated[Positive, Field(description="mel bands")] = 128
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
    training_seconds: Annotated[PositiveFloat, Field(description="length of a training crop")] = 1.0
    batch_size_per_gpu: Annotated[Positive, Field(description="examples per rank and step")] = 16
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
    max_bad_steps: Annotated[
        Positive, Field(description="skipped steps in a row after which the run ends as diverged (exit 70)")
    ] = 10
    data_timeout_seconds: Annotated[
        PositiveFloat, Field(description="longest wait for one batch before the run fails")
    ] = 120.0

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
        self._check_task()
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is not below max_steps {self.max_steps}; "
                "lower warmup_steps or train for longer"
            )

    def _check_task(self) -> None:
        task = self.task
        if isinstance(task, PedalHParams):
            segment_samples = round(self.training_seconds * self.wav_rate)
            if task.warmup_samples >= segment_samples:
                raise ValueError(
                    f"task.warmup_samples {task.warmup_samples} leaves nothing of a segment of training_seconds "
                    f"{self.training_seconds} ({segment_samples} samples); lower it or raise training_seconds"
                )
            if task.hf_hinge_weight and task.hf_hinge_fmin > self.wav_rate / 2:
                raise ValueError(
                    f"task.hf_hinge_fmin {task.hf_hinge_fmin:g} Hz lies above half of wav_rate {self.wav_rate}; lower "
                    "it, or set task.hf_hinge_weight to 0"
                )
        elif isinstance(task, ContextHParams):
            samples = task.context_at(self.wav_rate)
            if not FEWEST_CONTEXT_SAMPLES <= samples <= MOST_CONTEXT_SAMPLES:
                raise ValueError(
                    f"task.context_ms {task.context_ms:g} is {samples} samples at a wav_rate of {self.wav_rate}; "
                    f"needed {FEWEST_CONTEXT_SAMPLES} to {MOST_CONTEXT_SAMPLES}"
                )
        elif task.window_size % self.hop_size or task.window_size < 2 * self.hop_size:
            raise ValueError(
                f"task.window_size {task.window_size} is not two or more whole hops of hop_size {self.hop_size}; "
                f"set it to a multiple such as {4 * self.hop_size}"
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


def _require_order(key: str, bounds: tuple[float, float]) -> None:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{key} is {bounds}; the first value must not be above the second")
