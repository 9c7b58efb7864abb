"""Training time lost to a checkpoint of 200 M parameters (fp32, with both moments of Adam: 2.4 GB) every 100 steps.

    python -m bench.bench_checkpoint [--million 200] [--rows 256] [--rounds 3]

A stack of linear layers is trained by the trainer's backend. A round is a checkpoint with as many steps as its write
takes, and as many steps without one; which comes first turns from round to round, so that a busy machine hurts both
alike. The loss is the difference, counted against 100 steps: in seconds, and in processor time of the process, which
says the same of a machine that others use too. Told apart from it: how long training stood still (the copy to host
memory), and the processor time of the writer, which on a machine with no core to spare is what training loses beside
that. --rows, the examples of a batch, set the length of a step; 256 are a light one: an enhancer of this size has some
thousand frames in a batch.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from bench.common import OUT, describe_machine
from enhancer.engine import accelerate_backend
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.memory import keep_freed_memory
from enhancer.engine.retention import Retention
from enhancer.engine.state import State
from hparams.load import load

WIDTH = 4096
EVERY = 100
LIMIT = 0.02


class Trainer:
    """A model of about `million` M parameters whose steps take `rows` examples, and its checkpoints in `folder`."""

    def __init__(self, million: float, rows: int, folder: Path, *, is_async: bool) -> None:
        hp = load("base_small", [])
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(max(1, round(million * 1e6 / WIDTH**2)))]
        model = nn.Sequential(*(module for layer in layers for module in (layer, nn.Tanh())))
        groups: dict[str, Any] = {"model": [{"params": list(model.parameters())}]}
        self._backend = accelerate_backend.AccelerateBackend(
            accelerate_backend.start(hp), {"model": model}, groups, hp
        )
        self._batch = torch.randn(rows, WIDTH, device=self._backend.device)
        self.checkpoints = Checkpoints(folder, Retention(1), {"global_batch": rows}, is_async=is_async)
        self.num_parameters = sum(weight.numel() for weight in model.parameters())
        self._step = 0

    def with_checkpoint(self) -> tuple[int, float, float]:
        """Steps, seconds and processor seconds from a save until it is published; one step at least."""
        start, process = time.perf_counter(), time.process_time()
        self.checkpoints.save(State(step=self._step), self._backend)
        num_steps = 0
        while not num_steps or not self.checkpoints.saved:
            self._train()
            num_steps += 1
        self.checkpoints.finish()
        return num_steps, time.perf_counter() - start, time.process_time() - process

    def without(self, num_steps: int) -> tuple[float, float]:
        """Seconds and processor seconds of `num_steps`."""
        start, process = time.perf_counter(), time.process_time()
        for _ in range(num_steps):
            self._train()
        return time.perf_counter() - start, time.process_time() - process

    def _train(self) -> None:
        loss = self._backend.modules["model"](self._batch).square().mean()
        self._backend.backward("model", loss)
        self._backend.step("model", loss)
        self._step += 1


def writer_seconds() -> float:
    """Processor time of the writer's thread so far."""
    ids = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("checkpoint")}
    times = [thread for thread in psutil.Process().threads() if thread.id in ids]
    return sum(thread.user_time + thread.system_time for thread in times)


def main() -> int:
    """Print what a checkpoint costs; exit code 1 when that is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--million", type=float, default=200)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waiting", action="store_true", help="training waits for the write, as without it")
    options = parser.parse_args()
    describe_machine()
    keep_freed_memory()
    folder = OUT / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    trainer = Trainer(options.million, options.rows, folder, is_async=not options.waiting)
    trainer.with_checkpoint()  # The first snapshot also gets its memory.
    first = trainer.checkpoints.saved.popleft()
    num_steps, writer = 2, writer_seconds()
    saved, seconds, processor, losses, processor_losses = [], [], [], [], []
    for number in range(options.rounds):
        plain = trainer.without(num_steps) if number % 2 else None
        count, *taken = trainer.with_checkpoint()
        saved.append(trainer.checkpoints.saved.popleft())
        num_steps, base = (num_steps, plain) if plain else (count, trainer.without(count))
        seconds.append(base[0] / num_steps)
        processor.append(base[1] / num_steps)
        losses.append(taken[0] - count * seconds[-1])
        processor_losses.append(taken[1] - count * processor[-1])
        print(
            f"round {number + 1}: {count} steps of {taken[0] / count:.2f} s with a checkpoint, "
            f"of {seconds[-1]:.2f} s without",
            flush=True,
        )
    blocked, written = (
        statistics.median(getattr(each, name) for each in saved)
        for name in ("blocked_seconds", "write_seconds")
    )
    size = sum(path.stat().st_size for path in saved[-1].folder.iterdir())
    step, step_processor = statistics.median(seconds), statistics.median(processor)
    loss, processor_loss = statistics.median(losses), statistics.median(processor_losses)
    share, processor_share = loss / (EVERY * step), processor_loss / (EVERY * step_processor)
    print(
        f"{trainer.num_parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB a checkpoint; "
        f"a step takes {step:.2f} s, {step_processor:.2f} s of processors"
    )
    print(
        f"training stands still   {blocked:8.2f} s, {blocked / (EVERY * step):.2%} of {EVERY} steps; "
        f"{first.blocked_seconds:.2f} s the first time"
    )
    print(
        f"the write takes         {written:8.2f} s, {(writer_seconds() - writer) / len(saved):.2f} s of processors"
    )
    print(f"lost, all told          {loss:8.2f} s, {share:.2%} of {EVERY} steps ({LIMIT:.0%} wanted)")
    print(f"the same in processors  {processor_loss:8.2f} s, {processor_share:.2%} of {EVERY} steps")
    shutil.rmtree(folder)
    return 0 if share < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
