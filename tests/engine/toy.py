"""A task and a stream without audio for tests of the engine: a small regression, or two modules in turn.

As a program it runs a whole session, so that tests can start it under any launcher::

    python tests/engine/toy.py RUN_FOLDER --set max_steps=10 --fault nan:3:1
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.engine.session import Options, Place, train
from enhancer.engine.session_end import leave
from enhancer.engine.task import Batch, Media, Modules, Update
from hparams.load import load
from hparams.schema import HParams

FEATURES = 6
NUM_ITEMS = 11
SIGNALS = {"term": signal.SIGTERM, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}
TOY_VALUES = (
    "batch_size_per_gpu=8",
    "max_steps=10",
    "warmup_steps=2",
    "max_lr=0.01",
    "min_lr=0.001",
    "log_every=1",
    "eval_every=5",
    "save_every=5",
    "nj=0",
)


class ChannelsLast(nn.Module):
    """A convolution over [B, FEATURES] whose weights lie channels last, as fast image-like models keep them."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(1, FEATURES, (1, FEATURES), bias=False)
        mixing = nn.Conv2d(FEATURES, FEATURES, (1, 3), padding=(0, 1))
        head = nn.Conv2d(FEATURES, FEATURES, 1)
        self.layers = nn.Sequential(convolution, nn.Tanh(), mixing, head).to(
            memory_format=torch.channels_last
        )

    def forward(self, mixture: Tensor) -> Tensor:
        """[B, FEATURES] to [B, FEATURES]."""
        return self.layers(mixture[:, None, None, :])[:, :, 0, 0]


@dataclass
class ToyTask:
    """Regression with dropout (`has_noise`), so that random states matter, or a generator and its judge."""

    is_adversarial: bool = False
    has_noise: bool = True
    is_channels_last: bool = False
    is_judge_last: bool = False
    """The generator's update comes first, so that batches can be taken in parts."""
    has_unused: bool = False
    """The generator has a parameter that no loss reaches."""
    most_rows: int = 0
    """Rows of the largest batch that a module was called with."""
    name: str = "toy"
    main_module: str = "generator"
    best_metric: str = "error"
    best_is_higher: bool = False
    shown: list[int] = field(default_factory=list)

    @property
    def takes_parts(self) -> bool:
        return self.is_judge_last or not self.is_adversarial

    def build(self) -> dict[str, nn.Module]:
        noise = [nn.Dropout(0.25)] if self.has_noise else []
        modules: dict[str, nn.Module] = {
            "generator": nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), *noise, nn.Linear(16, FEATURES))
        }
        if self.is_channels_last:
            modules["generator"] = ChannelsLast()
        if self.has_unused:
            modules["generator"].register_parameter("unused", nn.Parameter(torch.zeros(FEATURES)))
        if self.is_adversarial:
            modules["judge"] = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
        return modules

    def param_groups(self, name: str, module: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(module.parameters())}]

    def to(self, device: torch.device) -> None:
        pass

    def step(self, modules: Modules, batch: Batch, update: Update) -> dict[str, Tensor]:
        estimate = self._estimate(modules, batch)
        loss = (estimate - batch["target"]).square().mean()
        metrics = {"loss": loss.detach()}
        if self.is_adversarial and not self.is_judge_last:
            metrics["judge_loss"] = self._step_judge(modules, batch, estimate, update)
        if self.is_adversarial:
            with modules.frozen("judge") as judge:
                loss = loss - 0.1 * judge(estimate).mean()
        update("generator", loss)
        if self.is_adversarial and self.is_judge_last:
            metrics["judge_loss"] = self._step_judge(modules, batch, estimate, update)
        return metrics

    def _step_judge(self, modules: Modules, batch: Batch, estimate: Tensor, update: Update) -> Tensor:
        judged = modules["judge"](torch.cat([batch["target"], estimate.detach()]))
        loss = judged[len(estimate) :].mean() - judged[: len(estimate)].mean() + judged.square().mean()
        update("judge", loss)
        return loss.detach()

    def _estimate(self, modules: Modules, batch: Batch) -> Tensor:
        self.most_rows = max(self.most_rows, len(batch["mixture"]))
        return modules["generator"](batch["mixture"])

    def evaluate(self, modules: Modules, batch: Batch) -> list[dict[str, float]]:
        error = (self._estimate(modules, batch) - batch["target"]).square().mean(dim=1)
        return [{"error": value} for value in error.tolist()]

    def show(self, modules: Modules, batch: Batch, media: Media) -> None:
        modules["generator"](batch["mixture"])
        self.shown += batch["item"].tolist()


def example(draw: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mixture and target, each [FEATURES], of draw number `draw`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    mixture = torch.randn(FEATURES, generator=generator)
    return mixture, mixture.roll(1) * 0.5


@dataclass
class ToyStream:
    """Draws in order; `fault` is KIND:STEP:RANK with KIND nan (from that step on), once (a NaN in that step), tail (the
    same, in its last row), gap (its draws are passed over, on every rank), damage, term, kill, stop (that signal to
    itself), crash (an error that nobody expects), stall (no batch ever), hold (the same, with the interpreter held),
    mute (the same, and a request for its stacks kills it), full (no file of this rank may grow any more) or late
    (SIGTERM to itself in the first evaluation after that step)."""

    rank: int = 0
    world_size: int = 1
    batch_size: int = 8
    fault: str = ""
    step_seconds: float = 0.0
    fingerprint: str = "toy"
    steps: int = 0
    """Batches given, those of starts before included."""

    def from_draw(self, draw: int) -> Iterator[Batch]:
        kind, at, rank = self.fault.split(":") if self.fault else ("", "-1", "-1")
        step = draw // (self.world_size * self.batch_size)
        while True:
            step += kind == "gap" and step == int(at)
            first = step * self.world_size * self.batch_size + self.rank * self.batch_size
            draws = list(range(first, first + self.batch_size))
            pairs = [example(number, seed=1) for number in draws]
            batch = {
                "draw": torch.tensor(draws),
                "mixture": torch.stack([mixture for mixture, _ in pairs]),
                "target": torch.stack([target for _, target in pairs]),
            }
            time.sleep(self.step_seconds)
            if self.rank == int(rank):
                _break(kind, step, int(at), batch)
            step += 1
            self.steps = step
            yield batch

    def validation(self) -> Iterator[Batch]:
        share = self.world_size * self.batch_size
        kind, at, rank = self.fault.split(":") if self.fault else ("", "-1", "-1")
        for first in range(0, NUM_ITEMS, share):
            if kind == "late" and self.rank == int(rank) and self.steps > int(at):
                os.kill(os.getpid(), signal.SIGTERM)
            items = [first + self.rank * self.batch_size + row for row in range(self.batch_size)]
            pairs = [example(item, seed=2) for item in items]
            yield {
                "item": torch.tensor([item if item < NUM_ITEMS else -1 for item in items]),
                "mixture": torch.stack([mixture for mixture, _ in pairs]),
                "target": torch.stack([target for _, target in pairs]),
            }


def _break(kind: str, step: int, at: int, batch: Batch) -> None:
    if (kind == "nan" and step >= at) or (kind == "once" and step == at):
        batch["mixture"][0, 0] = float("nan")
    elif kind == "tail" and step == at:
        batch["mixture"][-1, 0] = float("nan")
    elif step != at:
        return
    elif kind == "damage":
        raise ValueError("shard-000003.tar is damaged at offset 512")
    elif kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    elif kind == "crash":
        raise KeyError("a mistake in the code")
    elif kind == "stall":
        time.sleep(1000)
    elif kind in ("hold", "mute"):
        if kind == "mute":
            faulthandler.unregister(signal.SIGQUIT)
        ctypes.PyDLL(None).sleep(1000)
    elif kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])


def toy_hparams(*values: str) -> HParams:
    """HParams of a toy run with `values` (key=value) on top."""
    return load("base", [*TOY_VALUES, *values])


def main(arguments: Sequence[str] | None = None) -> int:
    """A session of the toy task under whatever launcher there is; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--fault", default="")
    parser.add_argument("--backend")
    parser.add_argument("--init-from", type=Path)
    parser.add_argument("--adversarial", action="store_true")
    parser.add_argument("--judge-last", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--unused", action="store_true")
    parser.add_argument("--no-noise", action="store_true")
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args(arguments)

    def open_task(hp: HParams, place: Place) -> tuple[ToyTask, ToyStream]:
        stream = ToyStream(
            place.rank, place.world_size, place.batch_size, options.fault, options.step_seconds
        )
        task = ToyTask(options.adversarial, not options.no_noise, options.channels_last, options.judge_last)
        task.has_unused = options.unused
        return task, stream

    session = Options(options.run, backend=options.backend, init_from=options.init_from)
    return train(toy_hparams(*options.set), session, open_task)


if __name__ == "__main__":
    leave(main())
