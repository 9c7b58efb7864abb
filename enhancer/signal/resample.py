"""Sample-rate conversion of waveforms, whole or in blocks. On the CPU, without delay, not differentiable.

soxr at high quality: flat to 0.91 of the lower of the two Nyquist frequencies, aliases and images below -120
dB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.types import Wave


def resample(wave: Wave, from_hz: int, to_hz: int) -> Float[Tensor, "*batch resampled"]:
    """[..., T] at `from_hz` -> [..., T'] at `to_hz`, T' being T * to_hz / from_hz to within a sample.

    Equal rates return `wave` itself. Raises ValueError at rates below 1 Hz.
    """
    if from_hz == to_hz:
        return wave
    channels = wave.detach().cpu().reshape(-1, wave.shape[-1])
    converted = torch.cat(list(resample_blocks([channels], from_hz, to_hz)), dim=-1)
    return converted.reshape(*wave.shape[:-1], -1)


def resample_blocks(
    blocks: Iterable[Float[Tensor, "channel _"]], from_hz: int, to_hz: int
) -> Iterator[Float[Tensor, "channel _"]]:
    """A long recording in blocks [C, T_i] at `from_hz` -> blocks [C, T'_i] at `to_hz`.

    Joined, the blocks are what `resample` makes of the joined input; block borders leave no trace. A block
    may come out empty while the filter fills. Raises ValueError at rates below 1 Hz.
    """
    if from_hz < 1 or to_hz < 1:
        raise ValueError(f"cannot resample from {from_hz} Hz to {to_hz} Hz; needed rates of at least 1 Hz")
    if from_hz == to_hz:
        yield from blocks
        return
    # Only those who convert files need soxr.
    import soxr

    stream = None
    num_channels = 0
    for block in blocks:
        if stream is None:
            num_channels = block.shape[0]
            stream = soxr.ResampleStream(from_hz, to_hz, num_channels, dtype="float32", quality="HQ")
        samples = np.ascontiguousarray(block.detach().cpu().float().numpy().T)
        yield _as_block(stream.resample_chunk(samples))
    if stream is not None:
        yield _as_block(stream.resample_chunk(np.zeros((0, num_channels), np.float32), last=True))


def _as_block(samples: np.ndarray) -> Float[Tensor, "channel _"]:
    return torch.from_numpy(np.ascontiguousarray(samples.T))
