"""Program of a test: a toy session that stands still at one moment, for long enough to be asked to stop there.

RUN.reached-rankN is made when rank N has come to it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from toy import ToyStream, ToyTask, toy_hparams

from enhancer.engine import checkpoint, watch
from enhancer.engine.ancestors import Ancestors
from enhancer.engine.launcher import detect
from enhancer.engine.session import Options, Place, train
from enhancer.engine.session_end import leave
from enhancer.engine.task import Batch, Modules, Update
from hparams.schema import HParams

FOREVER = 1000.0
BATCHES_BEFORE_HOLD = 3
# A stand-in for a compiler. It builds nothing, and goes on when whoever started it is gone.
COMPILER = """#!/bin/sh
case "$*" in *held.cpp*) touch {reached}; sleep 1000;; esac
echo 12.0.0
"""


class Held:
    """Where this process stands still, and the file that says that it does."""

    def __init__(self, moment: str, run: Path) -> None:
        self.moment = moment
        self.reached = run.with_name(f"{run.name}.reached-rank{os.environ.get('RANK', '0')}")

    def at(self, moment: str, seconds: float) -> None:
        """Stand still for `seconds` where that is the moment."""
        if moment == self.moment:
            self.reached.touch()
            time.sleep(seconds)


class HeldStream(ToyStream):
    """Its batches are waited for in turns, as those of loader workers are, and in the end do not come."""

    held: Held

    def from_draw(self, draw: int) -> Any:
        return HeldBatches(super().from_draw(draw), self.held)


class HeldBatches:
    def __init__(self, source: Iterator[Batch], held: Held) -> None:
        self._source, self._held, self._count = source, held, 0

    def next_batch(self, timeout_seconds: float) -> Batch | None:
        self._count += 1
        if self._held.moment == "data wait" and self._count > BATCHES_BEFORE_HOLD:
            self._held.at("data wait", timeout_seconds)
            return None
        return next(self._source)


class HeldTask(ToyTask):
    held: Held

    def step(self, modules: Modules, batch: Batch, update: Update) -> dict[str, Any]:
        if int(batch["draw"][0]) >= BATCHES_BEFORE_HOLD * 8:
            self.held.at("step", 1.0)
        return super().step(modules, batch, update)

    def evaluate(self, modules: Modules, batch: Batch) -> list[dict[str, float]]:
        self.held.at("evaluation", 2.0)
        return super().evaluate(modules, batch)


def build(run: Path, reached: Path) -> None:
    """Compile an extension as torch does: with a lock, by ninja, in processes below this one."""
    from torch.utils import cpp_extension

    folder = run / "build"
    folder.mkdir(exist_ok=True)
    compiler = folder / "compiler"
    if os.environ["RANK"] == "0":
        compiler.write_text(COMPILER.format(reached=reached))
        compiler.chmod(0o755)
        (folder / "held.cpp").write_text("")
    while not (folder / "held.cpp").exists():
        time.sleep(0.1)
    os.environ.update(CXX=str(compiler), TORCH_DONT_CHECK_COMPILER_ABI="1")
    cpp_extension.load("held", [str(folder / "held.cpp")], build_directory=str(folder))


def refuse(folder: Path, rank: int) -> None:
    """In place of a heartbeat's file."""
    raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder / f"rank{rank:05d}.json"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("moment")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    held = Held(options.moment, options.run)

    def open_task(hp: HParams, place: Place) -> tuple[ToyTask, ToyStream]:
        held.at("opening", FOREVER)
        if place.rank == 1:
            held.at("opening of one", FOREVER)
        if held.moment == "build":
            build(options.run, held.reached)
        task, stream = (
            HeldTask(),
            HeldStream(place.rank, place.world_size, place.batch_size, step_seconds=0.05),
        )
        task.held = stream.held = held
        return task, stream

    write = checkpoint._write

    def slow_write(folder: Path, files: Any) -> Any:
        held.at("saving", 3.0)
        if os.environ.get("RANK") == "1":
            held.at("cut off while saving", FOREVER)
        return write(folder, files)

    checkpoint._write = slow_write
    if held.moment == "cut off while saving" and os.environ.get("RANK") == "1":
        checkpoint.Checkpoints.finish_together = lambda self: time.sleep(FOREVER)
    if held.moment == "no watch of one" and os.environ.get("RANK") == "1":
        watch.BeatFile = refuse
    ancestors = Ancestors.of(detect())
    held.at("start", 2.0)
    return train(toy_hparams(*options.set), Options(options.run, ancestors=ancestors), open_task)


if __name__ == "__main__":
    leave(main())
