"""JSON of RTNeural: a chain of layers in Keras' layout, as `RTNeural::json_parser` reads it."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.export.description import Description, Exported, require_no_skip, require_stepwise
from enhancer.models.recurrent import RecurrentDevice
from hparams.errors import UserError


def export(module: nn.Module, description: Description) -> Exported:
    """The file of a recurrent model; knobs are further inputs. Raises UserError for what the format cannot say."""
    device = require_stepwise(module, "RTNeural's JSON")
    if not isinstance(device, RecurrentDevice):
        raise UserError(
            "RTNeural's JSON is a chain of layers, and a WaveNet has ways around its layers; export nam or onnx"
        )
    require_no_skip(
        device,
        "RTNeural's JSON, a chain of layers,",
        "train with task.has_skip=false, or export proteus or onnx",
    )
    weights = {name: value.detach().float().cpu() for name, value in device.recurrent.named_parameters()}
    make_layer = _lstm if device.unit == "lstm" else _gru
    layers = [
        make_layer(
            *(weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        )
        for layer in range(device.num_layers)
    ]
    head = [
        device.head.weight.detach().float().cpu().t().tolist(),
        device.head.bias.detach().float().cpu().tolist(),
    ]
    layers.append({"type": "dense", "activation": "", "shape": [None, None, 1], "weights": head})
    content = {
        "in_shape": [None, None, 1 + device.num_knobs],
        "layers": layers,
        "metadata": description.facts(),
    }
    return Exported((json.dumps(content, allow_nan=False) + "\n").encode())


def _lstm(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> dict[str, Any]:
    """Gates i, f, c, o, as in PyTorch; one bias."""
    weights = [w_ih.t().tolist(), w_hh.t().tolist(), (b_ih + b_hh).tolist()]
    return {"type": "lstm", "activation": "", "shape": [None, None, w_hh.shape[1]], "weights": weights}


def _gru(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> dict[str, Any]:
    """Gates z, r, h where PyTorch has r, z, n; both biases (Keras' `reset_after`)."""
    w_ih, w_hh, b_ih, b_hh = (_swap(value) for value in (w_ih, w_hh, b_ih, b_hh))
    weights = [w_ih.t().tolist(), w_hh.t().tolist(), torch.stack([b_ih, b_hh]).tolist()]
    return {"type": "gru", "activation": "", "shape": [None, None, w_hh.shape[1]], "weights": weights}


def _swap(gates: Tensor) -> Tensor:
    reset, update, new = gates.chunk(3)
    return torch.cat([update, reset, new])
