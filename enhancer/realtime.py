"""How much faster than real time a model of a device plays in blocks, as a plugin calls it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BLOCK_SAMPLES = (64, 512)
"""What a player with little latency sets, and what is set for mixing."""
MEASURED_SECONDS = 1.0
WARM_UP_BLOCKS = 4


def real_time_factors(
    module: nn.Module,
    rate_hz: int,
    knobs: Tensor,
    block_samples: Sequence[int] = BLOCK_SAMPLES,
    seconds: float = MEASURED_SECONDS,
    clock: Callable[[], float] = time.process_time,
) -> dict[int, float]:
    """Seconds of audio per second of one CPU thread, for each block size; below 1 it would drop out.

    `seconds` of noise at -20 dBFS go through a copy of the model on the CPU, block by block with its state carried on.
    `knobs`: [K]. Of PyTorch: a plugin's own code spends less on each block. `clock` tells seconds; that of the process
    does not count what other programs take of a shared machine.
    """
    model = copy.deepcopy(module).to("cpu").eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            size: _factor(model, rate_hz, knobs.cpu()[None], size, seconds, clock) for size in block_samples
        }
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _factor(
    model: nn.Module, rate_hz: int, knobs: Tensor, size: int, seconds: float, clock: Callable[[], float]
) -> float:
    num_blocks = max(round(seconds * rate_hz / size), 1)
    noise = 0.1 * torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    state = None
    for _ in range(WARM_UP_BLOCKS):
        _, state = model(noise, knobs, state)
    started = clock()
    for _ in range(num_blocks):
        _, state = model(noise, knobs, state)
    return num_blocks * size / rate_hz / max(clock() - started, 1e-9)
