"""A balancer of loss terms: each pulls at the estimate as hard as its weight says, whatever its scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Mean = Callable[[Tensor], Tensor]
"""The mean of a tensor over all that train together; every one of them calls it alike."""
# Of a gradient's norm: what is smaller is none at all.
SMALLEST_NORM = 1e-12


class Balancer:
    """Scales of loss terms from moving averages of the norms of their gradients with respect to the estimate.

    A. Défossez et al., "High Fidelity Neural Audio Compression" (2022), section 3.4: the gradient g_i of term i becomes
    total_norm * w_i / sum(w) * g_i / <|g_i|>, with the norm taken per row, averaged over the rows, and over time with
    `decay`. Here a row's gradient is that of its own loss, so that the number of rows, or of ranks that share them,
    changes nothing.

    `state` goes on from step to step: of each term the weighted sum of its norms, and last the sum of those weights.
    It moves by `settle`, after the step that `scales` was asked for was taken.
    """

    def __init__(self, weights: Sequence[float], decay: float = 0.999, total_norm: float = 1.0) -> None:
        if not 0 <= decay < 1 or not total_norm > 0:
            raise ValueError(
                f"a balancer's decay is {decay} and its total_norm {total_norm}; needed a decay from 0 up to but not "
                "including 1, and a norm above 0"
            )
        self.decay = decay
        self._norms = torch.tensor([weight / sum(weights) * total_norm for weight in weights]).double()
        self.state = torch.zeros(len(weights) + 1, dtype=torch.float64)
        self._next = self.state.clone()

    def scales(
        self, gradients: Sequence[Float[Tensor, "batch time"]], mean: Mean = lambda values: values
    ) -> Float[Tensor, " term"]:
        """Factors of the `gradients`, which are those of terms that are means over the rows. float64, on the CPU.

        Norms are averaged over the ranks by `mean`. A norm that is not finite, on any of them, is left out.
        """
        rows = len(gradients[0])
        norms = torch.stack([gradient.float().norm(dim=-1).mean() * rows for gradient in gradients])
        found = mean(norms.double().cpu())
        if bool(found.isfinite().all()):
            self._next = self.decay * self.state + torch.cat([found, found.new_ones(1)])
        else:
            self._next = self.state.clone()
        average = self._next[:-1] / self._next[-1].clamp(min=SMALLEST_NORM)
        return torch.where(average > SMALLEST_NORM, self._norms / average.clamp(min=SMALLEST_NORM), 0.0)

    def settle(self) -> None:
        """Keep what the last `scales` saw."""
        self.state.copy_(self._next)
