"""Torch's default generators of this process as tensors, so that a checkpoint holds them without pickling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def capture() -> dict[str, Tensor]:
    """States of the default generators, uint8 on the CPU, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Put back what `capture` returned. A device that is not here any more is left out."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def branch(number: int) -> None:
    """Go on with generators that are a function of those of now and of `number`, and follow neither."""
    torch.manual_seed(int(torch.randint(1 << 48, ())) + number)
