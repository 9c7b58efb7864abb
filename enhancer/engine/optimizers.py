"""The optimiser that a run asks for, one for each module; AdamW under DeepSpeed is DeepSpeed's own.

Parameter groups are those of the task. Of their keys `stacked` is for this module alone: the parameters whose first
axis counts matrices, such as the weights of all layers in one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.engine.muon import Muon
from enhancer.engine.packaged_optimizers import packaged_class
from hparams.schema import HParams

STACKED = "stacked"


def make_optimizer(hp: HParams, groups: Iterable[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of `hp` over `groups` of `optimizer_groups`.

    Raises UserError where it comes from a package that is not installed.
    """
    own = [dict(group) for group in groups]
    if hp.optimizer == "adamw":
        return torch.optim.AdamW(own, lr=hp.min_lr, eps=1e-8, weight_decay=0)
    if hp.optimizer == "muon":
        return Muon(own, lr=hp.min_lr)
    options: dict[str, Any] = {"lr": hp.min_lr, "weight_decay": 0.0}
    if hp.optimizer == "psgd":
        options["precondition_dtype"] = (
            None  # That of the weights: a checkpoint holds tensors and plain values.
        )
    return packaged_class(hp.optimizer)(own, **options)


def optimizer_groups(hp: HParams, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A task's `groups` as `make_optimizer` takes them: for Muon split into matrices, which come first, and others."""
    found: list[dict[str, Any]] = []
    for group in groups:
        stacked = {id(weight) for weight in group.get(STACKED, ())}
        options = {key: value for key, value in group.items() if key not in (STACKED, "params")}
        if hp.optimizer != "muon":
            found.append({**options, "params": list(group["params"])})
            continue
        kinds: dict[tuple[bool, int], list[nn.Parameter]] = {}
        for weight in group["params"]:
            num_stacked = int(id(weight) in stacked)
            is_matrix = is_matrix_shaped(weight, num_stacked)
            kinds.setdefault((is_matrix, num_stacked if is_matrix else 0), []).append(weight)
        found += [
            {**options, "params": weights, "is_matrix": is_matrix, "num_stacked": num_stacked}
            for (is_matrix, num_stacked), weights in kinds.items()
        ]
    return sorted(found, key=lambda group: not group.get("is_matrix", True))


def is_matrix_shaped(weight: Tensor, num_stacked: int = 0) -> bool:
    """Whether a step of `weight` can be orthogonalised: two axes longer than 1 after `num_stacked` leading ones.

    A depthwise convolution, [channels, 1, width], has no matrix between channels; the first layer of a mono signal and
    the last one are vectors.
    """
    shape = weight.shape[num_stacked:]
    return len(shape) >= 2 and shape[0] > 1 and shape[1] > 1


def rate_shares(hp: HParams, groups: Sequence[Mapping[str, Any]]) -> list[float]:
    """Learning rate of each of an optimiser's `groups` as a share of the run's."""
    rest = 1.0 if hp.adamw_max_lr is None else hp.adamw_max_lr / hp.max_lr
    return [1.0 if group.get("is_matrix", True) else rest for group in groups]
