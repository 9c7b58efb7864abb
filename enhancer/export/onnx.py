"""ONNX, written node by node: a graph that takes a block and a state and gives the output and the next state.

Inputs `dry` [batch, time], `knobs` [batch, K] where there are any, and the states; outputs `wet` [batch, time] and the
states after it, as `<name>_after`. A recurrent model's states, `h` and `c` [layer, batch, unit], begin as zeros. A
WaveNet's, `past_<layer>` [batch, channel, sample], begin as zeros before `receptive_field` samples of silence are
heard. A context model's, `past` [batch, sample], are the samples before the block and begin as zeros.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from enhancer.export.description import Description, Exported, require_device
from enhancer.models.context import ContextDevice
from enhancer.models.recurrent import RecurrentDevice
from enhancer.models.wavenet import WaveNetDevice
from hparams.errors import UserError

OPSET = 17
IR_VERSION = 8
"""The one that came with that opset: older runtimes refuse newer ones."""
END = 2**31 - 1


def export(module: nn.Module, description: Description) -> Exported:
    """The file of any model of a device. Raises UserError where the package `onnx` is missing."""
    try:
        import onnx
    except ImportError:
        raise UserError("ONNX files need the package onnx; pip install 'wavewright[onnx]'") from None
    device = require_device(module)
    graph = _Graph()
    facts = description.facts()
    graph.input("dry", ["batch", "time"])
    if device.num_knobs:
        graph.input("knobs", ["batch", device.num_knobs])
    if isinstance(device, RecurrentDevice):
        _add_recurrent(graph, device)
    elif isinstance(device, ContextDevice):
        _add_context(graph, device)
    else:
        _add_wavenet(graph, device)
        facts["receptive_field"] = device.receptive_field
    model = graph.model()
    onnx.helper.set_model_props(model, {key: _text(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    return Exported(model.SerializeToString())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Graph:
    """Nodes in order; every method returns the name of what it adds."""

    def __init__(self) -> None:
        import onnx

        self.onnx = onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, shape: list[str | int]) -> str:
        self.inputs.append(self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, shape))
        return name

    def output(self, value: str, name: str, shape: list[str | int]) -> None:
        self.add("Identity", value, name=name)
        self.outputs.append(self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, shape))

    def weight(self, value: Tensor) -> str:
        array = value.detach().float().cpu().contiguous().numpy()
        return self._constant(array)

    def integers(self, *values: int) -> str:
        return self._constant(torch.tensor(values, dtype=torch.int64).numpy())

    def scalar(self, value: int) -> str:
        return self._constant(torch.tensor(value, dtype=torch.int64).numpy())

    def _constant(self, array: Any) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node of one output."""
        return self.add_many(op, [name or f"value_{len(self.nodes)}"], *inputs, **attributes)[0]

    def add_many(self, op: str, outputs: list[str], *inputs: str, **attributes: Any) -> list[str]:
        """A node with these outputs."""
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), outputs, **attributes))
        return outputs

    def slice(self, value: str, start: int, end: int, axis: int) -> str:
        return self.add("Slice", value, self.integers(start), self.integers(end), self.integers(axis))

    def model(self) -> Any:
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "device", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wavewright"
        )


def _add_recurrent(graph: _Graph, device: RecurrentDevice) -> None:
    names = ["h", "c"] if device.unit == "lstm" else ["h"]
    shape: list[str | int] = [device.num_layers, "batch", device.hidden_size]
    for name in names:
        graph.input(name, shape)
    # [time, batch, input]
    x = graph.add("Unsqueeze", graph.add("Transpose", "dry", perm=[1, 0]), graph.integers(2))
    if device.num_knobs:
        time = graph.slice(graph.add("Shape", "dry"), 1, 2, 0)
        shape_of_all = graph.add("Concat", time, graph.integers(1, 1), axis=0)
        knobs = graph.add("Expand", graph.add("Unsqueeze", "knobs", graph.integers(0)), shape_of_all)
        x = graph.add("Concat", x, knobs, axis=2)
    after: dict[str, list[str]] = {name: [] for name in names}
    for layer in range(device.num_layers):
        states = [graph.slice(name, layer, layer + 1, 0) for name in names]
        outputs = [f"features_{layer}", *(f"{name}_after_{layer}" for name in names)]
        graph.add_many(
            device.unit.upper(),
            outputs,
            x,
            *_recurrent_weights(graph, device.recurrent, device.unit, layer),
            "",
            *states,
            hidden_size=device.hidden_size,
            **({} if device.unit == "lstm" else {"linear_before_reset": 1}),
        )
        x = graph.add("Squeeze", outputs[0], graph.integers(1))
        for name, output in zip(names, outputs[1:], strict=True):
            after[name].append(output)
    wet = graph.add("MatMul", x, graph.weight(device.head.weight.t()))
    wet = graph.add("Add", wet, graph.weight(device.head.bias))
    wet = graph.add("Transpose", graph.add("Squeeze", wet, graph.integers(2)), perm=[1, 0])
    if device.has_skip:
        wet = graph.add("Add", wet, "dry")
    graph.output(wet, "wet", ["batch", "time"])
    for name in names:
        graph.output(graph.add("Concat", *after[name], axis=0), f"{name}_after", shape)


def _recurrent_weights(graph: _Graph, recurrent: nn.Module, unit: str, layer: int) -> list[str]:
    """W, R, B with the gates in ONNX's order: i, o, f, c for LSTM, z, r, h for GRU."""
    order = [0, 3, 1, 2] if unit == "lstm" else [1, 0, 2]
    parameters = dict(recurrent.named_parameters())

    def gates(name: str) -> Tensor:
        blocks = parameters[f"{name}_l{layer}"].detach().chunk(len(order))
        return torch.cat([blocks[index] for index in order]).unsqueeze(0)

    biases = torch.cat([gates("bias_ih"), gates("bias_hh")], dim=1)
    return [graph.weight(value) for value in (gates("weight_ih"), gates("weight_hh"), biases)]


def _add_context(graph: _Graph, device: ContextDevice) -> None:
    """Windows are gathered as [step, batch * time]: memory grows with the block, so blocks are to be short."""
    count, before = device.context_samples, device.context_samples - 1
    heard = graph.add("Concat", graph.input("past", ["batch", before]), "dry", axis=1)
    shape_of_dry = graph.add("Shape", "dry")
    time = graph.slice(shape_of_dry, 1, 2, 0)
    zero, one = (graph.scalar(value) for value in (0, 1))
    starts = graph.add("Range", zero, graph.add("Squeeze", time, graph.integers(0)), one)
    steps = graph.add("Unsqueeze", graph.integers(*range(count)), graph.integers(1))
    windows = graph.add("Gather", heard, graph.add("Add", steps, starts), axis=1)
    x = graph.add("Transpose", windows, perm=[1, 0, 2])
    x = graph.add("Reshape", x, graph.integers(count, -1, 1))
    if device.num_knobs:
        knobs = graph.add("Unsqueeze", "knobs", graph.integers(1))
        knobs = graph.add(
            "Expand", knobs, graph.add("Concat", graph.integers(1), time, graph.integers(1), axis=0)
        )
        knobs = graph.add("Reshape", knobs, graph.integers(1, -1, device.num_knobs))
        knobs = graph.add("Expand", knobs, graph.integers(count, 1, 1))
        x = graph.add("Concat", x, knobs, axis=2)
    weights = _recurrent_weights(graph, device.recurrent, "lstm", 0)
    graph.add_many("LSTM", ["", "features"], x, *weights, hidden_size=device.hidden_size)
    wet = graph.add("MatMul", "features", graph.weight(device.head.weight.t()))
    wet = graph.add("Add", wet, graph.weight(device.head.bias))
    graph.output(graph.add("Reshape", wet, shape_of_dry), "wet", ["batch", "time"])
    graph.output(graph.slice(heard, -before, END, 1), "past_after", ["batch", before])


def _add_wavenet(graph: _Graph, device: WaveNetDevice) -> None:
    condition = x = graph.add("Unsqueeze", "dry", graph.integers(1))
    head: str | None = None
    after: list[tuple[str, str, list[str | int]]] = []
    for index, stack in enumerate(device.layer_stacks):
        is_last_stack = index == len(device.channels) - 1
        x = graph.add("Conv", x, graph.weight(stack.input_weight.unsqueeze(-1)))
        for layer, past in enumerate(stack.past_samples):
            name = f"past_{index * len(stack.dilations) + layer}"
            shape: list[str | int] = ["batch", device.channels[index], past]
            heard = graph.add("Concat", graph.input(name, shape), x, axis=2)
            after.append((graph.slice(heard, -past, END, 2), f"{name}_after", shape))
            condition_weight = stack.condition_weight[layer]
            z = graph.add(
                "Conv",
                heard,
                graph.weight(stack.conv_weight[layer]),
                graph.weight(stack.conv_bias[layer]),
                dilations=[stack.dilations[layer]],
            )
            mixed = graph.add("Conv", condition, graph.weight(condition_weight[:, :1].unsqueeze(-1)))
            z = graph.add("Add", z, mixed)
            if device.num_knobs:
                shift = graph.add("MatMul", "knobs", graph.weight(condition_weight[:, 1:].t()))
                z = graph.add("Add", z, graph.add("Unsqueeze", shift, graph.integers(2)))
            z = graph.add("Tanh", z)
            head = z if head is None else graph.add("Add", head, z)
            if not (is_last_stack and layer == len(stack.dilations) - 1):
                outer = graph.add(
                    "Conv",
                    z,
                    graph.weight(stack.output_weight[layer].unsqueeze(-1)),
                    graph.weight(stack.output_bias[layer]),
                )
                x = graph.add("Add", x, outer)
        assert head is not None
        bias = [] if stack.head_bias is None else [graph.weight(stack.head_bias)]
        head = graph.add("Conv", head, graph.weight(stack.head_weight.unsqueeze(-1)), *bias)
    assert head is not None
    wet = graph.add(
        "Mul", graph.add("Squeeze", head, graph.integers(1)), graph.weight(torch.tensor([device.head_scale]))
    )
    graph.output(wet, "wet", ["batch", "time"])
    for value, name, shape in after:
        graph.output(value, name, shape)
