"""Task `string`: what a plucked string does once it is left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from enhancer.charts import LINEAR_FILTER
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.string import DecayCurve, energy_gain, relative_l1, relative_mse
from enhancer.losses.weighted import WeightedLoss
from enhancer.models.string import PluckedString
from enhancer.models.string_filter import OCTAVES_HZ
from enhancer.models.string_outlook import Outlook
from enhancer.string_metrics import ALSO_OF_LINEAR, beside_linear, string_metrics
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import noise
from hparams.schema import HParams
from hparams.tasks import StringHParams

CONTROLS = ("f0_hz", "velocity", "position", "t60", "decay_db", "t60_range_db", "time")
"""Columns of a batch that the model takes beside the history."""
BANDS = {"t60": 1.0, "t60_range_db": 60.0}
"""Of a trial, in each octave."""
OUTLOOK_CONSTANTS = ("outlook_level_db", "outlook_f0_hz", "outlook_stop_db")
"""Of a stream: what `Outlook.learn` takes."""


class StringTask:
    """Trains, evaluates and shows a `PluckedString` on windows of notes; docs/strings.md tells what a batch has.

    The start of a window is the model's history, the rest it makes on its own. How far the loss looks is a number of
    feedback periods that grows with the draws, by equal factors from the first to the last of `rollout_periods`.
    """

    name = "string"
    main_module = "string"
    best_metric = "level_error_db"
    best_is_higher = False
    takes_parts = True

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, StringHParams), hp.task
        self.hp, self.own, self.constants = hp, hp.task, dict(constants or {})
        own = self.own
        self.history_samples = round(own.history_seconds * hp.wav_rate)
        terms: dict[str, Any] = {
            "mse": (own.mse_weight, relative_mse),
            "l1": (own.l1_weight, relative_l1),
            "decay": (own.decay_weight, DecayCurve(hp.wav_rate, OCTAVES_HZ)),
        }
        if own.stft_weight:
            terms["stft"] = (own.stft_weight, MultiResolutionStft(hp.stft_cfgs))
        self.loss = WeightedLoss(terms)

    def build(self) -> dict[str, nn.Module]:
        """A fresh string, whose outlook has learned from the notes that train, where they are among the constants."""
        string = self._string(self.own.num_layers, self.own.has_two_stages, self.own.loop == "bounded")
        if string.outlook is not None and self.constants:
            string.outlook.learn(*(self.constants[name] for name in OUTLOOK_CONSTANTS))
        return {self.main_module: string}

    def _string(self, num_layers: int, has_two_stages: bool, is_bounded: bool) -> PluckedString:
        own = self.own
        return PluckedString(
            rate_hz=self.hp.wav_rate,
            controls=own.controls,
            num_layers=num_layers,
            hidden_size=own.hidden_size,
            is_bounded=is_bounded,
            is_odd=own.symmetry == "odd",
            has_quarter_taps=own.has_quarter_taps,
            has_decay_state=own.has_decay_state,
            has_two_stages=has_two_stages,
            outlook_seconds=own.outlook_seconds,
        )

    def plain(self, device: torch.device) -> PluckedString:
        """The plain linear filter that is told the same of a note and has learned nothing."""
        # Built when it is needed, without taking random numbers from training.
        with torch.random.fork_rng(devices=[]):
            return self._string(0, has_two_stages=False, is_bounded=True).to(device).eval()

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        # Of the longest rollout: at the end of its growth, of a note so low that it fills the window.
        lowest = {"f0_hz": 2.2 / self.own.history_seconds, "decay_db": -10.0, "time": 0.5}
        columns = {**lowest, "velocity": 0.5, "position": 0.2}
        values = {name: torch.full((rows,), value) for name, value in columns.items()}
        bands = {name: torch.full((rows, len(OCTAVES_HZ)), value) for name, value in BANDS.items()}
        last = torch.full((rows,), self.own.rollout_draws)
        return {"draw": last, "note": noise(rows, self.hp.crop_samples), **values, **bands}

    def to(self, device: torch.device) -> None:
        """The task has no constants of its own."""

    def rollout_samples(self, batch: Mapping[str, Tensor]) -> int:
        """Samples that the loop runs on its own in this batch: a function of its draws and lowest pitch."""
        first, last = self.own.rollout_periods
        share = min(1.0, int(batch["draw"].max()) / self.own.rollout_draws) if self.own.rollout_draws else 1.0
        longest_period = self.hp.wav_rate / float(batch["f0_hz"].min())
        wanted = round(first * (last / first) ** share * longest_period)
        return min(wanted, batch["note"].shape[-1] - self.history_samples)

    def step(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], update: Any
    ) -> dict[str, Tensor]:
        """One update from a rollout; returns the loss, its terms and the length of the rollout."""
        count = self.rollout_samples(batch)
        note = batch["note"]
        if self.own.symmetry == "augment":
            note = note * (1 - 2 * (batch["draw"] % 2))[:, None]
        history, target = note[:, : self.history_samples], note[:, self.history_samples :][:, :count]
        estimate = modules[self.main_module](history, count, *(batch[name] for name in CONTROLS))
        total, terms = self.loss(estimate, target)
        if self.own.gain_weight:
            gain = energy_gain(estimate, self.hp.wav_rate / batch["f0_hz"])
            total = total + self.own.gain_weight * gain
            terms = {
                **terms,
                "gain": gain.detach(),
                "gain_weighted": (self.own.gain_weight * gain).detach(),
            }
        update(self.main_module, total)
        return {"loss": total.detach(), **terms, "rollout_samples": note.new_tensor(count)}

    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """`string_metrics` of each row, which runs on its own from the end of the attack on, beside the plain filter's.

        `linear_...` are those of the plain linear filter on the same row, `..._below_linear` what its errors are more;
        `foretold_...` and `linear_foretold_...` those of either where T60 is not told as it is but as the outlook
        foretells it from the beginning of the row, NaN where that is too short.
        """
        module, plain = modules[self.main_module], self.plain(batch["note"].device)
        rows, plain_rows = self.judged(module, batch), self.judged(plain, batch)
        found = [{**own, **beside_linear(own, other)} for own, other in zip(rows, plain_rows, strict=True)]
        outlook = cast(PluckedString, module).outlook
        if outlook is None:
            return found
        foretold = self.foretold(outlook, batch)
        for prefix, each in (("foretold_", module), ("linear_foretold_", plain)):
            judged = [{}] * len(found) if foretold is None else self.judged(each, foretold)
            for row, own in zip(found, judged, strict=True):
                row.update({prefix + name: own.get(name, math.nan) for name in ALSO_OF_LINEAR})
        return found

    def foretold(self, outlook: Outlook, batch: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """`batch` with the T60 that `outlook` foretells from its first seconds; None where it is shorter than these."""
        note = batch["note"]
        if note.shape[-1] < outlook.heard_samples + 1:
            return None
        ahead = note.shape[-1] - self.history_samples
        t60 = outlook.over(note, batch["f0_hz"], self.history_samples, ahead)
        return {**batch, "t60": t60, "t60_range_db": torch.full_like(t60, math.nan)}

    def judged(self, module: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, float]]:
        """`string_metrics` of what `module` makes of each row."""
        estimate, target = self._estimate(module, batch)
        columns = string_metrics(estimate, target, self.hp.wav_rate, batch["f0_hz"], batch.get("noise_db"))
        values = {name: column.tolist() for name, column in columns.items()}
        return [{name: column[row] for name, column in values.items()} for row in range(len(estimate))]

    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`history`, `estimate`, `target` and what the plain linear filter makes of the same history, [B, T] each.

        `history` is what the model heard, silent where it runs on its own; all others begin with it.
        """
        estimate, target = self._estimate(modules[self.main_module], batch)
        plain, _ = self._estimate(self.plain(batch["note"].device), batch)
        heard = batch["note"][:, : self.history_samples]
        return {
            "history": torch.cat([heard, torch.zeros_like(target)], 1),
            "estimate": torch.cat([heard, estimate], 1),
            "target": torch.cat([heard, target], 1),
            LINEAR_FILTER: torch.cat([heard, plain], 1),
        }

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and pictures of the first row."""
        waves = self.waves(modules, {name: column[:1] for name, column in batch.items()})
        first = {name: wave[0] for name, wave in waves.items()}
        show_sounds(media, 0, first, self.hp.wav_rate)
        show_charts(media, 0, first, self.hp.wav_rate)

    def _estimate(self, module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Estimate and target after the history, [B, T - history]."""
        history = batch["note"][:, : self.history_samples]
        target = batch["note"][:, self.history_samples :]
        controls = (batch[name] for name in CONTROLS)
        return module(history, target.shape[-1], *controls), target
