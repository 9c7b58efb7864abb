"""A recurrent model of a device: LSTM or GRU, sample by sample, and one linear output.

A. Wright, E.-P. Damskägg, V. Välimäki, "Real-Time Black-Box Modelling with Recurrent Neural Networks" (DAFx 2019).
Knobs are further inputs, constant over time. The skip adds the dry signal to the output, so that the network has only
to learn what the device changes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

State = tuple[Any, ...]
"""A nested tuple of tensors: what a model remembers of the samples it has heard."""

MAX_STEPS = 65_535
"""Time steps of one call of cuDNN's recurrent layers; they fail above it (pytorch issue 133751)."""
SHORTEST_MEMORY, LONGEST_MEMORY = 1.1, 2000.0
"""Samples over which the units of a fresh model remember."""


class RecurrentDevice(nn.Module):
    """LSTM or GRU over samples, then a linear layer to one output, plus the dry signal where `has_skip`.

    A state of None is the zero state. The state that a call returns makes the next call go on where it ended.
    """

    def __init__(
        self,
        num_knobs: int = 0,
        hidden_size: int = 96,
        num_layers: int = 1,
        unit: Literal["lstm", "gru"] = "lstm",
        has_skip: bool = False,
    ) -> None:
        super().__init__()
        if unit not in ("lstm", "gru"):
            raise ValueError(f"unit is {unit!r}; needed 'lstm' or 'gru'")
        self.num_knobs = num_knobs
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.unit = unit
        self.has_skip = has_skip
        layer = nn.LSTM if unit == "lstm" else nn.GRU
        self.recurrent = layer(1 + num_knobs, hidden_size, num_layers)
        self.head = nn.Linear(hidden_size, 1)
        self._spread_memory()

    @torch.no_grad()
    def _spread_memory(self) -> None:
        """Start the units with memories from about a sample to LONGEST_MEMORY, evenly in their logarithm.

        A gate that keeps 1 - 1/u of a unit's value forgets over u samples, so its bias is logit(1 - 1/u) = log(u - 1);
        a unit that keeps more takes in less (C. Tallec, Y. Ollivier, "Can recurrent neural networks warp time?", 2018).
        The slow units carry the coupling capacitors of a device, which gradients over short chunks hardly find.
        """
        size = self.hidden_size
        bounds = (math.log(SHORTEST_MEMORY - 1), math.log(LONGEST_MEMORY - 1))
        keep = torch.linspace(*bounds, size)
        for layer in range(self.num_layers):
            bias = getattr(self.recurrent, f"bias_ih_l{layer}")
            getattr(self.recurrent, f"bias_hh_l{layer}").zero_()
            bias.zero_()
            bias[size : 2 * size] = keep  # torch's order: input, forget, cell, output; or reset, update, new
            if self.unit == "lstm":
                bias[:size] = -keep

    def forward(
        self, dry: Tensor, knobs: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Dry signal [B, T] and knobs [B, K] -> estimate [B, T] of the wet signal, and the state after it.

        Raises ValueError where there are other knobs than the model has.
        """
        inputs = dry.t().unsqueeze(-1)
        if self.num_knobs or knobs is not None:
            knobs = require_knobs(knobs, self.num_knobs, len(dry))
            inputs = torch.cat([inputs, knobs.expand(len(inputs), -1, -1)], dim=-1)
        estimates = []
        hidden = self._to_torch(state)
        for piece in inputs.split(MAX_STEPS):
            features, hidden = self.recurrent(piece, hidden)
            estimates.append(self.head(features).squeeze(-1))
        estimate = estimates[0] if len(estimates) == 1 else torch.cat(estimates)
        estimate = estimate.t()
        return (dry + estimate if self.has_skip else estimate), self._from_torch(hidden)

    def _to_torch(self, state: State | None) -> Any:
        return state if state is None or self.unit == "lstm" else state[0]

    def _from_torch(self, hidden: Any) -> State:
        return hidden if self.unit == "lstm" else (hidden,)


def require_knobs(knobs: Tensor | None, num_knobs: int, num_rows: int) -> Tensor:
    """`knobs` where they are [num_rows, num_knobs]; raises ValueError otherwise."""
    found = None if knobs is None else tuple(knobs.shape)
    if knobs is None or found != (num_rows, num_knobs):
        raise ValueError(
            f"knobs are {found}; needed one value per row and knob, {(num_rows, num_knobs)} for this model and batch"
        )
    return knobs


def detach_state(state: State) -> State:
    """The same state without the history of its gradients, for truncated backpropagation through time."""
    return tuple(detach_state(part) if isinstance(part, tuple) else part.detach() for part in state)
