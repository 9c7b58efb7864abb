"""Task `codec`: a neural audio codec that gives foreground recordings back from few codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.losses.mel import MultiScaleMel
from enhancer.losses.si_sdr import negative_si_sdr
from enhancer.losses.stft import MultiResolutionStft
from enhancer.losses.waveform import waveform_l1
from enhancer.losses.weighted import Loss, WeightedLoss
from enhancer.metrics import StftDistance, si_sdr
from enhancer.models.dac import Dac
from enhancer.signal.mel_distance import mel_distance
from enhancer.signal.mixing import foreground_at_level
from enhancer.tasks.figures import show_charts, show_sounds
from enhancer.tasks.trial import trial_mix
from hparams.codec import CodecHParams
from hparams.schema import HParams

NUM_SHOWN = 4
# Multiples of them spread evenly over the unit interval, in any stretch of draws.
GOLDEN_RATIO, PLASTIC_RATIO = 0.6180339887498949, 0.7548776662466927


class CodecTask:
    """Trains, evaluates and shows a `Dac`, on the foregrounds of the mix stream at their drawn levels.

    Some examples use the first few codebooks only, so that these carry what matters most: which, and how many, are
    functions of seed and draw.
    """

    name = "codec"
    main_module = "codec"
    best_metric = "mel_distance"
    best_is_higher = False

    def __init__(self, hp: HParams, constants: Mapping[str, Tensor] | None = None) -> None:
        assert isinstance(hp.task, CodecHParams), hp.task
        self.hp, self.own = hp, hp.task
        terms: dict[str, tuple[float, Loss]] = {
            "mel": (self.own.mel_weight, MultiScaleMel(hp.wav_rate)),
            "l1": (self.own.l1_weight, waveform_l1),
            "si_sdr": (self.own.si_sdr_weight, negative_si_sdr),
        }
        if self.own.stft_weight:
            terms["stft"] = (self.own.stft_weight, MultiResolutionStft(hp.stft_cfgs))
        self.loss = WeightedLoss(terms, self.own.is_balanced)
        # The balancer weighs the terms by the gradients of all rows at once, and remembers them.
        self.takes_parts = not self.own.is_balanced
        self.counts = _counts(self.own.num_codebooks)
        self._untrained: nn.Module | None = None

    def build(self) -> dict[str, nn.Module]:
        """A fresh codec."""
        own = self.own
        codec = Dac(
            encoder_width=own.encoder_width,
            decoder_width=own.decoder_width,
            strides=own.strides,
            num_codebooks=own.num_codebooks,
            codebook_size=own.codebook_size,
            codebook_dim=own.codebook_dim,
        )
        return {self.main_module: codec}

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        """One group: all parameters alike."""
        return [{"params": list(module.parameters())}]

    def trial_batch(self, rows: int) -> dict[str, Tensor]:
        """See `enhancer.engine.task.Foreseeable`."""
        return trial_mix(rows, self.hp.crop_samples)

    def to(self, device: torch.device) -> None:
        """The task has no constants of its own."""

    def state(self) -> dict[str, Tensor]:
        """What the balancer of the losses goes on from, where there is one."""
        return self.loss.state()

    def step(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], update: Any
    ) -> dict[str, Tensor]:
        """One update of the codec; returns the loss and its terms, raw and weighted."""
        target = foreground_at_level(batch)
        estimate, commitment, codebook = modules[self.main_module](target, self._num_codebooks(batch["draw"]))
        total, terms = self.loss(estimate, target, mean=update.mean)
        for name, raw, weight in (
            ("commitment", commitment, self.own.commitment_weight),
            ("codebook", codebook, self.own.codebook_weight),
        ):
            total = total + weight * raw
            terms[name], terms[f"{name}_weighted"] = raw.detach(), weight * raw.detach()
        update(self.main_module, total)
        self.loss.settle()
        return {"loss": total.detach(), **terms}

    @torch.no_grad()
    def evaluate(
        self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
    ) -> list[dict[str, float]]:
        """Mel distance (as the DAC paper has it), STFT distance and SI-SDR (dB) of what comes back of each row.

        With all codebooks; how much better each is than of the untrained codec; `..._at_N` with the first N codebooks
        only; and the bits of a code that are used within the row, on average over the codebooks.
        """
        target = foreground_at_level(batch)
        codec = modules[self.main_module]
        codes = codec.encode(target)  # type: ignore[operator]
        columns: dict[str, Tensor] = {}
        for count in self.counts:
            found = self._judge(codec.decode(codes[:, :count], target.shape[-1]), target)  # type: ignore[operator]
            if count == self.own.num_codebooks:
                untrained = self._judge(self._fresh(target.device)(target), target)
                columns = {**found, **_improvements(found, untrained), **columns}
            else:
                columns |= {_at(name, count): column for name, column in found.items()}
        columns["code_entropy_bits"] = _entropy_bits(codes)
        values = {name: column.tolist() for name, column in columns.items()}
        return [{name: column[row] for name, column in values.items()} for row in range(len(target))]

    def waves(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the codec hears and gives back of each row, [B, T] each; what it hears is the target."""
        target = foreground_at_level(batch)
        return {"recording": target, "estimate": modules[self.main_module](target), "target": target}

    def show(self, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], media: Any) -> None:
        """Sounds and spectrograms of the first rows, the other pictures of the first."""
        waves = self.waves(modules, {name: column[:NUM_SHOWN] for name, column in batch.items()})
        for row in range(len(waves["estimate"])):
            show_sounds(media, row, {name: wave[row] for name, wave in waves.items()}, self.hp.wav_rate)
        show_charts(media, 0, {name: wave[0] for name, wave in waves.items()}, self.hp.wav_rate)

    def _num_codebooks(self, draw: Tensor) -> Tensor:
        """How many codebooks each example uses, int64 [B]: all, or a drawn number of them."""
        place = torch.remainder(
            draw.double() * GOLDEN_RATIO + (self.hp.seed % 65_536) * PLASTIC_RATIO, 1.0
        ).float()
        share, most = self.own.codebook_dropout, self.own.num_codebooks
        fewer = (1 + (place / max(share, 1e-9) * most).floor()).clamp(max=most).long()
        return torch.where(place < share, fewer, most)

    def _judge(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        distances = {
            "mel_distance": mel_distance(estimate, target, self.hp.wav_rate),
            "si_sdr_db": si_sdr(estimate, target),
        }
        if self.own.stft_weight:
            distances["stft_distance"] = StftDistance(self.hp.stft_cfgs)(estimate, target)
        return distances

    def _fresh(self, device: torch.device) -> nn.Module:
        """The codec as it was before training."""
        if self._untrained is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.hp.seed)
                self._untrained = self.build()[self.main_module].eval()
        return self._untrained.to(device)


def _counts(num_codebooks: int) -> list[int]:
    """1, 2, 4 and so on, and all of them."""
    powers = [1 << exponent for exponent in range(num_codebooks.bit_length())]
    return [*(count for count in powers if count < num_codebooks), num_codebooks]


def _at(name: str, count: int) -> str:
    stem, unit = (name[:-3], "_db") if name.endswith("_db") else (name, "")
    return f"{stem}_at_{count}{unit}"


def _improvements(found: Mapping[str, Tensor], untrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much better the trained codec is: distances that are smaller, a ratio that is higher."""
    return {
        f"{name[:-3]}_improvement_db" if name.endswith("_db") else f"{name}_improvement": (
            column - untrained[name] if name.endswith("_db") else untrained[name] - column
        )
        for name, column in found.items()
    }


def _entropy_bits(codes: Tensor) -> Tensor:
    """Entropy of the codes [B, Q, N] of each row, in bits, averaged over the codebooks: [B]."""
    table = codes.new_zeros(*codes.shape[:2], int(codes.max()) + 1)
    counts = table.scatter_add_(2, codes, torch.ones_like(codes)).gather(2, codes)
    return (math.log2(codes.shape[-1]) - counts.double().log2()).mean((1, 2)).float()
