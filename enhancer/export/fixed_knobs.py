"""A model at one setting of its knobs: the same outputs, without the inputs for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from enhancer.export.description import Device
from enhancer.models.context import ContextDevice
from enhancer.models.recurrent import RecurrentDevice
from enhancer.models.wavenet import WaveNetDevice


def at_knobs(module: Device, values: Sequence[float]) -> Device:
    """`module` with its knobs at `values` [K], which become part of the biases they would have been added to."""
    if len(values) != module.num_knobs:
        raise ValueError(f"{len(values)} values are given for {module.num_knobs} knobs")
    knobs = next(module.parameters()).detach().new_tensor(list(values))
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    fixed: Device
    names = [("recurrent.weight_ih_l0", "recurrent.bias_ih_l0")]
    if isinstance(module, RecurrentDevice):
        fixed = RecurrentDevice(0, module.hidden_size, module.num_layers, module.unit, module.has_skip)
    elif isinstance(module, ContextDevice):
        fixed = ContextDevice(module.context_samples, 0, module.hidden_size)
    else:
        fixed = WaveNetDevice(0, module.channels, module.kernel_size, module.dilations, module.head_scale)
        stacks = range(len(module.channels))
        names = [(f"stacks.{index}.condition_weight", f"stacks.{index}.conv_bias") for index in stacks]
    with torch.no_grad():
        for weight, bias in names:
            weights[bias] += weights[weight][..., 1:] @ knobs
            weights[weight] = weights[weight][..., :1]
    fixed.load_state_dict(weights)
    return fixed.eval()
