"""What memory a step will take on each GPU, before there is one: from the sizes of weights, and from a trial step.

Weights, masters, gradients and states of optimisers follow from sizes, ZeRO stage and number of ranks. What a forward
pass keeps for the backward pass is counted in a real one, of a few rows on the CPU, and is a straight line in the rows.
What kernels take while they run, the allocator's gaps and CUDA itself come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from enhancer.engine.deepspeed_backend import BUCKET_ELEMENTS, forward_in_bf16
from enhancer.engine.optimizers import make_optimizer, optimizer_groups
from enhancer.engine.parts import num_parts_of
from enhancer.engine.task import Foreseeable, Task
from enhancer.engine.update import StepModules
from hparams.errors import UserError
from hparams.schema import HParams

TRIAL_ROWS = (2, 3)
FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class ModuleBytes:
    """What is held of one module on one rank."""

    weights: int
    """And buffers."""
    masters: int
    """Float32 weights that the optimiser steps, where they are others than those of the forward pass."""
    states: int
    """Of the optimiser."""
    average: int
    """Of `ema_decay`."""
    copies: int
    """Of gradients, in which DistributedDataParallel sends them."""
    gradients: int
    """While it is updated."""
    buffers: int
    """For sending gradients in a step, and for what the optimiser takes in float32 of gradients in bf16."""

    @property
    def steady(self) -> int:
        """Held all the time."""
        return self.weights + self.masters + self.states + self.average + self.copies


@dataclass(frozen=True)
class Forecast:
    """Bytes of one rank."""

    modules: Mapping[str, ModuleBytes]
    activations: Mapping[str, int]
    """What is kept for the backward pass of each module's update, by its name."""
    rows: int
    """Examples that go through the modules at once."""
    num_parts: int = 1
    """Of a batch; with more than one the gradients of all modules wait for the last."""
    frozen: int = 0
    """Trained modules that the task works with, on every rank whole."""

    def update(self, name: str) -> int:
        """What comes on top while module `name` is updated."""
        own = self.modules[name]
        waiting = sum(
            other.gradients for other in self.modules.values() if self.num_parts > 1 and other is not own
        )
        return self.activations.get(name, 0) + own.gradients + own.buffers + waiting

    @property
    def total(self) -> int:
        """All that is held, and the largest update."""
        held = sum(module.steady for module in self.modules.values())
        return held + self.frozen + max(self.update(name) for name in self.modules)


def forecast(
    hp: HParams, task: Task, backend: str, world_size: int, frozen: Iterable[nn.Module] = ()
) -> Forecast:
    """What a rank of `backend` (`accelerate` or `deepspeed`) among `world_size` will hold in steps of `task`.

    `frozen`: modules that the task works with and does not train.

    `task` is made for this and not used afterwards. Raises UserError for ZeRO 3, whose gathered layers come and go.
    """
    if hp.zero_stage == 3:
        raise UserError(
            "memory at zero_stage 3 cannot be told beforehand: which layers are whole at a time is DeepSpeed's choice; "
            "set zero_stage to 2 or less for an upper bound"
        )
    if backend == "accelerate" and hp.zero_stage:
        raise UserError(f"zero_stage is {hp.zero_stage}, which only DeepSpeed has; use --backend deepspeed")
    if not isinstance(task, Foreseeable):
        raise UserError(f"task {task.name} has no trial batch, so its memory cannot be told beforehand")
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    held = {
        name: module_bytes(hp, module, groups[name], backend, world_size, is_main=name == task.main_module)
        for name, module in modules.items()
    }
    num_rows = hp.batch_size_per_gpu * hp.gradient_accumulation_steps
    num_parts = num_parts_of(task, hp, num_rows)
    rows = num_rows // num_parts
    if hp.precision == "bf16":
        prepare_bf16(modules, is_rounded=backend == "deepspeed")
    constants = [tensor for module in frozen for tensor in (*module.parameters(), *module.buffers())]
    return Forecast(held, activation_bytes(task, modules, rows), rows, num_parts, _bytes_in(constants))


def module_bytes(
    hp: HParams,
    module: nn.Module,
    groups: Iterable[Mapping[str, Any]],
    backend: str,
    world_size: int,
    *,
    is_main: bool,
) -> ModuleBytes:
    """What is held of `module`, whose optimiser has the parameter `groups` of the task."""
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    whole = sum(weight.numel() for weight in module.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    is_zero = hp.zero_stage > 0
    is_rounded = hp.precision == "bf16" and backend == "deepspeed"
    width = BFLOAT16 if is_rounded else FLOAT32
    share = -(-trained // world_size) if is_zero else trained
    is_parallel = backend == "accelerate" and world_size > 1
    sending = 0
    if is_zero or (world_size > 1 and not is_parallel):
        sending = width * min(trained, BUCKET_ELEMENTS)
    return ModuleBytes(
        weights=width * whole + buffers,
        masters=FLOAT32 * share if is_zero or is_rounded else 0,
        states=optimizer_bytes(hp, groups) // (world_size if is_zero else 1),
        average=FLOAT32 * whole if hp.ema_decay and is_main else 0,
        copies=FLOAT32 * trained if is_parallel else 0,
        gradients=width * share,
        buffers=max(sending, FLOAT32 * share if is_rounded else 0),
    )


def optimizer_bytes(hp: HParams, groups: Iterable[Mapping[str, Any]]) -> int:
    """Bytes of the states of the run's optimiser over `groups` of a task, from a step on tensors without memory."""
    own = [
        {**group, "params": [_imaginary(weight) for weight in group["params"] if weight.requires_grad]}
        for group in optimizer_groups(hp, groups)
    ]
    optimizer = make_optimizer(hp, own)
    optimizer.step()
    return _bytes_in(list(optimizer.state.values()))


def _imaginary(weight: Tensor) -> nn.Parameter:
    imagined = nn.Parameter(torch.empty_like(weight, device="meta", dtype=torch.float32))
    imagined.grad = torch.zeros_like(imagined)
    return imagined


def _bytes_in(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return _bytes_in(list(value.values()))
    return sum(_bytes_in(each) for each in value) if isinstance(value, (list, tuple)) else 0


def prepare_bf16(modules: Mapping[str, nn.Module], *, is_rounded: bool) -> None:
    """Let `modules` run as they do in bf16 on the CPU: under autocast, with rounded weights where DeepSpeed rounds."""
    for module in modules.values():
        if is_rounded:
            for weight in module.parameters():
                weight.data = weight.data.to(torch.bfloat16)
        module.forward = partial(forward_in_bf16, module.forward, "cpu")


def activation_bytes(task: Foreseeable, modules: Mapping[str, nn.Module], rows: int) -> dict[str, int]:
    """Bytes that a step of `rows` rows keeps for the backward pass of each module, by its name."""
    fewer, more = TRIAL_ROWS
    if rows <= more:
        return _trial(task, modules, rows)
    low, high = (_trial(task, modules, each) for each in TRIAL_ROWS)
    return {name: low[name] + (rows - fewer) * (high[name] - low[name]) // (more - fewer) for name in low}


def _trial(task: Any, modules: Mapping[str, nn.Module], rows: int) -> dict[str, int]:
    tally = Tally(modules)
    with tally.counting():
        task.step(StepModules(modules, modules), task.trial_batch(rows), tally)
    return tally.largest


class Tally:
    """Stands for the `update` of a step: counts what is kept for the backward pass, which is never made."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.largest: dict[str, int] = {}
        """Of each module, the bytes of its largest update."""
        self._kept: WeakSet[_Kept] = WeakSet()
        self._weights = {
            tensor.untyped_storage().data_ptr()
            for module in modules.values()
            for tensor in (*module.parameters(), *module.buffers())
        }

    def counting(self) -> AbstractContextManager[Any]:
        """Counts what is saved inside. The weights are there anyway."""
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def _keep(self, tensor: Tensor) -> _Kept:
        # Not the tensor itself, which would hold what made it, and that it.
        kept = _Kept(tensor.detach())
        self._kept.add(kept)
        return kept

    def __call__(self, name: str, loss: Tensor) -> None:
        """The update of module `name`, after which nothing of its forward pass is left."""
        storages = [kept.tensor.untyped_storage() for kept in self._kept]
        sizes = {each.data_ptr(): each.nbytes() for each in storages if each.data_ptr() not in self._weights}
        self.largest[name] = max(self.largest.get(name, 0), sum(sizes.values()))
        self._kept = WeakSet()

    def mean(self, values: Tensor) -> Tensor:
        """See `enhancer.engine.task.Update`."""
        return values

    def mean_of_batch(self, name: str, values: Tensor) -> Tensor | None:
        """See `enhancer.engine.task.Update`."""
        return values


class _Kept:
    """What a graph holds in the place of a tensor, as long as there is one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
