"""Task `restore`: stage 2 of the enhancer, the flow from latents of damaged recordings to those of clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.charts import DENOISER
from enhancer.listening_scores import PACKAGES, listening_scores, notice
from enhancer.metrics import LogMelDistance, StftDistance
from enhancer.models.flow import time_at
from enhancer.models.restorer import Heard, Restorer, Sampling, prior
from enhancer.models.stage1 import Stage1
from enhancer.models.velocity import VelocityNetwork
from enhancer.restoration_metrics import bandwidth_hz, level_db, restored_share
from enhancer.signal.convolution import RirBank
from enhancer.signal.damage import APPLY, PARAMETERS, damage_shares, damaged_mix, labels
from enhancer.signal.mixing import Mix
from enhancer.signal.seeded import beta_of, generator_of
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import trial_mix
from hparams.restore import RestoreHParams
from hparams.schema import HParams

NUM_SHOWN = 4
STRENGTH_SHAPE = 0.2
"""Of the Beta distribution of strengths: mostly almost none or almost all of the denoised spectrogram."""
FROZEN = ("stage1", "denoiser")
DAMAGES = ("clean", *APPLY, "background", "room", "several")
"""What `labels` calls a row; rows of validation carry its place here."""
DRAWN = (*PARAMETERS, *(f"{kind}_place" for kind in APPLY), "snr_db")
"""What rows of validation tell beside it: up to which strength a kind is repaired can be asked of them."""
NO_CHANGE_HZ = 1000.0
"""Where the input lacks less bandwidth than that, there is none to be restored."""


class RestoreTask:
    """Trains, evaluates and shows a `VelocityNetwork`. Batches are those of the mix stream.

    `constants`: `stage1` and `denoiser`, trained modules, which no optimiser, all-reduce or checkpoint sees, and `rir`
    as in `DenoiseTask`. Building the network needs none of them.
    """

    name = "restore"
    main_module = "velocity"
    best_metric = "log_mel_distance_db"
    best_is_higher = False
    takes_parts = True
    grouped_metrics = (
        *(f"log_mel_distance{whose}_db" for whose in ("", "_of_input", "_of_denoiser")),
        *(f"stft_distance{whose}" for whose in ("", "_of_input", "_of_denoiser")),
        "bandwidth_restored",
        *(f"{score}{whose}" for score in PACKAGES for whose in ("", "_of_input", "_of_denoiser")),
    )
    """What is also told of each kind of damage, where it is there."""
    group_labels = ("label_damage",)
    """What `groups_of` asks a row for."""

    def __init__(self, hp: HParams, constants: Mapping[str, Any] | None = None) -> None:
        assert isinstance(hp.task, RestoreHParams), hp.task
        self.hp, self.own = hp, hp.task
        constants = constants or {}
        rirs = constants.get("rir")
        self.bank = None if rirs is None or len(rirs) == 0 else RirBank(rirs)
        self.frozen = {name: constants[name] for name in FROZEN if name in constants}
        for module in self.frozen.values():
            module.requires_grad_(False).eval()
        self.early_samples = max(1, round(self.own.early_ms / 1000 * hp.wav_rate))
        self.stft_distance = StftDistance(hp.stft_cfgs)
        self._notices = notice()

    def build(self) -> dict[str, nn.Module]:
        """A fresh network, whose velocity is zero."""
        own = self.own
        network = VelocityNetwork(
            own.num_latents,
            self.hp.num_mels,
            own.width,
            own.num_blocks,
            own.scale,
            own.kernel_size,
            own.recompute_blocks,
        )
        return {self.main_module: network}

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        return trial_mix(rows, self.hp.crop_samples)

    def to(self, device: torch.device) -> None:
        """Move the frozen modules and the impulse responses to `device`."""
        for module in self.frozen.values():
            module.to(device)
        if self.bank is not None:
            self.bank = self.bank.to(device)

    def notices(self) -> list[str]:
        """What the user should be told of this run, once."""
        told, self._notices = self._notices, []
        return told

    def sampling(self) -> Sampling:
        """How recordings are restored where nothing else is asked for."""
        own = self.own
        return Sampling(own.nfe, own.solver, own.strength, own.prior_mix, self.hp.valid_seed)

    def restorer(self, velocity: nn.Module, sampling: Sampling) -> Restorer:
        """`velocity` with the frozen modules, from waveform to waveform. Raises ValueError as `Restorer`."""
        assert isinstance(velocity, VelocityNetwork)
        return Restorer(self._stage1(), self._frozen("denoiser"), velocity, sampling)

    def mix(self, batch: Mapping[str, Tensor]) -> Mix:
        """Mixture and target, each [B, T], of the drawn crops and parameters in `batch`."""
        return damaged_mix(batch, self.bank, self.hp.wav_rate, self.early_samples)

    def step(self, modules: Any, batch: Mapping[str, Tensor], update: Any) -> dict[str, Tensor]:
        """One update of the network by the squared error of its velocity; the loss, and how long the paths were."""
        mixed, stage1 = self.mix(batch), self._stage1()
        with torch.no_grad():
            heard = Heard(stage1, mixed.mixture, self._frozen("denoiser")(mixed.mixture))
            target = stage1.encode(mixed.target).float()
            moments = self._moments(target, update)
        time, prior_mix, strength, noise = self._drawn(batch["draw"].tolist(), target)
        network = modules.raw(self.main_module)
        end, damaged = network.latents(target), network.latents(heard.latents)
        start = prior(damaged, noise, prior_mix)
        state = torch.lerp(start, end, time[:, None, None])
        velocity = modules[self.main_module](state, heard.condition(strength), time, prior_mix, strength)
        loss = F.mse_loss(velocity, end - start)
        update(self.main_module, loss)
        # What is remembered changes behind the update, which gives up a batch that another rank does not have, and with
        # the last part of a batch.
        if moments is not None:
            network.latents.observe(moments)
        return {
            "loss": loss.detach(),
            "standing_still": F.mse_loss(start, end).detach(),
            "latent_spread": network.latents.spread().mean(),
            **damage_shares(batch),
        }

    @torch.no_grad()
    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """How far what is made of each row is from the target, beside the mixture itself and the denoiser's estimate.

        Log-mel (dB) and STFT distance, and bandwidth. What a clean recording and silence become tells whether the model
        is safe: the distance and change in level of the target as an input, and the level of what silence becomes.
        """
        mixed = self.mix(batch)
        silence = torch.zeros_like(mixed.target)
        heard = torch.cat([mixed.mixture, mixed.target, silence])
        denoised = self._frozen("denoiser")(heard)
        rows = len(silence)
        made = self._restore(modules, batch, heard, denoised).split(rows)
        waves = {"": made[0], "of_input": mixed.mixture, "of_denoiser": denoised[:rows]}
        columns = {}
        for whose, wave in waves.items():
            for name, column in self._distances(wave, mixed.target).items():
                columns[_named(name, whose)] = column
        own, before, whole = (
            bandwidth_hz(wave, self.hp.wav_rate) for wave in (made[0], mixed.mixture, mixed.target)
        )
        columns |= {"bandwidth_hz": own, "bandwidth_of_input_hz": before, "bandwidth_of_target_hz": whole}
        columns["bandwidth_restored"] = restored_share(own, before, whole, NO_CHANGE_HZ)
        is_heard = level_db(mixed.target) > -80
        safe = self._distances(made[1], mixed.target)["log_mel_distance_db"]
        change = level_db(made[1]) - level_db(mixed.target)
        columns["clean_log_mel_distance_db"] = safe.where(is_heard, torch.nan)
        columns["clean_level_change_db"] = change.where(is_heard, torch.nan)
        columns["silence_level_dbfs"] = level_db(made[2])
        values = {name: column.tolist() for name, column in columns.items()}
        for whose, wave in waves.items():
            scores = listening_scores(wave, mixed.target, self.hp.wav_rate)
            values |= {_named(name, whose): column for name, column in scores.items()}
        values["label_damage"] = [float(DAMAGES.index(name)) for name in labels(batch)]
        values |= {f"label_{name}": batch[name].tolist() for name in DRAWN}
        return [{name: column[row] for name, column in values.items()} for row in range(rows)]

    @staticmethod
    def groups_of(row: Mapping[str, Any]) -> dict[str, str]:
        """What had happened to the item of a row of `evaluate`, in words."""
        return {"damage": DAMAGES[round(row["label_damage"])]}

    @torch.no_grad()
    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is heard, what the denoiser and the model make of it, and what it should be, of each row, [B, T]."""
        mixed = self.mix(batch)
        denoised = self._frozen("denoiser")(mixed.mixture)
        estimate = self._restore(modules, batch, mixed.mixture, denoised)
        return {
            "mixture": mixed.mixture,
            DENOISER: denoised,
            "estimate": estimate,
            "target": mixed.target,
        }

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and spectrograms of the first rows, the other pictures of the first."""
        waves = self.waves(modules, {name: column[:NUM_SHOWN] for name, column in batch.items()})
        for row in range(len(waves["estimate"])):
            show_sounds(media, row, {name: wave[row] for name, wave in waves.items()}, self.hp.wav_rate)
        show_charts(media, 0, {name: wave[0] for name, wave in waves.items()}, self.hp.wav_rate)

    def _frozen(self, name: str) -> nn.Module:
        if name not in self.frozen:
            raise ValueError(f"the task works with a trained {name}, which it was not given as a constant")
        module: nn.Module = self.frozen[name]
        return module

    def _stage1(self) -> Stage1:
        module = self._frozen("stage1")
        assert isinstance(module, Stage1)
        return module

    def _restore(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], heard: Tensor, denoised: Tensor
    ) -> Tensor:
        """What becomes of rows of `heard`, a whole number of times those of `batch`, each with its item's own noise."""
        restorer = self.restorer(modules[self.main_module], self.sampling())
        frames = -(-heard.shape[-1] // self.hp.hop_size) + 1
        noise = torch.stack(
            [
                torch.randn(
                    frames,
                    self.own.num_latents,
                    generator=generator_of("restore item", self.hp.valid_seed, item),
                )
                for item in batch["item"].tolist()
            ]
        )
        return restorer.restore(heard, noise.repeat(len(heard) // len(noise), 1, 1), denoised).float()

    def _distances(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {
            "log_mel_distance_db": LogMelDistance(self._stage1().mel)(estimate, target),
            "stft_distance": self.stft_distance(estimate, target),
        }

    def _moments(self, latents: Tensor, update: Any) -> Tensor | None:
        """Mean and mean square of each latent of the batch of all ranks, [2, L], with its last part."""
        moments = torch.stack([latents.mean((0, 1)), latents.square().mean((0, 1))])
        return update.mean_of_batch("moments", moments.cpu().double())

    def _drawn(self, draws: list[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Time, prior mix and strength, [B] each, and noise as large as `like`: functions of the seed and the draws."""
        rows, noise = [], []
        low, high = self.own.prior_mix_range
        for draw in draws:
            generator = generator_of("flow", self.hp.seed, draw)
            share, mix = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            prior_mix = low + (high - low) * mix
            rows.append([float(time_at(share)), prior_mix, beta_of(generator, STRENGTH_SHAPE)])
            noise.append(torch.randn(like.shape[1:], generator=generator))
        time, prior_mixes, strength = torch.tensor(rows).to(like).unbind(1)
        return time, prior_mixes, strength, torch.stack(noise).to(like)


def _named(name: str, whose: str) -> str:
    """`log_mel_distance_of_input_db` of `log_mel_distance_db`."""
    if not whose:
        return name
    stem, unit = (name[:-3], "_db") if name.endswith("_db") else (name, "")
    return f"{stem}_{whose}{unit}"
