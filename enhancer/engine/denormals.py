"""Floats so small that a CPU computes with them many times slower than with others: they count as zero in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def flushed() -> Iterator[None]:
    """Take results below the smallest normal float (1.2e-38) for zero, in this thread and those that it starts.

    Gradients that go back through hundreds of steps of a fresh LSTM become that small.
    """
    for kind in (np.float16, np.float32, np.float64):
        # numpy looks at the smallest floats once for each type, and warns where there are none.
        _ = np.finfo(kind).smallest_subnormal
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
