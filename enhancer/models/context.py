"""A model of a device that hears a window of dry samples and makes the wet sample at its end of it: many to one.

An LSTM that starts from nothing in every window, and one linear output of its last state. What lies further back than
the window it cannot know, and one window says nothing to the next, so a signal costs as many steps for each of its
samples as the window has samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from enhancer.models.recurrent import State, require_knobs

WINDOWS_ON_CPU = 256
WINDOWS_ON_ACCELERATOR = 4096
"""Windows of one call of the LSTM: its gates over all steps of all windows are in memory, 0.1 GB for 256 x 440 x 64."""


class ContextDevice(nn.Module):
    """LSTM over the last `context_samples` dry samples, from the zero state, then a linear layer.

    A state is the `context_samples - 1` dry samples before the block, [B, context_samples - 1]; None is silence. The
    state that a call returns makes the next call go on where it ended. Knobs are further inputs, constant over time.
    """

    def __init__(self, context_samples: int, num_knobs: int = 0, hidden_size: int = 64) -> None:
        super().__init__()
        if context_samples < 2:
            raise ValueError(f"context_samples is {context_samples}; needed 2 or more")
        self.context_samples = context_samples
        self.num_knobs = num_knobs
        self.hidden_size = hidden_size
        self.recurrent = nn.LSTM(1 + num_knobs, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def forward(
        self, dry: Tensor, knobs: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Dry signal [B, T] and knobs [B, K] -> estimate [B, T] of the wet signal, and the state after it.

        Raises ValueError where there are other knobs than the model has.
        """
        if self.num_knobs or knobs is not None:
            knobs = require_knobs(knobs, self.num_knobs, len(dry))
        past = dry.new_zeros(len(dry), self.context_samples - 1) if state is None else state[0]
        heard = torch.cat([past, dry], dim=-1)
        # A view: samples are strided into windows [B, T, context_samples], of which a few at a time are computed.
        windows = heard.unfold(-1, self.context_samples, 1)
        count = max(1, windows_at_once(dry.device) // len(dry))
        estimates = [self._wet_at_end(part, knobs) for part in windows.split(count, dim=1)]
        return torch.cat(estimates, dim=-1), (heard[:, dry.shape[-1] :].clone(),)

    def _wet_at_end(self, windows: Tensor, knobs: Tensor | None) -> Tensor:
        """Windows [B, T, context_samples] -> the wet sample at the end of each, [B, T]."""
        inputs = windows.flatten(0, 1).t().unsqueeze(-1)
        if self.num_knobs and knobs is not None:
            of_windows = knobs.to(inputs.dtype).repeat_interleave(windows.shape[1], dim=0)
            inputs = torch.cat([inputs, of_windows.expand(len(inputs), -1, -1)], dim=-1)
        _, (hidden, _) = self.recurrent(inputs)
        return self.head(hidden[-1]).view(windows.shape[:2])


def windows_at_once(device: torch.device) -> int:
    """How many windows one call of the LSTM on `device` takes."""
    return WINDOWS_ON_CPU if device.type == "cpu" else WINDOWS_ON_ACCELERATOR
