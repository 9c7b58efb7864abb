"""Which precision sums over a whole waveform are made in."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's MPS, which has nothing wider.

    A ratio of energies in dB takes the difference of two sums over 44,100 samples a second. In float32 their rounding
    depends on how rows are spread over ranks, and two ranks drift away from one.
    """
    return torch.float32 if device.type == "mps" else torch.float64
