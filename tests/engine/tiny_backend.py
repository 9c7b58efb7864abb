"""A backend of one tensor per rank, for tests of what stands around a backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from enhancer.engine import distributed
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.retention import Retention
from enhancer.engine.snapshot import Files, HostMemory
from enhancer.engine.state import State

RECORD = {
    "task": "tiny",
    "global_batch": 16,
    "fingerprint": "corpora-1",
    "hparams": {"seed": 0},
    "versions": {},
}


class TinyBackend:
    """`capture` and `load` of `values`; `before_write` may raise when this rank's file is written."""

    name = "accelerate"
    device = torch.device("cpu")

    def __init__(self, size: int = 100, before_write: Callable[[], None] | None = None) -> None:
        self.values = torch.zeros(size)
        self.before_write = before_write

    def capture(self, memory: HostMemory) -> Files:
        values = memory.weights({"values": self.values})
        return {f"tiny-{distributed.rank()}.safetensors": Watched(values, self.before_write)}

    def load(self, folder: Path) -> None:
        file = folder / f"tiny-{distributed.rank()}.safetensors"
        self.values = safetensors.torch.load_file(file)["values"]

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "zero_stage": 0,
            "precision": "fp32",
            "world_size": distributed.world_size(),
        }


class Watched(dict[str, torch.Tensor]):
    """Tensors of a file that calls `before_write` when they are looked at for writing."""

    def __init__(self, values: dict[str, torch.Tensor], before_write: Callable[[], None] | None) -> None:
        super().__init__(values)
        self._before_write = before_write

    def items(self) -> Any:
        if self._before_write:
            self._before_write()
        return super().items()


def checkpoints_in(folder: Path, keep: int = 9, every: int = 0, **options: Any) -> Checkpoints:
    """Checkpoints of the run in `folder` with the facts of `RECORD`."""
    return Checkpoints(folder, Retention(keep, every), RECORD, **options)


def state_at(step: int) -> State:
    return State(step=step, draws=16 * step)
