"""Models whose outputs are of the size of music, and their outputs."""

from __future__ import annotations

import torch

from enhancer.models.context import ContextDevice
from enhancer.models.recurrent import RecurrentDevice
from enhancer.models.wavenet import WaveNetDevice

RATE = 44_100


def recurrent(seed: int = 0, **options) -> RecurrentDevice:
    """Weights twice as large as at the start of training, so that its memory and its bends matter."""
    torch.manual_seed(seed)
    device = RecurrentDevice(**{"hidden_size": 16, **options}).eval()
    with torch.no_grad():
        for parameter in device.parameters():
            parameter.mul_(2)
    return device


def wavenet(seed: int = 0, **options) -> WaveNetDevice:
    """An output of about a tenth of full scale."""
    torch.manual_seed(seed)
    device = WaveNetDevice(**options).eval()
    with torch.no_grad():
        device.layer_stacks[-1].head_weight.mul_(20)
    return device


def context(seed: int = 0, **options) -> ContextDevice:
    """Weights twice as large as at the start of training."""
    torch.manual_seed(seed)
    device = ContextDevice(**{"context_samples": 40, "hidden_size": 16, **options}).eval()
    with torch.no_grad():
        for parameter in device.parameters():
            parameter.mul_(2)
    return device


def riff(num_samples: int, rows: int = 1, seed: int = 1) -> torch.Tensor:
    return 0.3 * torch.randn(rows, num_samples, generator=torch.Generator().manual_seed(seed))


def output(device, dry: torch.Tensor, knobs: torch.Tensor | None = None, state=None):
    """[T] of a dry signal [1, T], as numpy, without gradients."""
    with torch.no_grad():
        estimate, _ = device(dry, knobs, state)
    assert estimate.abs().max() > 0.03
    return estimate[0].numpy()
