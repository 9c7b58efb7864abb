"""The values of each task, as frozen dataclasses tagged by `name`.

Rules that a task's values have among themselves, and with those of the run (`check`), stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from hparams.codec import CodecHParams
from hparams.enhance import EnhanceHParams
from hparams.numbers import (
    MOST_SAMPLES,
    Decibels,
    EqGain,
    HiddenSize,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Probability,
    Seconds,
    require_order,
)
from hparams.pitch import PitchHParams
from hparams.restore import RestoreHParams

if TYPE_CHECKING:
    from hparams.schema import HParams

# The most steps that cuDNN's recurrent layers take in one call; one sample alone would be no context.
FEWEST_CONTEXT_SAMPLES, MOST_CONTEXT_SAMPLES = 2, 65_535
ContextSamples = Annotated[int, Field(ge=FEWEST_CONTEXT_SAMPLES, le=MOST_CONTEXT_SAMPLES)]


@dataclass(frozen=True)
class DenoiseHParams:
    """Task `denoise`: an STFT-mask U-Net learns the clean foreground from a noisy, reverberant mixture."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["denoise"] = "denoise"
    width: Annotated[
        int, Field(ge=1, le=256, description="channels of the first U-Net level; 16 gives 10.6 M parameters")
    ] = 16
    window_size: Annotated[
        int,
        Field(
            ge=64, le=MOST_SAMPLES, description="samples of the model's own STFT window; its hop is hop_size"
        ),
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
        float,
        Field(
            ge=0,
            le=3600,
            description="mixed before each training crop and not trained on, so that rooms ring as in mid-recording",
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
    valid_items: Annotated[
        int, Field(gt=0, le=1_000_000, description="mixtures on the fixed validation list")
    ] = 64
    valid_seconds: Annotated[Seconds, Field(description="length of each validation mixture")] = 4.0
    valid_snr_range_db: Annotated[
        tuple[Decibels, Decibels], Field(description="SNR range of the validation list")
    ] = (-5.0, 10.0)

    def __post_init__(self) -> None:
        require_order("task.speed_range", self.speed_range)
        if self.speed_range[0] < 0.5 or self.speed_range[1] > 2:
            raise ValueError(
                f"task.speed_range is {self.speed_range}; needed values from 0.5 to 2, such as (0.8, 1.25)"
            )
        require_order("task.room_range_db", self.room_range_db)
        require_order("task.level_range_db", self.level_range_db)
        require_order("task.valid_snr_range_db", self.valid_snr_range_db)
        if self.l1_weight == self.stft_weight == self.si_sdr_weight == 0:
            raise ValueError(
                "task.l1_weight, task.stft_weight and task.si_sdr_weight are all 0, so nothing would be learned; "
                "set one above 0"
            )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        if self.window_size % run.hop_size or self.window_size < 2 * run.hop_size:
            raise ValueError(
                f"task.window_size {self.window_size} is not two or more whole hops of hop_size {run.hop_size}; "
                f"set it to a multiple such as {4 * run.hop_size}"
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
    hidden_size: Annotated[HiddenSize, Field(description="units of each recurrent layer")] = 96
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
        NonNegativeFloat,
        Field(description="weight of the multi-resolution STFT loss, whose windows last as long at any rate"),
    ] = 0.0

    def __post_init__(self) -> None:
        weights = {name: value for name, value in vars(self).items() if name.endswith("_weight")}
        if not any(weights.values()):
            raise ValueError(
                f"{', '.join(f'task.{name}' for name in weights)} are all 0, so nothing would be learned; "
                "set one above 0"
            )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        segment_samples = round(run.training_seconds * run.wav_rate)
        if self.warmup_samples >= segment_samples:
            raise ValueError(
                f"task.warmup_samples {self.warmup_samples} leaves nothing of a segment of training_seconds "
                f"{run.training_seconds} ({segment_samples} samples); lower it or raise training_seconds"
            )
        if self.hf_hinge_weight and self.hf_hinge_fmin > run.wav_rate / 2:
            raise ValueError(
                f"task.hf_hinge_fmin {self.hf_hinge_fmin:g} Hz lies above half of wav_rate {run.wav_rate}; lower "
                "it, or set task.hf_hinge_weight to 0"
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
        Annotated[float, Field(gt=0, le=3_600_000)] | None,
        Field(description="the same in milliseconds, which follow the rate of the corpus"),
    ] = None
    hidden_size: Annotated[HiddenSize, Field(description="units of the LSTM")] = 64
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

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        samples = self.context_at(run.wav_rate)
        if not FEWEST_CONTEXT_SAMPLES <= samples <= MOST_CONTEXT_SAMPLES:
            raise ValueError(
                f"task.context_ms {self.context_ms:g} is {samples} samples at a wav_rate of {run.wav_rate}; "
                f"needed {FEWEST_CONTEXT_SAMPLES} to {MOST_CONTEXT_SAMPLES}"
            )

    def context_at(self, rate_hz: int) -> int:
        """Samples of a window at `rate_hz`."""
        if self.context_samples is not None:
            return self.context_samples
        assert self.context_ms is not None
        return round(self.context_ms * rate_hz / 1000)


LEAST_OUTLOOK_SECONDS = 0.53
"""Two windows in which levels of octave bands are measured, at the rate where they are longest."""
StringControl = Literal["f0", "velocity", "position", "t60"]


@dataclass(frozen=True)
class StringHParams:
    """Task `string`: a plucked string as a feedback delay whose loop gain a small network learns from single notes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["string"] = "string"
    loop: Annotated[
        Literal["bounded", "free"],
        Field(
            description="bounded: the loop never gains, by construction; free: an unconstrained network, for comparison"
        ),
    ] = "bounded"
    num_layers: Annotated[int, Field(ge=0, le=2, description="hidden tanh layers; 0 is a linear filter")] = 2
    hidden_size: Annotated[int, Field(ge=1, le=256, description="units of each of them")] = 64
    controls: Annotated[
        tuple[StringControl, ...],
        Field(
            description="what the model is told of a note; t60 is its measured decay in each octave band, without "
            "which the decay is guessed from the others"
        ),
    ] = ("f0", "velocity", "position", "t60")
    symmetry: Annotated[
        Literal["odd", "augment", "none"],
        Field(
            description="f(-x) = -f(x) by construction, from negated copies (every other draw), or not at all"
        ),
    ] = "odd"
    has_quarter_taps: Annotated[
        bool, Field(description="the network also hears taps a quarter of a period ago")
    ] = False
    has_decay_state: Annotated[
        bool,
        Field(
            description="the network also hears how far the note has decayed and how fast, against its average"
        ),
    ] = True
    has_two_stages: Annotated[
        bool,
        Field(
            description="two bounded loops side by side: a part of each band that falls fast, and what rings on"
        ),
    ] = False
    outlook_seconds: Annotated[
        float,
        Field(
            ge=0.6,
            description="seconds of a note's beginning from which its T60 is foretold, where it is not known",
        ),
    ] = 1.0
    history_seconds: Annotated[
        PositiveFloat,
        Field(
            description="start of each window that fills the delay line: two periods of the lowest f0 or more"
        ),
    ] = 0.05
    rollout_periods: Annotated[
        tuple[Positive, Positive],
        Field(
            description="feedback periods that the loop runs on its own output, at the first draw and at the end"
        ),
    ] = (8, 400)
    rollout_draws: Annotated[
        NonNegative, Field(description="draws over which they grow, by equal factors; 0: at the end at once")
    ] = 4000
    is_level_balanced: Annotated[
        bool,
        Field(
            description="windows are drawn evenly over the levels of a note, in dB, rather than over its time"
        ),
    ] = True
    start_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the windows that begin with the note, as those that are judged do",
        ),
    ] = 0.0
    folds: Annotated[
        int, Field(ge=2, description="into how many parts the notes are split, evenly over instruments")
    ] = 5
    held_out_fold: Annotated[NonNegative, Field(description="the part that only validates")] = 0
    mse_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the mean squared error over the target's energy")
    ] = 0.0
    l1_weight: Annotated[NonNegativeFloat, Field(description="weight of the relative L1 error")] = 0.1
    gain_weight: Annotated[
        NonNegativeFloat,
        Field(description="weight of the penalty on energy that grows from period to period"),
    ] = 0.0
    stft_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the multi-resolution STFT loss; 44.1 kHz only")
    ] = 0.1
    decay_weight: Annotated[
        NonNegativeFloat, Field(description="weight of the error of the decay curves, dB per octave band")
    ] = 1.0
    valid_seconds: Annotated[
        PositiveFloat, Field(description="how long each validation note runs on its own, at most")
    ] = 4.0

    def __post_init__(self) -> None:
        first, last = self.rollout_periods
        if first > last:
            raise ValueError(
                f"task.rollout_periods is ({first}, {last}); needed first <= last, such as (8, 400)"
            )
        if self.outlook_seconds < self.history_seconds + LEAST_OUTLOOK_SECONDS:
            raise ValueError(
                f"task.outlook_seconds {self.outlook_seconds:g} leaves too little behind task.history_seconds "
                f"{self.history_seconds:g} to hear a decay in; needed {LEAST_OUTLOOK_SECONDS:g} s more than that"
            )
        if len(set(self.controls)) != len(self.controls):
            raise ValueError(f"task.controls {list(self.controls)} names one twice; name each once")
        if "f0" not in self.controls:
            raise ValueError(
                f"task.controls {list(self.controls)} is without f0, which every loop needs; add f0"
            )
        if self.held_out_fold >= self.folds:
            raise ValueError(
                f"task.held_out_fold {self.held_out_fold} is not below task.folds {self.folds}; lower it"
            )
        weights = {name: value for name, value in vars(self).items() if name.endswith("_weight")}
        if not any(weights.values()):
            raise ValueError(
                f"{', '.join(f'task.{name}' for name in weights)} are all 0, so nothing would be learned; "
                "set one above 0"
            )

    def check(self, run: HParams) -> None:
        """Raises ValueError where a value does not go with one of the run."""
        if self.history_seconds >= run.training_seconds:
            raise ValueError(
                f"task.history_seconds {self.history_seconds:g} leaves nothing of a window of training_seconds "
                f"{run.training_seconds:g}; lower it or raise training_seconds"
            )


DeviceHParams = PedalHParams | ContextHParams
"""Tasks that learn a device from a corpus of dry/wet pairs."""
DEVICE_TASKS = tuple(task.name for task in (PedalHParams, ContextHParams))
TaskHParams = Annotated[
    DenoiseHParams
    | PedalHParams
    | ContextHParams
    | StringHParams
    | PitchHParams
    | CodecHParams
    | EnhanceHParams
    | RestoreHParams,
    Field(discriminator="name"),
]
