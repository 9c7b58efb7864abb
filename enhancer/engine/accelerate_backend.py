"""Training without a launcher, or under torchrun and `accelerate launch`: Accelerate places and wraps the modules.

CPU (gloo), one GPU, MPS, or data-parallel GPUs. Accelerate does placement, DistributedDataParallel and autocast; the
optimiser, its learning rate and clipping are ours, and the numbers are those of DeepSpeed's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.engine import distributed
from enhancer.engine.backend import STATE, WEIGHTS, ParamGroups
from enhancer.engine.clipping import clip_by_norm, gradient_norm
from enhancer.engine.optimizers import make_optimizer, optimizer_groups, rate_shares
from enhancer.engine.schedule import learning_rate
from enhancer.engine.snapshot import Files, HostMemory
from enhancer.engine.weights import read_state, read_weights_file
from hparams.errors import UserError
from hparams.schema import HParams


def start(hp: HParams) -> Any:
    """Join the process group that the environment names, if any, and choose the device: an Accelerator."""
    import os

    from accelerate import Accelerator, InitProcessGroupKwargs

    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError(
            "accelerate is configured to use DeepSpeed, which would replace this backend. Start with "
            "`deepspeed launch/train.py`, or use an accelerate configuration without DeepSpeed."
        )
    return Accelerator(
        mixed_precision="bf16" if hp.precision == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=distributed.COLLECTIVE_TIMEOUT)],
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
    )


class AccelerateBackend:
    """Backend on an `accelerator` of `start`: one optimiser a module, parameter groups of the task."""

    name = "accelerate"
    is_sharded = False

    def __init__(
        self, accelerator: Any, modules: Mapping[str, nn.Module], groups: ParamGroups, hp: HParams
    ) -> None:
        if hp.zero_stage:
            raise UserError(
                f"zero_stage is {hp.zero_stage}, which only DeepSpeed has. Start with `deepspeed launch/train.py`, "
                "or set zero_stage=0."
            )
        self.device: torch.device = accelerator.device
        self._hp = hp
        self._accelerator = accelerator
        self.raw_modules = dict(modules)
        self.modules: dict[str, nn.Module] = {
            name: accelerator.prepare_model(module) for name, module in modules.items()
        }
        self._optimizers = {name: make_optimizer(hp, optimizer_groups(hp, groups[name])) for name in modules}
        self._steps = dict.fromkeys(modules, 0)
        self.set_max_lr(hp.max_lr)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """See Backend."""
        with ExitStack() as stack:
            for module in self.modules.values():
                stack.enter_context(self._accelerator.no_sync(module))
            yield

    def backward(self, name: str, loss: Tensor) -> None:
        """See Backend."""
        self._accelerator.backward(loss)

    def drop(self, name: str) -> None:
        """See Backend."""
        self._optimizers[name].zero_grad(set_to_none=True)
        reducer = getattr(self.modules[name], "reducer", None)
        if reducer is not None:
            # After a forward pass without its backward pass it would exchange the next step's gradients already with
            # their first part, and round in another order. Not after a step: it would no longer find parameters that
            # the loss does not reach, whose ranks drift apart, nor arrange its buckets by the order of gradients.
            reducer._reset_state()

    def step(self, name: str, loss: Tensor) -> float:
        """See Backend."""
        parameters = list(self.raw_modules[name].parameters())
        # The sum is finite only where both are, so the host waits for the device once.
        norm = gradient_norm(parameters)
        value = float(norm + 0 * loss.detach().float())
        if math.isfinite(value):
            clip_by_norm(parameters, norm, self._hp.gradient_clipping)
            self._optimizers[name].step()
            self._steps[name] += 1
            self._set_learning_rate(name)
        self._optimizers[name].zero_grad(set_to_none=True)
        return value

    def learning_rate(self, name: str) -> float:
        """See Backend."""
        return self._optimizers[name].param_groups[0]["lr"]

    def set_max_lr(self, rate: float) -> None:
        """See Backend."""
        self._max_lr = rate
        for name in self._steps:
            self._set_learning_rate(name)

    def capture(self, memory: HostMemory) -> Files:
        """See Backend. All ranks hold the same state, so rank 0 writes it."""
        files: Files = {}
        for name, module in self.raw_modules.items() if distributed.is_main() else ():
            files[WEIGHTS.format(name=name)] = memory.weights(module.state_dict())
            state = {"optimizer": self._optimizers[name].state_dict(), "steps": self._steps[name]}
            files[STATE.format(name=name, rank=0)] = memory.state(state)
        return files

    def load(self, folder: Path) -> None:
        """See Backend."""
        for name, module in self.raw_modules.items():
            module.load_state_dict(read_weights_file(folder / WEIGHTS.format(name=name)))
            state = read_state(folder / STATE.format(name=name, rank=0))
            self._optimizers[name].load_state_dict(state["optimizer"])
            self._steps[name] = state["steps"]

    def describe(self) -> dict[str, Any]:
        """See Backend."""
        return {
            "backend": self.name,
            "zero_stage": 0,
            "precision": self._hp.precision,
            "world_size": distributed.world_size(),
        }

    def _set_learning_rate(self, name: str) -> None:
        hp = self._hp
        rate = learning_rate(
            self._steps[name],
            min_lr=hp.min_lr,
            max_lr=self._max_lr,
            warmup_steps=hp.warmup_steps,
            max_steps=None if hp.lr_plateau_patience else hp.max_steps,
        )
        groups = self._optimizers[name].param_groups
        for group, share in zip(groups, rate_shares(hp, groups), strict=True):
            group["lr"] = share * rate
