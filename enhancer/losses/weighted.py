"""A weighted sum of named losses, with the values to log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from enhancer.losses.balancer import Balancer, Mean

Loss = Callable[..., Tensor]
"""f(estimate, target) -> scalar, or f(estimate, target, before)."""


class WeightedLoss:
    """Sum of weight * loss over named terms. A term of weight 0 is never computed.

    A loss with `hears_before` (see `enhancer.losses.device`) is also given what came before a chunk. With
    `is_balanced` the weights are how hard the terms pull at the estimate, in shares of each other, whatever their
    scale: see `enhancer.losses.balancer`; `settle` is then called after the step.
    Raises ValueError where a weight is negative or not finite, or where no term is left.
    """

    def __init__(self, terms: Mapping[str, tuple[float, Loss]], is_balanced: bool = False) -> None:
        wrong = {name: weight for name, (weight, _) in terms.items() if not 0 <= weight < math.inf}
        if wrong:
            raise ValueError(f"weights of loss terms are {wrong}; needed finite values of at least 0")
        self.terms = {name: term for name, term in terms.items() if term[0] > 0}
        if not self.terms:
            raise ValueError(
                f"no loss term of {sorted(terms)} has a weight above 0, so nothing would be learned"
            )
        self._balancer = Balancer([weight for weight, _ in self.terms.values()]) if is_balanced else None

    def __call__(
        self,
        estimate: Tensor,
        target: Tensor,
        before: tuple[Tensor, Tensor] | None = None,
        mean: Mean = lambda values: values,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to descend, and detached scalars: each term raw, and its share as `<name>_weighted`.

        `before` is estimate and target before this chunk of a longer signal; None is silence. `mean` over the ranks is
        what a balancer agrees by.
        """
        if self._balancer is None or not torch.is_grad_enabled():
            raw = {name: self._term(name, estimate, target, before) for name in self.terms}
            shares = {name: weight * raw[name] for name, (weight, _) in self.terms.items()}
            first, *others = shares.values()
            total = sum(others, start=first)
        else:
            total, raw, shares = self._balanced(self._balancer, estimate, target, before, mean)
        values = {}
        for name, share in shares.items():
            values[name], values[f"{name}_weighted"] = raw[name].detach(), share.detach()
        return total, values

    def _balanced(
        self,
        balancer: Balancer,
        estimate: Tensor,
        target: Tensor,
        before: tuple[Tensor, Tensor] | None,
        mean: Mean,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The total, and of each term what it is and its share."""
        # Gradients are taken term by term at a copy of the estimate, so that one graph at a time is kept.
        heard = estimate.detach().requires_grad_()
        raw: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        for name in self.terms:
            term = self._term(name, heard, target, before)
            gradients += torch.autograd.grad(term, heard)
            raw[name] = term.detach()
        factors = balancer.scales(gradients, mean).to(estimate.device, torch.float32)
        shares = {name: factor * raw[name] for name, factor in zip(raw, factors, strict=True)}
        pull = torch.stack(gradients).float().mul_(factors.view(-1, *[1] * estimate.ndim)).sum(0)
        # Its value is the sum of the shares, its gradient at the estimate the balanced one.
        linear = (estimate.float() * pull).sum()
        return linear - linear.detach() + torch.stack(list(shares.values())).sum(), raw, shares

    def settle(self) -> None:
        """Called after the step that the last total was for was taken."""
        if self._balancer is not None:
            self._balancer.settle()

    def state(self) -> dict[str, Tensor]:
        """What goes on from step to step, changed in place: `balancer`, where there is one."""
        return {} if self._balancer is None else {"balancer": self._balancer.state}

    def _term(
        self, name: str, estimate: Tensor, target: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        loss = self.terms[name][1]
        hears_before = getattr(loss, "hears_before", False)
        return loss(estimate, target, before) if hears_before else loss(estimate, target)
