"""A weighted sum of named losses, with the values to log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

Loss = Callable[..., Tensor]
"""f(estimate, target) -> scalar, or f(estimate, target, before)."""


class WeightedLoss:
    """Sum of weight * loss over named terms. A term of weight 0 is never computed.

    A loss with `hears_before` (see `enhancer.losses.device`) is also given what came before a chunk.
    Raises ValueError where a weight is negative or not finite, or where no term is left.
    """

    def __init__(self, terms: Mapping[str, tuple[float, Loss]]) -> None:
        wrong = {name: weight for name, (weight, _) in terms.items() if not 0 <= weight < math.inf}
        if wrong:
            raise ValueError(f"weights of loss terms are {wrong}; needed finite values of at least 0")
        self.terms = {name: term for name, term in terms.items() if term[0] > 0}
        if not self.terms:
            raise ValueError(
                f"no loss term of {sorted(terms)} has a weight above 0, so nothing would be learned"
            )

    def __call__(
        self, estimate: Tensor, target: Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to descend, and detached scalars: each term raw, and its share as `<name>_weighted`.

        `before` is estimate and target before this chunk of a longer signal; None is silence.
        """
        values: dict[str, Tensor] = {}
        shares: list[Tensor] = []
        for name, (weight, loss) in self.terms.items():
            hears_before = getattr(loss, "hears_before", False)
            raw = loss(estimate, target, before) if hears_before else loss(estimate, target)
            shares.append(weight * raw)
            values[name] = raw.detach()
            values[f"{name}_weighted"] = shares[-1].detach()
        return sum(shares[1:], start=shares[0]), values
