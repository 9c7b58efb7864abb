"""JSON of Automated-GuitarAmpModelling, which the plugins Proteus and NeuralPi play."""

from __future__ import annotations

import json

from torch import nn

from enhancer.export.description import Description, Exported, require_stepwise
from enhancer.models.recurrent import RecurrentDevice
from hparams.errors import UserError

PLUGIN_UNITS = {40: "Proteus", 20: "NeuralPi"}
"""Units that these plugins are compiled for."""
MAX_KNOBS = 2


def export(module: nn.Module, description: Description) -> Exported:
    """The file of an LSTM of one layer; raises UserError for what the format or its plugins cannot say."""
    device = require_stepwise(module, "Proteus' JSON")
    if not isinstance(device, RecurrentDevice) or device.unit != "lstm":
        kind = "GRU" if isinstance(device, RecurrentDevice) else "WaveNet"
        raise UserError(f"Proteus plays LSTMs only and this is a {kind}; train with task.model=lstm")
    if device.num_layers != 1:
        raise UserError(
            f"Proteus plays one layer and this model has {device.num_layers}; train with task.num_layers=1"
        )
    if device.num_knobs > MAX_KNOBS:
        raise UserError(
            f"Proteus has up to {MAX_KNOBS} knobs and this model {device.num_knobs} ({', '.join(description.knobs)}); "
            "fix them for this file with --knob NAME=VALUE"
        )
    weights = {f"rec.{name}": value for name, value in device.recurrent.named_parameters()}
    weights |= {f"lin.{name}": value for name, value in device.head.named_parameters()}
    content = {
        "model_data": {
            "model": "SimpleRNN",
            "input_size": 1 + device.num_knobs,
            "skip": int(device.has_skip),
            "output_size": 1,
            "unit_type": "LSTM",
            "num_layers": 1,
            "hidden_size": device.hidden_size,
            "bias_fl": True,
        },
        "state_dict": {name: value.detach().float().cpu().tolist() for name, value in weights.items()},
        "metadata": description.facts(),
    }
    return Exported((json.dumps(content, allow_nan=False) + "\n").encode(), _notes(device))


def _notes(device: RecurrentDevice) -> tuple[str, ...]:
    notes = []
    if device.hidden_size not in PLUGIN_UNITS:
        plugins = " and ".join(f"{name} plays {units} units" for units, name in PLUGIN_UNITS.items())
        notes.append(
            f"{plugins}; this model has {device.hidden_size} and needs another player (task.hidden_size)"
        )
    if not device.has_skip:
        notes.append(
            "Proteus and NeuralPi always add the dry signal, whatever the file says; "
            "for them train with task.has_skip=true"
        )
    return tuple(notes)
