"""Keeps the ranks together at a bad step: a loss that is not finite, a stop request, a batch that never came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from enhancer.engine import distributed
from enhancer.engine.task import Batch
from enhancer.engine.weights import write_weights


class StepAborted(Exception):
    """A rank has no batch, so no rank takes this step. Raised through the task's `step` on every rank alike."""


@dataclass(frozen=True)
class Flags:
    """What one rank has to say before a step; joined over the ranks, what holds for any of them."""

    is_bad_loss: bool = False
    is_stopping: bool = False
    is_missing: bool = False
    """This rank has no batch: its data failed, or it was told to stop while waiting for it."""

    def agreed(self) -> Flags:
        """The flags joined over all ranks by one all-reduce."""
        joined = distributed.all_max([self.is_bad_loss, self.is_stopping, self.is_missing])
        return Flags(*(bool(flag) for flag in joined))


def save_replay(folder: Path, step: int, batch: Batch) -> Path:
    """Write this rank's `batch`, its draw numbers among it, to `folder` so that a diverged step can be replayed.

    The file is `diverged-STEP-rankR.safetensors`: tensors only. Raises OSError where it cannot be written.
    """
    path = folder / f"diverged-{step:07d}-rank{distributed.rank()}.safetensors"
    write_weights(path, batch)
    return path
