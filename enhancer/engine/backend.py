"""What the loop asks of a training backend. DeepSpeed and Accelerate stand behind the same few methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from enhancer.engine.snapshot import Files, HostMemory

ParamGroups = Mapping[str, Sequence[Mapping[str, Any]]]
"""Optimiser parameter groups of every module by name, as `Task.param_groups` gives them."""
WEIGHTS = "{name}.safetensors"
"""File of a checkpoint with the whole weights of module `name`, as `module.state_dict()` names them; where
training rounds them to bf16, the float32 ones that it rounds."""
STATE = "{name}.rank{rank}.state"
"""File of a checkpoint with the optimiser of module `name` as rank `rank` holds it: see `weights.write_state`."""


class Backend(Protocol):
    """Modules, their optimisers and learning rates on this rank's device.

    Every method is called by all ranks in the same order; any of them may communicate.
    """

    name: str
    """`accelerate` or `deepspeed`."""
    device: torch.device
    is_sharded: bool
    """Parameters are split over the ranks (ZeRO 3), so a forward pass needs all of them."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Modules by name as a training step calls them: wrapped, gradients are averaged over the ranks."""

    @property
    def raw_modules(self) -> Mapping[str, nn.Module]:
        """The modules themselves, in the same precision, for evaluation and for a step through a frozen module."""

    def accumulating(self) -> AbstractContextManager[None]:
        """Forward and backward passes of a part of a batch that is not the last: its gradients wait for those to come.

        Ranks need not exchange them before the last part, whose passes are outside.
        """

    def backward(self, name: str, loss: Tensor) -> None:
        """Gradients of the scalar `loss` into module `name`, added to those that wait; averaged over the ranks."""

    def drop(self, name: str) -> None:
        """Forget the gradients of module `name` that wait."""

    def step(self, name: str, loss: Tensor) -> float:
        """Clip, one optimiser step, the next learning rate; returns the global L2 norm of the gradients of
        `name` before clipping. Where that norm or `loss` is not finite there is no step, the learning rate stays
        and the result is not finite. Either way the gradients are gone. The same on every rank.
        """

    def learning_rate(self, name: str) -> float:
        """Rate of the next step of `name` (its first parameter group)."""

    def set_max_lr(self, rate: float) -> None:
        """Make `rate` the one after the warm-up, for all modules and from the next step on."""

    def capture(self, memory: HostMemory) -> Files:
        """Copies in `memory` of what this rank writes into a checkpoint: weights of every module as
        `NAME.safetensors` (rank 0), optimisers and schedules, per rank where they are split.
        """

    def load(self, folder: Path) -> None:
        """Restore what was made of `capture`, exactly. No code is executed from the files.

        Raises UserError when the files are of another backend, ZeRO stage or world size than this one can read.
        """

    def describe(self) -> dict[str, Any]:
        """Facts for a checkpoint's record: `backend`, `zero_stage`, `precision`, `world_size`."""
