"""Task `context`: the wet sample at the end of a window of dry samples, many to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.losses.device import esr
from enhancer.losses.weighted import WeightedLoss
from enhancer.metrics import error_to_signal
from enhancer.models.context import ContextDevice, windows_at_once
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import noise
from hparams.schema import HParams
from hparams.tasks import ContextHParams

SHOWN_SECONDS = 0.5
"""Every sample of it costs a whole window."""


class ContextTask:
    """Trains, evaluates and shows a `ContextDevice` on windows of n samples.

    A training batch has `dry`, float32 [B, n], `wet`, float32 [B, 1], the wet sample at the end of each window, and
    `knobs`, float32 [B, K]. A validation batch has the stretches `dry` and `wet`, float32 [B, T], their `knobs`, and
    `first`, int64 [B, W]: where in the stretch each of the windows that are judged begins. No table of windows is made.
    """

    name = "context"
    main_module = "device"
    best_metric = "esr"
    best_is_higher = False
    takes_parts = True
    """The ratio of its loss is taken over the rows that are taken at once, be they a rank's or a part's."""

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, ContextHParams), hp.task
        self.hp, self.own = hp, hp.task
        self.context_samples = hp.task.context_at(hp.wav_rate)
        self.loss = WeightedLoss({"esr": (1.0, esr)})

    def build(self) -> dict[str, nn.Module]:
        """A fresh model of the device."""
        own = self.own
        return {self.main_module: ContextDevice(self.context_samples, len(own.knobs), own.hidden_size)}

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        dry = noise(rows, self.context_samples)
        knobs = torch.zeros(rows, len(self.own.knobs))
        return {"draw": torch.arange(rows), "dry": dry, "wet": dry[:, :1], "knobs": knobs}

    def to(self, device: torch.device) -> None:
        """The task has no constants of its own."""

    def step(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], update: Any
    ) -> dict[str, Tensor]:
        """One update from the error-to-signal ratio of the batch; returns the loss and its terms."""
        estimate = _wet_at_end(modules[self.main_module], batch["dry"], batch["knobs"])
        total, terms = self.loss(estimate, batch["wet"])
        update(self.main_module, total)
        return {"loss": total.detach(), **terms}

    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """ESR, mean squared and absolute error of each row over its windows."""
        return [
            self._judge(modules[self.main_module], *row)
            for row in zip(batch["dry"], batch["wet"], batch["knobs"], batch["first"], strict=True)
        ]

    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model hears, makes and should make of the loudest half second of each row, [B, T] each."""
        before = self.context_samples - 1
        count = min(round(SHOWN_SECONDS * self.hp.wav_rate), batch["dry"].shape[-1] - before)
        rows = []
        for dry, wet, knobs in zip(batch["dry"], batch["wet"], batch["knobs"], strict=True):
            start = before + _loudest(wet[before:], count)
            heard, target = dry[start : start + count], wet[start : start + count]
            past = (dry[None, start - before : start],)
            estimate, _ = modules[self.main_module](heard[None], knobs[None], past)
            rows.append({"dry": heard, "estimate": estimate[0].float(), "target": target})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and pictures of the loudest half second of the first row."""
        waves = self.waves(modules, {name: column[:1] for name, column in batch.items()})
        first = {name: wave[0] for name, wave in waves.items()}
        show_sounds(media, 0, first, self.hp.wav_rate)
        show_charts(media, 0, first, self.hp.wav_rate)

    def _judge(
        self, module: nn.Module, dry: Tensor, wet: Tensor, knobs: Tensor, first: Tensor
    ) -> dict[str, float]:
        """Metrics of one stretch, dry and wet [T], at the windows that begin at `first` [W]."""
        windows = dry.unfold(0, self.context_samples, 1)
        parts = first.split(windows_at_once(dry.device))
        estimate = torch.cat(
            [_wet_at_end(module, windows[part], knobs.expand(len(part), -1)) for part in parts]
        ).t()
        target = wet[first + self.context_samples - 1][None]
        return {
            "esr": error_to_signal(estimate.float(), target).item(),
            "mse": (estimate - target).square().mean().item(),
            "mae": (estimate - target).abs().mean().item(),
        }


def _wet_at_end(module: nn.Module, windows: Tensor, knobs: Tensor) -> Tensor:
    """Dry windows [B, n] and knobs [B, K] -> the model's wet sample at the end of each window, [B, 1]."""
    estimate, _ = module(windows[:, -1:], knobs, (windows[:, :-1],))
    return estimate


def _loudest(wave: Tensor, count: int) -> int:
    """Where the `count` samples of the most energy begin in `wave` [T]."""
    energy = wave.double().square().cumsum(0)
    total = energy[count - 1 :] - torch.cat([energy.new_zeros(1), energy[: len(energy) - count]])
    return int(total.argmax())
