"""`.nam` files of Neural Amp Modeler, architectures LSTM and WaveNet.

The files say version 0.5.4, which every version of the player's core from 0.5 on reads. Since version 0.7 of the
format a WaveNet's layer arrays name their head by an object; both ways are written, and each reader takes the one it
knows.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.export.description import (
    Description,
    Exported,
    require_no_knobs,
    require_no_skip,
    require_stepwise,
)
from enhancer.export.level import REST_SAMPLES
from enhancer.models.recurrent import RecurrentDevice
from enhancer.models.wavenet import WaveNetDevice
from hparams.errors import UserError

VERSION = "0.5.4"


def export(module: nn.Module, description: Description) -> Exported:
    """The file of a model without knobs; raises UserError for what the format cannot say."""
    device = require_stepwise(module, "a .nam file")
    require_no_knobs(device, description.knobs, "a .nam file")
    if isinstance(device, RecurrentDevice):
        architecture, config, weights = "LSTM", _lstm_config(device), _lstm_weights(device)
    else:
        architecture, config, weights = "WaveNet", _wavenet_config(device), _wavenet_weights(device)
    content = {
        "version": VERSION,
        "metadata": _metadata(description),
        "architecture": architecture,
        "config": config,
        "weights": _flat(weights),
        "sample_rate": description.rate_hz,
    }
    return Exported((json.dumps(content, allow_nan=False) + "\n").encode())


def _metadata(description: Description) -> dict[str, Any]:
    metadata = description.gear()
    if description.date is not None:
        fields = ("year", "month", "day", "hour", "minute", "second")
        metadata["date"] = {field: getattr(description.date, field) for field in fields}
    training: dict[str, Any] = {}
    if description.esr is not None:
        training["validation_esr"] = description.esr
    if description.settings:
        training["settings"] = {"knobs": dict(description.settings)}
    if training:
        metadata["training"] = training
    return metadata


def _lstm_config(device: RecurrentDevice) -> dict[str, Any]:
    if device.unit != "lstm":
        raise UserError("a .nam file has no GRU; train with task.model=lstm, or export another format")
    require_no_skip(device, "a .nam file", "train with task.has_skip=false, or export proteus or onnx")
    return {"input_size": 1, "hidden_size": device.hidden_size, "num_layers": device.num_layers}


def _lstm_weights(device: RecurrentDevice) -> list[Tensor]:
    """Of each layer [W_ih, W_hh] row by row, the sum of its biases, h0, c0; then the head. Gates i, f, g, o."""
    with torch.no_grad():
        _, (hidden, cell) = device(torch.zeros(1, REST_SAMPLES, device=device.head.weight.device))
    weights = dict(device.recurrent.named_parameters())
    found: list[Tensor] = []
    for layer in range(device.num_layers):
        found += [
            torch.cat([weights[f"weight_ih_l{layer}"], weights[f"weight_hh_l{layer}"]], dim=1),
            weights[f"bias_ih_l{layer}"] + weights[f"bias_hh_l{layer}"],
            hidden[layer],
            cell[layer],
        ]
    return [*found, device.head.weight, device.head.bias]


def _wavenet_config(device: WaveNetDevice) -> dict[str, Any]:
    layers = []
    for stack in device.layer_stacks:
        has_bias = stack.head_bias is not None
        layers.append(
            {
                "input_size": stack.input_weight.shape[1],
                "condition_size": 1,
                "head_size": len(stack.head_weight),
                "head": {"out_channels": len(stack.head_weight), "kernel_size": 1, "bias": has_bias},
                "channels": len(stack.input_weight),
                "kernel_size": stack.kernel_size,
                "dilations": list(stack.dilations),
                "activation": "Tanh",
                "gated": False,
                "head_bias": has_bias,
            }
        )
    return {"layers": layers, "head": None, "head_scale": device.head_scale}


def _wavenet_weights(device: WaveNetDevice) -> list[Tensor]:
    """Of each stack its input map, of each layer convolution, bias, condition, output map and its bias; the head."""
    found: list[Tensor] = []
    for stack in device.layer_stacks:
        found.append(stack.input_weight)
        for layer in range(len(stack.dilations)):
            found += [
                stack.conv_weight[layer],
                stack.conv_bias[layer],
                stack.condition_weight[layer],
                stack.output_weight[layer],
                stack.output_bias[layer],
            ]
        found.append(stack.head_weight)
        if stack.head_bias is not None:
            found.append(stack.head_bias)
    return [*found, torch.tensor([device.head_scale])]


def _flat(weights: list[Tensor]) -> list[float]:
    return torch.cat([weight.detach().float().cpu().reshape(-1) for weight in weights]).tolist()
