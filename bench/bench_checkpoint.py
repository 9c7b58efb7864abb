"""Training time lost to a checkpoint of 200 M parameters (fp32, with both moments of Adam: 2.4 GB) every 100 steps.

    python -m bench.bench_checkpoint [--million 200] [--rows 256] [--steps 30] [--rounds 3]

A stack of linear layers is trained by the trainer's backend in rounds of two blocks of --steps: one that begins with a
checkpoint and ends when it is published, one without; the order turns from round to round, so that a busy machine
hurts both alike. The loss is the difference of their times, counted against 100 steps. Told apart from it: how long
training stood still (the copy to host memory), and the processor time of the writer, which on a machine with no core
to spare is the most that training can lose. --rows, the examples of a batch, set the length of a step. 256 are a light
one: an enhancer of this size has some thousand frames in a batch.
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
WARM_STEPS = 3


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

    def block(self, num_steps: int, *, is_saving: bool) -> float:
        """Seconds of `num_steps`, after a save and with the end of its write where there is one."""
        started = time.perf_counter()
        if is_saving:
            self.checkpoints.save(State(step=self._step), self._backend)
        for _ in range(num_steps):
            loss = self._backend.modules["model"](self._batch).square().mean()
            self._backend.backward("model", loss)
            self._backend.step("model", loss)
            self._step += 1
        if is_saving:
            self.checkpoints.finish()
        return time.perf_counter() - started


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
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waiting", action="store_true", help="training waits for the write, as without it")
    options = parser.parse_args()
    describe_machine()
    keep_freed_memory()
    folder = OUT / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    trainer = Trainer(options.million, options.rows, folder, is_async=not options.waiting)
    trainer.block(WARM_STEPS, is_saving=True)  # The first snapshot also gets its memory.
    first = trainer.checkpoints.saved.popleft()
    before = writer_seconds()
    lost, plain = [], []
    for number in range(options.rounds):
        seconds = {
            is_saving: trainer.block(options.steps, is_saving=is_saving)
            for is_saving in ((True, False) if number % 2 else (False, True))
        }
        lost.append(seconds[True] - seconds[False])
        plain.append(seconds[False] / options.steps)
        print(
            f"round {number + 1}: {seconds[False]:.1f} s without, {seconds[True]:.1f} s with a checkpoint",
            flush=True,
        )
    saved = list(trainer.checkpoints.saved)
    step, loss = statistics.median(plain), statistics.median(lost)
    share = loss / (EVERY * step)
    size = sum(path.stat().st_size for path in saved[-1].folder.iterdir())
    blocked = statistics.median(each.blocked_seconds for each in saved)
    print(
        f"{trainer.num_parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB a checkpoint, {step:.2f} s a step"
    )
    print(f"training stands still   {blocked:8.2f} s ({first.blocked_seconds:.2f} s the first time)")
    print(f"written beside it in    {statistics.median(each.write_seconds for each in saved):8.2f} s")
    print(f"processor time of it    {(writer_seconds() - before) / len(saved):8.2f} s")
    print(f"lost, all told          {loss:8.2f} s, {share:.2%} of {EVERY} steps ({LIMIT:.0%} wanted)")
    shutil.rmtree(folder)
    return 0 if share < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
