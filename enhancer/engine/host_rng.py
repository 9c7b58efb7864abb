"""The default generators of Python and numpy as tensors, beside torch's own in `enhancer.engine.rng`.

The project draws from explicit generators; these are kept for what a library draws behind its back.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_NO_GAUSS = float("nan")
NUM_WORDS = 624  # of a Mersenne twister


def capture() -> dict[str, Tensor]:
    """States of both generators; integers as int64, the pending normal variate as float64 (NaN: none)."""
    version, words, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    mersenne = state["state"]
    return {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([_NO_GAUSS if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor(
            [*mersenne["key"].tolist(), mersenne["pos"], state["has_gauss"]], dtype=torch.int64
        ),
        "numpy_gauss": torch.tensor([state["gauss"]], dtype=torch.float64),
    }


def restore(states: Mapping[str, Tensor]) -> None:
    """Put back what `capture` returned."""
    version, *words = states["python"].tolist()
    gauss = float(states["python_gauss"][0])
    random.setstate((version, tuple(words), None if gauss != gauss else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    if len(keys) != NUM_WORDS or not 0 <= position <= NUM_WORDS:
        # Numpy would take it, and read beyond its array.
        raise ValueError(
            f"a generator of {len(keys)} words at {position}; needed {NUM_WORDS}, and a place in them"
        )
    cached = float(states["numpy_gauss"][0])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
