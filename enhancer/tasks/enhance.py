"""Task `enhance`: stage 1 of the enhancer, a mel autoencoder and a vocoder that learn against discriminators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.charts import GRIFFIN_LIM
from enhancer.losses.adversarial import BOUNDS, adversarial_loss, feature_loss, hinge_loss
from enhancer.losses.mel import MultiScaleMel
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.weighted import Loss, WeightedLoss
from enhancer.metrics import LogMelDistance, StftDistance
from enhancer.models.discriminators import Judgement, WaveDiscriminator, rows_of
from enhancer.models.mel_autoencoder import MelAutoencoder
from enhancer.models.stage1 import Stage1
from enhancer.models.vocoder import SpectralVocoder
from enhancer.signal.mel import MelSpectrogram
from enhancer.signal.mel_distance import mel_distance
from enhancer.signal.mel_inverse import griffin_lim
from enhancer.signal.mixing import foreground_at_level
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import trial_mix
from hparams.enhance import EnhanceHParams
from hparams.schema import HParams

NUM_SHOWN = 4
DISCRIMINATOR = "discriminator"
NEAR_BOUND = 0.02
"""A discriminator whose loss is so near to one of its bounds tells nothing apart, or has nothing left to learn."""
Distances = dict[str, float]


class EnhanceTask:
    """Trains, evaluates and shows a `Stage1`, on the foregrounds of the mix stream at their drawn levels.

    The first `gan_start_step` steps are without the discriminator, which is then idle. How many there were, and for how
    long its loss has been flat, goes on from checkpoint to checkpoint.
    """

    name = "enhance"
    main_module = "generator"
    best_metric = "mel_distance"
    best_is_higher = False
    takes_parts = True

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, EnhanceHParams), hp.task
        self.hp, self.own = hp, hp.task
        terms: dict[str, tuple[float, Loss]] = {
            "mel": (self.own.mel_weight, MultiScaleMel(hp.wav_rate)),
            "stft": (self.own.stft_weight, MultiResolutionStft(hp.stft_cfgs)),
        }
        self.loss = WeightedLoss(terms)
        self.mel = self._front_end()
        self._num_steps = torch.zeros((), dtype=torch.int64)
        self._flat_steps = torch.zeros((), dtype=torch.int64)
        self._notices = _warnings(hp)
        self._baselines: dict[int, Distances] = {}
        self._untrained: nn.Module | None = None

    def build(self) -> dict[str, nn.Module]:
        """A fresh generator and a fresh discriminator."""
        own = self.own
        discriminator = (own.periods, self.hp.stft_cfgs, own.period_width, own.resolution_width)
        return {self.main_module: self._generator(), DISCRIMINATOR: WaveDiscriminator(*discriminator)}

    def _generator(self) -> Stage1:
        own = self.own
        autoencoder = MelAutoencoder(
            num_mels=self.hp.num_mels,
            num_latents=own.num_latents,
            num_extra=own.num_extra,
            width=own.autoencoder_width,
            num_blocks=own.autoencoder_blocks,
            scale=own.autoencoder_scale,
            recompute_blocks=own.recompute_blocks,
        )
        vocoder = SpectralVocoder(
            inputs=self.hp.num_mels + own.num_extra,
            width=own.vocoder_width,
            num_blocks=own.vocoder_blocks,
            scale=own.vocoder_scale,
            window_samples=own.vocoder_window,
            hop_samples=self.hp.hop_size,
            recompute_blocks=own.recompute_blocks,
        )
        return Stage1(self._front_end(), self.hp.wav_rate, autoencoder, vocoder)

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        # From the step on at which the discriminators take part, where there is one.
        self._num_steps.fill_(min(self.own.gan_start_step, self.hp.max_steps - 1))
        return trial_mix(rows, self.hp.crop_samples)

    def to(self, device: torch.device) -> None:
        """The task has no constants of its own."""

    def state(self) -> dict[str, Tensor]:
        """How many steps there were, and the last how many of them had the discriminator's loss at a bound."""
        return {"num_steps": self._num_steps, "flat_steps": self._flat_steps}

    def notices(self) -> list[str]:
        """What the user should be told of this run, once."""
        told, self._notices = self._notices, []
        return told

    def step(self, modules: Any, batch: Mapping[str, Tensor], update: Any) -> dict[str, Tensor]:
        """One update of the generator, and of the discriminator where it takes part; the terms, raw and weighted."""
        target = foreground_at_level(batch)
        moments = self._moments(target, update)
        estimate, restored, frames = modules[self.main_module](target, with_frames=True)
        total, values = self.loss(estimate, target)
        terms = {"autoencoder": (self.own.autoencoder_weight, F.mse_loss(restored, frames))}
        is_playing = int(self._num_steps) >= self.own.gan_start_step
        if is_playing:
            with modules.frozen(DISCRIMINATOR) as discriminator:
                with torch.no_grad():
                    targets = discriminator(target)
                estimates = discriminator(estimate)
            terms["adversarial"] = (self.own.adversarial_weight, adversarial_loss(estimates))
            terms["features"] = (self.own.features_weight, feature_loss(targets, estimates))
        for name, (weight, raw) in terms.items():
            total = total + weight * raw
            values[name], values[f"{name}_weighted"] = raw.detach(), weight * raw.detach()
        update(self.main_module, total)
        # What is remembered changes behind the first update, which gives up a batch that another rank does not have,
        # and with the last part of a batch.
        if moments is not None:
            modules.raw(self.main_module).normaliser.observe(moments)
            self._num_steps += 1
        if is_playing:
            values |= self._judge_apart(modules, target, estimate.detach(), update)
        return {"loss": total.detach(), **values}

    @torch.no_grad()
    def evaluate(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> list[Distances]:
        """Mel distance (as the DAC paper has it), STFT distance and difference of the log-mel spectrograms (dB).

        Of what comes back of each row; beside it of Griffin-Lim from the same mel spectrogram (`..._of_griffin_lim`)
        and of the model before training (`..._untrained`).
        """
        target = foreground_at_level(batch)
        found = self._distances(modules[self.main_module](target), target)
        return [{**own, **other} for own, other in zip(found, self._beside(target, batch), strict=True)]

    @torch.no_grad()
    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model hears, which is the target, what it gives back, and Griffin-Lim of each row, [B, T]."""
        target = foreground_at_level(batch)
        return {
            "recording": target,
            GRIFFIN_LIM: self._griffin_lim(target),
            "estimate": modules[self.main_module](target),
            "target": target,
        }

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and spectrograms of the first rows, the other pictures of the first."""
        waves = self.waves(modules, {name: column[:NUM_SHOWN] for name, column in batch.items()})
        for row in range(len(waves["estimate"])):
            show_sounds(media, row, {name: wave[row] for name, wave in waves.items()}, self.hp.wav_rate)
        show_charts(media, 0, {name: wave[0] for name, wave in waves.items()}, self.hp.wav_rate)

    def _front_end(self) -> MelSpectrogram:
        hp = self.hp
        # As in `Stage1`: constants are no weights.
        with torch.device("cpu"):
            return MelSpectrogram(
                hp.wav_rate,
                hp.n_fft,
                hp.win_size,
                hp.hop_size,
                hp.num_mels,
                hp.preemphasis,
                hp.stft_magnitude_min,
            )

    def _moments(self, target: Tensor, update: Any) -> Tensor | None:
        """Mean and mean square of the scaled mel frames of the batch of all ranks, [2], with its last part."""
        mel = self.mel.scaled(target)
        return update.mean_of_batch("moments", torch.stack([mel.mean(), mel.square().mean()]).cpu().double())

    def _judge_apart(self, modules: Any, target: Tensor, estimate: Tensor, update: Any) -> dict[str, Tensor]:
        """One update of the discriminator; its loss, and for how long that has been at a bound, over all ranks."""
        judged: list[Judgement] = modules[DISCRIMINATOR](torch.cat([target, estimate]))
        rows = len(target)
        loss = hinge_loss(rows_of(judged, slice(0, rows)), rows_of(judged, slice(rows, None)))
        update(DISCRIMINATOR, loss)
        mean = update.mean_of_batch("discriminator", loss.detach().cpu().double())
        if mean is None:
            return {"discriminator": loss.detach()}
        seen = float(mean)
        is_flat = any(abs(seen - bound) <= NEAR_BOUND for bound in BOUNDS)
        self._flat_steps.copy_(self._flat_steps + 1 if is_flat else torch.zeros_like(self._flat_steps))
        if int(self._flat_steps) == self.own.collapse_steps:
            self._notices.append(_collapse_text(seen, self.own.collapse_steps))
        return {"discriminator": loss.detach(), "flat_steps": self._flat_steps.to(loss)}

    def _distances(self, estimate: Tensor, target: Tensor) -> list[Distances]:
        columns = {
            "mel_distance": mel_distance(estimate, target, self.hp.wav_rate),
            "stft_distance": StftDistance(self.hp.stft_cfgs)(estimate, target),
            "log_mel_distance_db": LogMelDistance(self.mel)(estimate, target),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        return [{name: column[row] for name, column in values.items()} for row in range(len(target))]

    def _beside(self, target: Tensor, batch: Mapping[str, Tensor]) -> list[Distances]:
        """The distances of Griffin-Lim and of the untrained model, computed once for each item of the list."""
        items = batch["item"].tolist() if "item" in batch else [-1] * len(target)
        if -1 in items or not self._baselines.keys() >= set(items):
            lim = self._distances(self._griffin_lim(target), target)
            untrained = self._fresh().to(target.device)
            fresh = self._distances(untrained(target), target)
            untrained.to("cpu")
            rows = [
                {_beside_name(name, "of_griffin_lim"): value for name, value in first.items()}
                | {_beside_name(name, "untrained"): value for name, value in second.items()}
                for first, second in zip(lim, fresh, strict=True)
            ]
            self._baselines |= {item: row for item, row in zip(items, rows, strict=True) if item >= 0}
            return rows
        return [self._baselines[item] for item in items]

    def _griffin_lim(self, target: Tensor) -> Tensor:
        return griffin_lim(self.mel(target), self.mel, self.hp.wav_rate, target.shape[-1])

    def _fresh(self) -> nn.Module:
        """The generator as it was before training."""
        if self._untrained is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.hp.seed)
                self._untrained = self._generator().eval()
        return self._untrained


def _beside_name(name: str, suffix: str) -> str:
    stem, unit = (name[:-3], "_db") if name.endswith("_db") else (name, "")
    return f"{stem}_{suffix}{unit}"


def _warnings(hp: HParams) -> list[str]:
    assert isinstance(hp.task, EnhanceHParams), hp.task
    start = hp.task.gan_start_step
    if start < hp.max_steps:
        return []
    return [
        f"task.gan_start_step {start} is not below max_steps {hp.max_steps}, so the discriminators never take part: "
        "this run trains on the spectral losses alone. Lower it, or raise max_steps"
    ]


def _collapse_text(loss: float, num_steps: int) -> str:
    what = (
        "it tells every target from every estimate, and has little more to teach"
        if loss < 1
        else "it tells nothing apart"
    )
    bound = min(BOUNDS, key=lambda each: abs(each - loss))
    return (
        f"the discriminator has collapsed: its loss has been at its bound of {bound:g} for {num_steps} steps, so "
        f"{what}. Lower max_lr or task.adversarial_weight, or start it later (task.gan_start_step)"
    )
