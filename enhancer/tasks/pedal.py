"""Task `pedal`: what a pedal or amplifier makes of a dry signal, sample by sample, with bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.losses.device import HFHinge, PreemphasisedEsr, dc, esr, mae, mse
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.weighted import WeightedLoss
from enhancer.metrics import device_metrics
from enhancer.models.recurrent import RecurrentDevice, detach_state
from enhancer.models.wavenet import WaveNetDevice
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import noise
from hparams.schema import HParams
from hparams.stft import scaled_resolutions
from hparams.tasks import PedalHParams

SHOWN_SECONDS = 3.0


class PedalTask:
    """Trains, evaluates and shows a causal model of a device.

    Batches have `dry` and `wet`, float32 [B, T], and `knobs`, float32 [B, K].

    A training segment begins with `warmup_samples` that only fill the model's memory. Gradients then go back through
    `update_samples` at most, one optimiser step for each such chunk (truncated backpropagation through time; A. Wright,
    E.-P. Damskägg, V. Välimäki, "Real-Time Black-Box Modelling with Recurrent Neural Networks", DAFx 2019). The last
    chunk is what remains.
    """

    name = "pedal"
    main_module = "device"
    best_metric = "esr"
    best_is_higher = False

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, PedalHParams), hp.task
        self.hp, self.own = hp, hp.task
        own = self.own
        terms: dict[str, Any] = {
            "esr": (own.esr_weight, esr),
            "dc": (own.dc_weight, dc),
            "mse": (own.mse_weight, mse),
            "mae": (own.mae_weight, mae),
        }
        if own.preemphasis_esr_weight:
            filtered = PreemphasisedEsr(own.preemphasis_filter, hp.wav_rate)
            terms["esr_preemphasis"] = (own.preemphasis_esr_weight, filtered)
        if own.hf_hinge_weight:
            hinge = HFHinge(hp.wav_rate, fmin=own.hf_hinge_fmin, strength=own.hf_hinge_strength)
            terms["hf_hinge"] = (own.hf_hinge_weight, hinge)
        if own.stft_weight:
            terms["stft"] = (own.stft_weight, MultiResolutionStft(scaled_resolutions(hp.wav_rate)))
        self.loss = WeightedLoss(terms)

    @property
    def takes_parts(self) -> bool:
        """Whether a segment is one chunk, so that a batch is one update."""
        segment_samples = round(self.hp.training_seconds * self.hp.wav_rate)
        return segment_samples - self.own.warmup_samples <= self.own.update_samples

    def build(self) -> dict[str, nn.Module]:
        """A fresh model of the device."""
        own, num_knobs = self.own, len(self.own.knobs)
        if own.model == "wavenet":
            return {self.main_module: WaveNetDevice(num_knobs=num_knobs)}
        model = RecurrentDevice(
            num_knobs=num_knobs,
            hidden_size=own.hidden_size,
            num_layers=own.num_layers,
            unit=own.model,
            has_skip=own.has_skip,
        )
        return {self.main_module: model}

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """Two groups: recurrent weights decay less than the others."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for key, parameter in module.named_parameters():
            groups["weight_hh" in key].append(parameter)
        decays = {False: self.own.weight_decay, True: self.own.recurrent_weight_decay}
        stacked = module.stacked_parameters if isinstance(module, WaveNetDevice) else []
        return [
            {"params": parameters, "weight_decay": decays[is_recurrent], "stacked": stacked}
            for is_recurrent, parameters in groups.items()
            if parameters
        ]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        dry = noise(rows, self.hp.crop_samples)
        knobs = torch.zeros(rows, len(self.own.knobs))
        return {"draw": torch.arange(rows), "dry": dry, "wet": dry.flip(-1), "knobs": knobs}

    def to(self, device: torch.device) -> None:
        """The task has no constants of its own."""

    def step(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], update: Any
    ) -> dict[str, Tensor]:
        """An update for each chunk of the segment; returns the mean loss and terms over chunks."""
        device, knobs = modules[self.main_module], batch["knobs"]
        dry, wet = batch["dry"], batch["wet"]
        warmup, length = self.own.warmup_samples, dry.shape[-1]
        state, before = None, None
        if warmup:
            with torch.no_grad():
                heard, state = device(dry[:, :warmup], knobs)
            before = (heard, wet[:, :warmup])
        logged: list[dict[str, Tensor]] = []
        shares: list[float] = []
        for start in range(warmup, length, self.own.update_samples):
            stop = min(start + self.own.update_samples, length)
            estimate, state = device(dry[:, start:stop], knobs, state)
            state = detach_state(state)
            target = wet[:, start:stop]
            total, terms = self.loss(estimate, target, before)
            update(self.main_module, total)
            before = (estimate.detach(), target)
            logged.append({"loss": total.detach(), **terms})
            shares.append((stop - start) / (length - warmup))
        weights = dry.new_tensor(shares)
        return {name: weights @ torch.stack([values[name] for values in logged]) for name in logged[0]}

    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """`device_metrics` of each row."""
        estimate, target = self._estimate(modules, batch)
        columns = device_metrics(estimate, target, self.hp.wav_rate)
        values = {name: column.tolist() for name, column in columns.items()}
        return [{name: column[row] for name, column in values.items()} for row in range(len(estimate))]

    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model hears, makes and should make of each row after the warm-up, [B, T - warmup] each."""
        estimate, target = self._estimate(modules, batch)
        return {"dry": batch["dry"][:, -target.shape[-1] :], "estimate": estimate, "target": target}

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and spectrograms of the start of the first row, the other pictures of all of it."""
        waves = self.waves(modules, {name: column[:1] for name, column in batch.items()})
        first = {name: wave[0] for name, wave in waves.items()}
        count = round(SHOWN_SECONDS * self.hp.wav_rate)
        show_sounds(media, 0, {name: wave[:count] for name, wave in first.items()}, self.hp.wav_rate)
        show_charts(media, 0, first, self.hp.wav_rate)

    def _estimate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Estimate and target after the warm-up, [B, T - warmup]."""
        estimate, _ = modules[self.main_module](batch["dry"], batch["knobs"])
        warmup = self.own.warmup_samples
        return estimate[:, warmup:], batch["wet"][:, warmup:]
