"""The vocabulary of shapes. Names of axes: batch, time (samples), freq (bins), frame, mel.

The aliases are checked at run time in tests only (jaxtyping's import hook with beartype).
"""

from __future__ import annotations

from jaxtyping import Complex, Float, Int16, Int64
from torch import Tensor

Wave = Float[Tensor, "*batch time"]
"""Samples, full scale at +-1, over any leading axes."""
WaveBatch = Float[Tensor, "batch time"]
"""One row per example."""
Spectrum = Complex[Tensor, "*batch freq frame"]
MelFrames = Float[Tensor, "*batch mel frame"]
PerWave = Float[Tensor, "*batch"]
"""One value per waveform."""
PerRow = Float[Tensor, " batch"]
"""One value per row of a batch."""
RowIndex = Int64[Tensor, " batch"]
PcmBatch = Int16[Tensor, "batch time"]
"""16-bit samples as stored in shards; full scale at +-32768."""
Impulses = Float[Tensor, "room tap"]

__all__ = [
    "Impulses",
    "MelFrames",
    "PcmBatch",
    "PerRow",
    "PerWave",
    "RowIndex",
    "Spectrum",
    "Wave",
    "WaveBatch",
]
