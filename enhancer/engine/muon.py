"""Muon for matrices and AdamW for all else, as one optimiser that reads its weights from `param_groups` at every step.

DeepSpeed puts others into the groups than the optimiser was made with (float32 masters of bf16 weights), so nothing
here keeps weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
SMALLEST_NORM = 1e-7


def orthogonalised(matrices: Tensor) -> Tensor:
    """[N, R, C] -> [N, R, C]: the singular vectors of each matrix, with values near 1.

    Five steps of a quintic Newton-Schulz iteration, whose coefficients trade exactness for a steep slope at 0: a
    singular value above 0.002 of the Frobenius norm ends between 0.68 and 1.21, a smaller one lower (K. Jordan, "Muon:
    An optimizer for hidden layers in neural networks", 2024).
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon, with Nesterov's momentum, on groups with `is_matrix`; AdamW on the others.

    A weight of such a group is a matrix of its first axis by all others (a convolution's [out, in * width]); after
    `num_stacked` leading axes that count matrices. The update is `lr * sqrt(max(1, rows / columns))` times the
    orthogonalised momentum, as in torch.optim.Muon, but in float32. Weight decay is decoupled in both.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": 0.0,
            "is_matrix": False,
            "num_stacked": 0,
            "momentum": 0.95,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all weights that have gradients; the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights and group["is_matrix"]:
                self._step_matrices(group, weights)
            elif weights:
                self._step_others(group, weights)
        return loss

    def _step_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [_gradient(weight) for weight in weights]
        momenta = [self._moment(weight, "momentum_buffer") for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for weight, update in zip(weights, updates, strict=True):
            rows = weight.shape[group["num_stacked"]]
            matrices = update.reshape(-1, rows, math.prod(weight.shape[group["num_stacked"] + 1 :]))
            by_shape.setdefault((rows, matrices.shape[-1]), []).append((weight, matrices))
        for (rows, columns), members in by_shape.items():
            directions = orthogonalised(torch.cat([matrices for _, matrices in members]))
            counts = [len(matrices) for _, matrices in members]
            for (weight, _), direction in zip(members, directions.split(counts), strict=True):
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                weight.add_(direction.reshape(weight.shape), alpha=-rate)

    def _step_others(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        for weight in weights:
            self.state[weight].setdefault("step", torch.zeros((), dtype=torch.float32))
        adamw(
            weights,
            [_gradient(weight) for weight in weights],
            [self._moment(weight, "exp_avg") for weight in weights],
            [self._moment(weight, "exp_avg_sq") for weight in weights],
            [],
            [self.state[weight]["step"] for weight in weights],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _moment(self, weight: Tensor, name: str) -> Tensor:
        """A running mean in the state of `weight`, which starts as zeros."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight)
        moment: Tensor = state[name]
        return moment


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad
