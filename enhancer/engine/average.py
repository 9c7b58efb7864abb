"""An exponential moving average of a module's weights, which is what evaluation, BEST and every use of the run take.

Single steps of Adam at a high learning rate shake the weights, and what a validation list says with them; their mean
over the last steps stands where they shake about (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from enhancer.engine.snapshot import Files, HostMemory
from enhancer.engine.weights import read_weights_file

AVERAGE = "{name}.average.safetensors"
"""File of a checkpoint with the averaged weights and the buffers of module `name`."""


class WeightAverage:
    """Averaged parameters of `module` in float32, which start as its own. Buffers are no part of it.

    Args:
        name: of the module, for the file.
        module: whose parameters are whole on this rank.
        decay: share of the average that one step keeps; the first steps keep (1 + n) / (10 + n), so that the start is
            soon forgotten.
    """

    def __init__(self, name: str, module: nn.Module, decay: float) -> None:
        self._file = AVERAGE.format(name=name)
        self._module = module
        self._decay = decay
        self._average = [weight.detach().float().clone() for weight in module.parameters()]
        self._num_steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._num_steps += 1
        decay = min(self._decay, (1 + self._num_steps) / (10 + self._num_steps))
        weights = [weight.detach().float() for weight in self._module.parameters()]
        torch._foreach_lerp_(self._average, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module with the averaged weights in the place of its own, which are put back bit for bit."""
        own = [weight.detach().clone() for weight in self._module.parameters()]
        self._fill(self._average)
        try:
            yield
        finally:
            self._fill(own)

    def capture(self, memory: HostMemory) -> Files:
        """A copy in `memory` of what `module.state_dict()` would be with the averaged weights."""
        names = (name for name, _ in self._module.named_parameters())
        averaged = {**self._module.state_dict(), **dict(zip(names, self._average, strict=True))}
        return {self._file: memory.weights(averaged)}

    def load(self, folder: Path, num_steps: int) -> None:
        """Go on from what was made of `capture` after `num_steps` steps. Raises UserError where it is no such file."""
        weights = read_weights_file(folder / self._file)
        for (name, _), average in zip(self._module.named_parameters(), self._average, strict=True):
            average.copy_(weights[name])
        self._num_steps = num_steps

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self._module.parameters(), values, strict=True):
            weight.copy_(value)
