"""Task `pitch`: a recording as it was before its pitch was shifted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.losses.features import FeatureMatching
from enhancer.losses.mel import MultiScaleMel
from enhancer.losses.perceptual import PerceptualDistance
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.waveform import waveform_l1
from enhancer.losses.weighted import WeightedLoss
from enhancer.models import cdpam
from enhancer.models.dac_weights import encoder_of
from enhancer.models.spec_unet import SpecUNet
from enhancer.models.wave_unet import WaveUNet
from enhancer.repair_metrics import DISTANCES, RepairDistance
from enhancer.signal.levels import gain_for_level
from enhancer.signal.mel import MelSpectrogram
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import pcm
from hparams.pitch import PitchHParams
from hparams.schema import HParams
from hparams.shifting import ENGINES

NUM_SHOWN = 4
TRIAL = {"semitones": 3.0, "cutoff_hz": 20_000.0, "engine": 0, "level_db": -20.0}
CODEC, CDPAM = "codec.", "cdpam."
PEAK = 0.99
MAX_GAIN_DB = 40.0
"""Largest gain on an input and its target: a near-silent crop stays quiet."""
SEMITONE_GROUPS = ((1, 3), (4, 7), (8, 12), (13, 24))


class PitchTask:
    """Trains, evaluates and shows a `WaveUNet` or `SpecUNet`. Batches are those of `data_shards.pitch_recipe`.

    Of `constants` those whose names begin with CODEC or CDPAM are the weights of the networks that the losses listen
    with. Judging and using a model needs none of them.
    """

    name = "pitch"
    main_module = "repairer"
    best_metric = "log_mel_improvement_db"
    best_is_higher = True
    grouped_metrics = tuple(name.replace("distance", "improvement") for name in DISTANCES)
    """What is also told of the groups of `groups_of`."""
    group_labels = ("label_semitones", "label_engine")
    """What `groups_of` asks a row for."""

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, PitchHParams), hp.task
        self.hp, self.own = hp, hp.task
        terms: dict[str, Any] = {"l1": (self.own.l1_weight, waveform_l1)}
        if self.own.stft_weight:
            terms["stft"] = (self.own.stft_weight, MultiResolutionStft(hp.stft_cfgs))
        self.listeners = _listeners(hp, self.own, constants or {})
        terms |= {
            "mel": (self.own.mel_weight, MultiScaleMel(hp.wav_rate)),
            "features": (self.own.features_weight, self.listeners.get("features", _unheard)),
            "perceptual": (self.own.perceptual_weight, self.listeners.get("perceptual", _unheard)),
        }
        self.loss = WeightedLoss(terms, self.own.is_balanced)
        # The balancer weighs the terms by the gradients of all rows at once, and remembers them.
        self.takes_parts = not self.own.is_balanced
        mel = MelSpectrogram(
            rate_hz=hp.wav_rate,
            n_fft=hp.n_fft,
            window_samples=hp.win_size,
            hop_samples=hp.hop_size,
            num_mels=hp.num_mels,
            magnitude_min=hp.stft_magnitude_min,
            preemphasis=hp.preemphasis,
        )
        self.distance = RepairDistance(mel, hp.num_mels, hp.wav_rate, hp.stft_cfgs)

    def build(self) -> dict[str, nn.Module]:
        """A fresh model, which starts as the identity where it predicts a difference."""
        own = self.own
        alike: dict[str, Any] = {
            "channels": own.channels,
            "blocks": own.blocks,
            "factors": own.factors,
            "kernel_size": own.kernel_size,
            "scale_vs_channels": own.scale_vs_channels,
            "predict": own.predict,
            "is_conditioned": own.is_conditioned,
        }
        if own.model == "wave_unet":
            return {self.main_module: WaveUNet(**alike)}
        return {
            self.main_module: SpecUNet(
                **alike,
                frame_factors=own.frame_factors,
                window_samples=own.window_size,
                hop_samples=self.hp.hop_size,
            )
        }

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        heard = pcm(rows, self.hp.crop_samples)
        columns = {name: torch.full((rows,), value) for name, value in TRIAL.items()}
        return {"draw": torch.arange(rows), "input": heard, "target": heard.flip(-1), **columns}

    def to(self, device: torch.device) -> None:
        """Move the networks that the losses listen with to `device`."""
        for listener in self.listeners.values():
            listener.to(device)

    def state(self) -> dict[str, Tensor]:
        """What the balancer of the losses goes on from, where there is one."""
        return self.loss.state()

    def step(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], update: Any
    ) -> dict[str, Tensor]:
        """One update; returns the loss and its terms."""
        heard, target = self.pair(batch)
        agreed = {"mean": update.mean} if self.own.is_balanced else {}
        total, terms = self.loss(self.repair(modules, heard, batch), target, **agreed)
        update(self.main_module, total)
        self.loss.settle()
        return {"loss": total.detach(), **terms}

    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """The distances of `RepairDistance` below the row's cutoff, and by how much the input's are larger.

        Labels are the semitones of the first shift and the place of the engine in ENGINES.
        """
        heard, target = self.pair(batch)
        estimate = self.repair(modules, heard, batch)
        before = self.distance(heard, target, batch["cutoff_hz"])
        after = self.distance(estimate.float(), target, batch["cutoff_hz"])
        improvements = {name.replace("distance", "improvement"): before[name] - after[name] for name in after}
        labels = {"label_semitones": batch["semitones"], "label_engine": batch["engine"]}
        values = {name: column.tolist() for name, column in (after | improvements | labels).items()}
        return [{name: float(column[row]) for name, column in values.items()} for row in range(len(heard))]

    @staticmethod
    def groups_of(row: Mapping[str, Any]) -> dict[str, str]:
        """To which groups of the validation list a row of `evaluate` belongs, in words."""
        semitones = round(row["label_semitones"])
        low, high = next(bounds for bounds in SEMITONE_GROUPS if abs(semitones) <= bounds[1])
        way = "up" if semitones > 0 else "down"
        return {"semitones": f"{way} {low:>2} to {high}", "engine": ENGINES[round(row["label_engine"])]}

    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model hears, makes and should make of each row, [B, T] each."""
        heard, target = self.pair(batch)
        return {"shifted": heard, "estimate": self.repair(modules, heard, batch), "target": target}

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and spectrograms of the first rows, before and after; the other pictures of the first."""
        waves = self.waves(modules, {name: column[:NUM_SHOWN] for name, column in batch.items()})
        for row in range(len(waves["estimate"])):
            show_sounds(media, row, {name: wave[row] for name, wave in waves.items()}, self.hp.wav_rate)
        show_charts(media, 0, {name: wave[0] for name, wave in waves.items()}, self.hp.wav_rate)

    def pair(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Input and target of a batch, [B, T] each, by one gain that gives the input its level."""
        heard, target = (batch[name] * (1 / 32768) for name in ("input", "target"))
        gain = gain_for_level(heard, batch["level_db"], MAX_GAIN_DB)
        peak = torch.maximum(heard.abs().amax(-1), target.abs().amax(-1))
        gain = (gain * (PEAK / (gain * peak)).clamp(max=1))[:, None]
        return heard * gain, target * gain

    def repair(self, modules: Mapping[str, nn.Module], heard: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model makes of `heard` [B, T]."""
        module = modules[self.main_module]
        return module(heard, batch["semitones"]) if self.own.is_conditioned else module(heard)


def _listeners(
    hp: HParams, own: PitchHParams, constants: Mapping[str, Tensor]
) -> dict[str, FeatureMatching | PerceptualDistance]:
    """The losses that listen with a network, by the name of their term, where its weights are given."""

    def weights(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)
        }

    found: dict[str, FeatureMatching | PerceptualDistance] = {}
    if own.features_weight and weights(CODEC):
        found["features"] = FeatureMatching(encoder_of(weights(CODEC)).stages(own.feature_blocks))
    if own.perceptual_weight and weights(CDPAM):
        found["perceptual"] = PerceptualDistance(cdpam.cdpam_of(weights(CDPAM)), cdpam.RATE_HZ, hp.wav_rate)
    return found


def _unheard(estimate: Tensor, target: Tensor) -> Tensor:
    raise ValueError("a loss listens with a network whose weights the task was not given as constants")
