"""The float32 masters that DeepSpeed's optimisers keep of bf16 weights: set before training, read for a checkpoint.

DeepSpeed rounds the weights before it copies its masters from them, and knows masters by weight above ZeRO 0 only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from enhancer.engine import distributed


class Masters:
    """Masters of the weights that `optimizer`, of an engine with bf16 at `zero_stage`, trains.

    Every method is called by all ranks with the same weights in the same order, and may communicate.
    """

    def __init__(self, optimizer: Any, zero_stage: int) -> None:
        self._zero_stage = zero_stage
        self._whole = {} if zero_stage else _whole_masters(optimizer)

    def read(self, weight: nn.Parameter) -> Tensor | None:
        """The whole master of `weight`, in its shape; None where it is not trained and has none."""
        if not self._zero_stage:
            return self._whole.get(weight)
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(weight)

    def set(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        """Make rank 0's `values`, float32 in the shape of their whole weights, the masters. The weights stay."""
        from deepspeed.utils import safe_set_full_fp32_param

        for weight, value in values.items():
            value = value.to(weight.device, copy=True)
            torch.distributed.broadcast(value, src=0)
            if weight in self._whole:
                self._whole[weight].copy_(value)
            elif self._zero_stage == 3:
                _set_part(weight, value)
            elif self._zero_stage:
                safe_set_full_fp32_param(weight, value)


def _whole_masters(optimizer: Any) -> dict[nn.Parameter, Tensor]:
    """The masters at ZeRO 0: of each weight its own with torch's AdamW, a part of one for all with the fused Adam."""
    masters: dict[nn.Parameter, Tensor] = {}
    for group, weights in enumerate(optimizer.fp16_groups):
        if hasattr(optimizer, "fp32_groups"):
            parts = [master.detach() for master in optimizer.fp32_groups[group]]
        else:
            parts = _unflatten_dense_tensors(optimizer.fp32_groups_flat[group].detach(), weights)
        masters.update(zip(weights, parts, strict=True))
    return masters


def _set_part(weight: nn.Parameter, value: Tensor) -> None:
    """This rank's part of the master of `weight` at ZeRO 3, where the last rank's is filled up with zeros.

    DeepSpeed's own setter of whole masters takes no weight that does not divide by the ranks.
    """
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

    part = safe_get_local_fp32_param(weight)
    if part is not None:
        filled = value.new_zeros(part.numel() * distributed.world_size())
        filled[: value.numel()] = value.flatten()
        safe_set_local_fp32_param(weight, filled.narrow(0, part.numel() * distributed.rank(), part.numel()))
