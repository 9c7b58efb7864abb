"""How loud a model plays and how much it compresses, as `.nam` files say it.

Players of Neural Amp Modeler set the level of a model by the first. Both are defined by what neural-amp-modeler 0.13
measures on a recording of its own, `loudness_input.wav`: one second of guitar, RMS -15 dBFS. It is no part of this
project; an installed neural-amp-modeler has it.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from enhancer.models.recurrent import RecurrentDevice

GAINS = 11
REST_SAMPLES = 48_000
"""Silence after which a recurrent model starts in a plugin, as the format's own trainer has it."""


def loudness_recording() -> Path | None:
    """The recording in an installed neural-amp-modeler; None where there is none. Imports nothing of it."""
    spec = importlib.util.find_spec("nam")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "models" / "_resources" / "loudness_input.wav"
        if path.is_file():
            return path
    return None


@torch.no_grad()
def loudness_and_gain(device: nn.Module, recording: Tensor) -> tuple[float, float] | None:
    """RMS of what the model without knobs makes of `recording` [T], dB, and its gain from 0 to 1; None for silence.

    The gain compares the RMS at input gains 0, 0.1, ..., 1 with those of a model that is linear (0) and of one that is
    as loud at every gain (1). The samples are taken as they are, whatever the model's rate.
    """
    state = None
    if isinstance(device, RecurrentDevice):
        _, state = device(recording.new_zeros(1, REST_SAMPLES))
    rms = []
    for gain in torch.linspace(0, 1, GAINS).tolist():
        estimate, _ = device(gain * recording[None], None, state)
        rms.append(float(estimate.double().square().mean().sqrt()))
    if not rms[-1] > 0:
        return None
    loudest = GAINS * rms[-1]
    # A straight line from 0 has half the area of the loudest rectangle.
    return 20 * math.log10(rms[-1]), min(max((sum(rms) - loudest / 2) / (loudest / 2), 0.0), 1.0)
