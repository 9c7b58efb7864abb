"""Task `denoise`: the clean foreground from a noisy, reverberant, possibly damaged mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.losses.si_sdr import negative_si_sdr
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.waveform import waveform_l1
from enhancer.losses.weighted import WeightedLoss
from enhancer.metrics import LogMelDistance, StftDistance, si_sdr
from enhancer.models.denoiser import MaskUNet
from enhancer.signal.convolution import RirBank
from enhancer.signal.mel import MelSpectrogram
from enhancer.signal.mixing import Mix, mix
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import trial_mix
from hparams.schema import HParams
from hparams.tasks import DenoiseHParams

NUM_SHOWN = 4
NAN = float("nan")


class DenoiseTask:
    """Trains, evaluates and shows a `MaskUNet`. `constants["rir"]`: impulse responses, float32 [R, L]."""

    name = "denoise"
    main_module = "denoiser"
    best_metric = "si_sdr_improvement_db"
    best_is_higher = True
    takes_parts = True

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, DenoiseHParams), hp.task
        self.hp, self.own = hp, hp.task
        rirs = (constants or {}).get("rir")
        self.bank = None if rirs is None or len(rirs) == 0 else RirBank(rirs)
        self.loss = WeightedLoss(
            {
                "l1": (self.own.l1_weight, waveform_l1),
                "si_sdr": (self.own.si_sdr_weight, negative_si_sdr),
                "stft": (self.own.stft_weight, MultiResolutionStft(hp.stft_cfgs)),
            }
        )
        self.lead_samples = round(self.own.lead_seconds * hp.wav_rate)
        self.early_samples = max(1, round(self.own.early_ms / 1000 * hp.wav_rate))
        self.stft_distance = StftDistance(hp.stft_cfgs)
        self.log_mel_distance = LogMelDistance(
            MelSpectrogram(
                rate_hz=hp.wav_rate,
                n_fft=hp.n_fft,
                window_samples=hp.win_size,
                hop_samples=hp.hop_size,
                num_mels=hp.num_mels,
                magnitude_min=hp.stft_magnitude_min,
                preemphasis=hp.preemphasis,
            )
        )

    def build(self) -> dict[str, nn.Module]:
        """A fresh denoiser, which starts as the identity."""
        denoiser = MaskUNet(
            width=self.own.width,
            window_samples=self.own.window_size,
            hop_samples=self.hp.hop_size,
            rate_hz=self.hp.wav_rate,
            split_hz=self.own.split_hz,
        )
        return {self.main_module: denoiser}

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def to(self, device: torch.device) -> None:
        """Move the impulse responses to `device`."""
        if self.bank is not None:
            self.bank = self.bank.to(device)

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        return trial_mix(rows, self.hp.crop_samples)

    def mix(self, batch: Mapping[str, Tensor]) -> Mix:
        """Mixture and target, each [B, T], of the drawn crops and parameters in `batch`."""
        return mix(batch, self.bank, self.hp.wav_rate, self.early_samples)

    def step(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], update: Any
    ) -> dict[str, Tensor]:
        """One update of the denoiser; returns the loss and its terms."""
        mixed = self.mix(batch)
        mixture, target = (wave[:, self.lead_samples :] for wave in (mixed.mixture, mixed.target))
        total, terms = self.loss(modules[self.main_module](mixture), target)
        update(self.main_module, total)
        return {"loss": total.detach(), **terms}

    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """SI-SDR and its improvement (dB), STFT distance and log-mel distance (dB) of each row.

        The improvement also stands under the name of its kind, dry or in a room; the other one is NaN.
        """
        mixed = self.mix(batch)
        estimate = modules[self.main_module](mixed.mixture)
        restored = si_sdr(estimate, mixed.target)
        improvement = restored - si_sdr(mixed.mixture, mixed.target)
        is_dry = batch["rir"] < 0
        columns = {
            "si_sdr_db": restored,
            "si_sdr_improvement_db": improvement,
            "si_sdr_improvement_dry_db": improvement.where(is_dry, NAN),
            "si_sdr_improvement_room_db": improvement.where(~is_dry, NAN),
            "stft_distance": self.stft_distance(estimate, mixed.target),
            "log_mel_distance_db": self.log_mel_distance(estimate, mixed.target),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        return [{name: column[row] for name, column in values.items()} for row in range(len(restored))]

    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model hears, makes and should make of each row, [B, T] each."""
        mixed = self.mix(batch)
        estimate = modules[self.main_module](mixed.mixture)
        return {"mixture": mixed.mixture, "estimate": estimate, "target": mixed.target}

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and spectrograms of the first rows, the other pictures of the first."""
        waves = self.waves(modules, {name: column[:NUM_SHOWN] for name, column in batch.items()})
        for row in range(len(waves["estimate"])):
            show_sounds(media, row, {name: wave[row] for name, wave in waves.items()}, self.hp.wav_rate)
        show_charts(media, 0, {name: wave[0] for name, wave in waves.items()}, self.hp.wav_rate)
