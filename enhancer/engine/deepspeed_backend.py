"""Training under the `deepspeed` launcher: one DeepSpeed engine a module, ZeRO 0 to 3, fp32 or bf16.

What is asked of DeepSpeed is `hp.deepspeed_config`; this file adds what the machine asks for. Checkpoints are our own
files: DeepSpeed's loader would execute code from them, and its `latest` may name one that is not whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.engine import distributed
from enhancer.engine.backend import STATE, WEIGHTS, ParamGroups
from enhancer.engine.clipping import clip_by_norm, gradient_norm
from enhancer.engine.deepspeed_machine import can_use_fused_adam
from enhancer.engine.deepspeed_masters import Masters
from enhancer.engine.deepspeed_partitions import parted_again
from enhancer.engine.optimizers import make_optimizer, optimizer_groups, rate_shares
from enhancer.engine.snapshot import Files, HostMemory
from enhancer.engine.weights import read_state, read_weights_file
from hparams.errors import UserError
from hparams.schema import HParams

NEVER = 1 << 60
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed sends gradients in buckets of so many numbers at most, and ZeRO sets one aside whole."""


class DeepSpeedBackend:
    """Backend on `deepspeed_machine.start`'s process group.

    `batch_size` is the batch of one rank, or one of the `num_parts` that it is taken in.
    """

    name = "deepspeed"

    def __init__(
        self,
        device: torch.device,
        modules: Mapping[str, nn.Module],
        groups: ParamGroups,
        hp: HParams,
        batch_size: int,
        num_parts: int = 1,
    ) -> None:
        import deepspeed

        self.device = device
        self.is_sharded = hp.zero_stage == 3
        self._hp = hp
        # DeepSpeed has no gradient norm and no overflow check here, so both and the clipping are ours.
        self._is_plain = hp.zero_stage == 0 and hp.precision == "fp32"
        self._refused: set[str] = set()
        self._engines: dict[str, Any] = {}
        for name, module in modules.items():
            _make_contiguous(module)
            buffers = {key: buffer.clone() for key, buffer in module.named_buffers()}
            weights = _unrounded_weights(module) if hp.precision == "bf16" else {}
            own_groups = optimizer_groups(hp, groups[name])
            self._engines[name], *_ = deepspeed.initialize(
                model=module,
                optimizer=None if hp.optimizer == "adamw" else partial(make_optimizer, hp),
                model_parameters=own_groups,
                config=self._config(module, batch_size, num_parts, rate_shares(hp, own_groups)),
                dist_init_required=False,
            )
            if hp.precision == "bf16":
                keep_buffers(module, buffers)
                self._masters(name).set(weights)
                module.forward = partial(forward_in_bf16, module.forward, device.type)
        self.modules: dict[str, nn.Module] = dict(self._engines)
        self.raw_modules = dict(modules)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """See Backend. ZeRO 2 and 3 hold parts of gradients, so they exchange them all the same."""
        self._set_boundary(False)
        try:
            yield
        finally:
            self._set_boundary(True)

    def backward(self, name: str, loss: Tensor) -> None:
        """See Backend."""
        if not self._is_plain and distributed.world_size() == 1 and not bool(torch.isfinite(loss.detach())):
            self._refused.add(name)  # ZeRO may find finite gradients under a loss that is not.
            return
        # `loss` is divided by the number of parts already.
        self._engines[name].backward(loss, scale_wrt_gas=False)

    def drop(self, name: str) -> None:
        """See Backend."""
        engine = self._engines[name]
        engine.zero_grad()
        if self._hp.zero_stage:
            engine.optimizer.zero_grad()
        if self._hp.zero_stage in (1, 2):
            for waiting in (engine.optimizer.averaged_gradients, engine.optimizer.all_grad_tensors):
                waiting.clear()

    def step(self, name: str, loss: Tensor) -> float:
        """See Backend."""
        if name in self._refused:
            self._refused.remove(name)
            self.drop(name)
            return math.nan
        engine = self._engines[name]
        if not self._is_plain:
            engine.step()
            return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan
        parameters = list(self.raw_modules[name].parameters())
        norm = gradient_norm(parameters)
        value = float(norm + 0 * loss.detach())
        if math.isfinite(value):
            clip_by_norm(parameters, norm, self._hp.gradient_clipping)
            engine.step()
        else:
            engine.zero_grad()
        return value

    def learning_rate(self, name: str) -> float:
        """See Backend."""
        return self._engines[name].optimizer.param_groups[0]["lr"]

    def set_max_lr(self, rate: float) -> None:
        """See Backend."""
        for engine in self._engines.values():
            schedule = engine.lr_scheduler
            shares = rate_shares(self._hp, engine.optimizer.param_groups)
            schedule.max_lrs = [share * rate for share in shares]
            schedule.delta_lrs = [
                high - low for high, low in zip(schedule.max_lrs, schedule.min_lrs, strict=True)
            ]
            if schedule.last_batch_iteration >= 0:  # Before the first step the rate is min_lr whatever comes.
                schedule.step(schedule.last_batch_iteration)

    def capture(self, memory: HostMemory) -> Files:
        """See Backend. Below ZeRO 1 all ranks hold the same state, so rank 0 writes it."""
        files: Files = {}
        for name, engine in self._engines.items():
            weights = self._whole_weights(name, memory)
            if distributed.is_main():
                files[WEIGHTS.format(name=name)] = weights
            if distributed.is_main() or self._hp.zero_stage:
                state = {
                    "optimizer": engine.optimizer.state_dict(),
                    "scheduler": engine.lr_scheduler.state_dict(),
                }
                files[STATE.format(name=name, rank=distributed.rank())] = memory.state(state)
        return files

    def load(self, folder: Path) -> None:
        """See Backend."""
        for name, engine in self._engines.items():
            state = self._read_state(folder, name)
            self._load_weights(name, read_weights_file(folder / WEIGHTS.format(name=name)))
            # What holds code objects was left out on saving; the fresh engine's own are the same.
            optimizer = {**engine.optimizer.state_dict(), **state["optimizer"]}
            if self._hp.zero_stage:
                engine.optimizer.load_state_dict(
                    [optimizer] * distributed.world_size(),
                    load_optimizer_states=True,
                    load_from_fp32_weights=True,
                )
            else:
                engine.optimizer.load_state_dict(optimizer)
            engine.lr_scheduler.load_state_dict(state["scheduler"])

    def _read_state(self, folder: Path, name: str) -> dict[str, Any]:
        """Optimiser and schedule of module `name` for this rank, also where another number of ranks has saved them."""
        if not self._hp.zero_stage:
            return read_state(folder / STATE.format(name=name, rank=0))
        num_saved = len(list(folder.glob(STATE.format(name=name, rank="*"))))
        paths = [folder / STATE.format(name=name, rank=rank) for rank in range(num_saved)]
        if num_saved == distributed.world_size():
            return read_state(paths[distributed.rank()])
        if self.is_sharded or not num_saved:
            raise UserError(
                f"{folder} has optimiser states of {name} of {num_saved} ranks: it was saved at another world size or "
                "ZeRO stage"
            )
        own = self._engines[name].optimizer.state_dict()
        optimizer = parted_again((read_state(path)["optimizer"] for path in paths), own, distributed.rank())
        return {**read_state(paths[0]), "optimizer": optimizer}

    def describe(self) -> dict[str, Any]:
        """See Backend."""
        return {
            "backend": self.name,
            "zero_stage": self._hp.zero_stage,
            "precision": self._hp.precision,
            "world_size": distributed.world_size(),
        }

    def _set_boundary(self, is_last: bool) -> None:
        for engine in self._engines.values():
            engine.set_gradient_accumulation_boundary(is_last)

    def _config(
        self, module: nn.Module, batch_size: int, num_parts: int, shares: list[float]
    ) -> dict[str, Any]:
        """`hp.deepspeed_config` with what this machine and this backend ask for.

        `shares`: see `rate_shares`.
        """
        config = self._hp.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = batch_size
        config["gradient_accumulation_steps"] = num_parts
        config["steps_per_print"] = NEVER
        if self._hp.optimizer == "adamw":
            # torch's AdamW decays weights unless told not to; DeepSpeed's own Adam does not.
            config["optimizer"]["params"] |= {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
            if not can_use_fused_adam():
                config["optimizer"]["params"]["torch_adam"] = True
        if any(share != 1 for share in shares):
            rates = config["scheduler"]["params"]
            for key in ("warmup_min_lr", "warmup_max_lr"):
                rates[key] = [share * rates[key] for share in shares]
        if self._is_plain:
            config["gradient_clipping"] = 0.0
        if self._hp.zero_stage in (1, 2):
            # Else a module of a few MB gets a bucket of 2 GB.
            trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
            config["zero_optimization"]["reduce_bucket_size"] = max(1, min(trained, BUCKET_ELEMENTS))
        return config

    def _masters(self, name: str) -> Masters:
        return Masters(self._engines[name].optimizer, self._hp.zero_stage)

    def _whole_weights(self, name: str, memory: HostMemory) -> dict[str, Tensor]:
        """Weights and buffers of `name` on rank 0, gathered one by one where they are split; of bf16 the masters."""
        masters = self._masters(name) if self._hp.precision == "bf16" else None
        weights = {}
        for key, value in self.raw_modules[name].state_dict(keep_vars=True).items():
            master = masters.read(value) if masters and isinstance(value, nn.Parameter) else None
            with self._gathered(value, memory) if master is None else nullcontext(master) as whole:
                if distributed.is_main():
                    weights[key] = memory.weight(whole)
        return weights

    @contextmanager
    def _gathered(self, value: Tensor, memory: HostMemory) -> Iterator[Tensor]:
        """The whole of `value`, on rank 0 at least."""
        if not (self.is_sharded and isinstance(value, nn.Parameter)):
            yield value
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            yield value
            memory.wait()  # Before the whole is given back, which may happen on another stream.

    def _load_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        module = self.raw_modules[name]
        if not self.is_sharded:
            module.load_state_dict(weights)
            return
        # Split parameters are restored from the optimiser's own part of them; buffers are whole everywhere.
        for key, value in module.state_dict(keep_vars=True).items():
            if not isinstance(value, nn.Parameter):
                value.copy_(weights[key])


def _make_contiguous(module: nn.Module) -> None:
    """Lay out every weight and buffer row by row: DeepSpeed sends them as bytes and cannot read channels-last ones.

    Copied, since torch's `contiguous` leaves the strides of a channels-last 1x1 convolution as they are.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def forward_in_bf16(forward: Any, device_type: str, *args: Any, **kwargs: Any) -> Any:
    """`forward` under bf16 autocast with float32 results: DeepSpeed converts weights, but no inputs."""
    with torch.autocast(device_type, dtype=torch.bfloat16):
        output = forward(*args, **kwargs)
    return _to_float32(output)


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_to_float32(item) for item in value)
    if isinstance(value, dict):
        return {key: _to_float32(item) for key, item in value.items()}
    return value


def keep_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Put back the float32 buffers that DeepSpeed rounded with the weights: windows and filters are no weights."""
    for key, buffer in module.named_buffers():
        buffer.data = buffers[key].to(buffer.device)


def _unrounded_weights(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    """The weights before DeepSpeed rounds them to bf16."""
    return {weight: weight.detach().float().clone() for weight in module.parameters()}
