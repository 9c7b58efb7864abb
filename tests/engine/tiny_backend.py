"""A backend of one tensor per rank, for tests of what stands around a backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from enhancer.engine import atomic, distributed
from enhancer.engine.state import State

RECORD = {
    "task": "tiny",
    "global_batch": 16,
    "fingerprint": "corpora-1",
    "hparams": {"seed": 0},
    "versions": {},
}


class TinyBackend:
    """`save` and `load` of `values`; `before_save` may raise."""

    name = "accelerate"

    def __init__(self, size: int = 100, before_save: Callable[[Path], None] | None = None) -> None:
        self.values = torch.zeros(size)
        self.before_save = before_save

    def save(self, folder: Path) -> None:
        if self.before_save:
            self.before_save(folder)
        data = safetensors.torch.save({"values": self.values})
        atomic.write_bytes(folder / f"tiny-{distributed.rank()}.safetensors", data)

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


def state_at(step: int) -> State:
    return State(step=step, draws=16 * step)
