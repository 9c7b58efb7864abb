"""A dilated causal convolution network as a model of a device; Neural Amp Modeler's "standard" WaveNet by default.

A. Wright, E.-P. Damskägg, L. Juvela, V. Välimäki, "Real-Time Guitar Amplifier Emulation with Deep Learning" (2020),
without gates and with two stacks ("layer arrays") of decreasing width, as in S. Atkinson's neural-amp-modeler, whose
file format `.nam` can say every network of this module that has no knobs.

For each layer, with `d` its dilation, c the condition (dry signal and knobs) and x its input:

    z[t] = tanh(sum_j W_j x[t - (k - 1 - j) d] + M c[t] + b),    head[t] += z[t],    x'[t] = x[t] + L z[t] + l

A stack begins with a linear map to its width and ends with a linear map of the sum of all z, with which the next one's
sum begins. The last sum, scaled, is the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from enhancer.models.dilated_stack import Stack, run_stacks
from enhancer.models.recurrent import State, require_knobs

PIECE_VALUES = 1 << 16
"""Samples, over all rows, that are computed at a time where no gradient is wanted: bounds the memory."""


class LayerStack(nn.Module):
    """The weights of one stack of layers, of all its layers in one tensor each."""

    OF_ALL_LAYERS = ("conv_weight", "conv_bias", "condition_weight", "output_weight", "output_bias")
    """Parameters with a first axis that counts layers."""

    def __init__(
        self,
        num_inputs: int,
        num_conditions: int,
        num_channels: int,
        head_size: int,
        kernel_size: int,
        dilations: Sequence[int],
        has_head_bias: bool,
    ) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.kernel_size = kernel_size
        layers = len(self.dilations)
        self.input_weight = _uniform(num_inputs, num_channels, num_inputs)
        self.conv_weight = _uniform(
            num_channels * kernel_size, layers, num_channels, num_channels, kernel_size
        )
        self.conv_bias = _uniform(num_channels * kernel_size, layers, num_channels)
        self.condition_weight = _uniform(num_conditions, layers, num_channels, num_conditions)
        self.output_weight = _uniform(num_channels, layers, num_channels, num_channels)
        self.output_bias = _uniform(num_channels, layers, num_channels)
        self.head_weight = _uniform(num_channels, head_size, num_channels)
        self.head_bias = _uniform(num_channels, head_size) if has_head_bias else None

    @property
    def past_samples(self) -> tuple[int, ...]:
        """Samples before the present one that each layer's convolution hears."""
        return tuple((self.kernel_size - 1) * dilation for dilation in self.dilations)

    def weights(self) -> Stack:
        """What `run_stacks` takes."""
        return Stack(
            self.dilations,
            self.input_weight,
            self.conv_weight,
            self.conv_bias,
            self.condition_weight,
            self.output_weight,
            self.output_bias,
            self.head_weight,
            self.head_bias,
        )

    def at_rest(
        self, inputs: Tensor, conditions: Tensor, head: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Every layer's input, the stack's output and its head where nothing changes over time: [B, C] each."""
        x = inputs @ self.input_weight.t()
        layer_inputs = []
        for layer in range(len(self.dilations)):
            layer_inputs.append(x)
            z = torch.tanh(
                x @ self.conv_weight[layer].sum(-1).t()
                + conditions @ self.condition_weight[layer].t()
                + self.conv_bias[layer]
            )
            head = z if head is None else head + z
            x = x + z @ self.output_weight[layer].t() + self.output_bias[layer]
        assert head is not None
        head = head @ self.head_weight.t()
        return layer_inputs, x, head if self.head_bias is None else head + self.head_bias


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    """PyTorch's usual start of convolutions and linear layers."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class WaveNetDevice(nn.Module):
    """13,801 parameters at the defaults. `channels` are the widths of the stacks; every stack has the same dilations.

    A state of None is endless silence before the first sample. The state that a call returns, the past input of each
    layer, makes the next call go on where it ended.
    """

    def __init__(
        self,
        num_knobs: int = 0,
        channels: Sequence[int] = (16, 8),
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        head_scale: float = 0.02,
    ) -> None:
        super().__init__()
        self.num_knobs = num_knobs
        self.channels = tuple(channels)
        self.kernel_size = kernel_size
        self.dilations = tuple(dilations)
        self.head_scale = head_scale
        self.stacks = nn.ModuleList()
        for index, width in enumerate(self.channels):
            is_last = index == len(self.channels) - 1
            self.stacks.append(
                LayerStack(
                    num_inputs=1 if index == 0 else self.channels[index - 1],
                    num_conditions=1 + num_knobs,
                    num_channels=width,
                    head_size=1 if is_last else self.channels[index + 1],
                    kernel_size=kernel_size,
                    dilations=self.dilations,
                    has_head_bias=is_last,
                )
            )

    @property
    def layer_stacks(self) -> list[LayerStack]:
        """The stacks in order."""
        return [stack for stack in self.stacks if isinstance(stack, LayerStack)]

    @property
    def stacked_parameters(self) -> list[nn.Parameter]:
        """Parameters whose first axis counts layers, each with a matrix or a vector of its own."""
        return [getattr(stack, name) for stack in self.layer_stacks for name in stack.OF_ALL_LAYERS]

    @property
    def receptive_field(self) -> int:
        """Samples that an output depends on, the present one included."""
        return 1 + len(self.channels) * (self.kernel_size - 1) * sum(self.dilations)

    def forward(
        self, dry: Tensor, knobs: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Dry signal [B, T] and knobs [B, K] -> estimate [B, T] of the wet signal, and the state after it.

        Raises ValueError where there are other knobs than the model has.
        """
        if self.num_knobs or knobs is not None:
            knobs = require_knobs(knobs, self.num_knobs, len(dry))
        if state is None:
            state = self.silence(len(dry), knobs)
        pieces = (
            [dry] if torch.is_grad_enabled() else dry.split(max(1, PIECE_VALUES // max(1, len(dry))), dim=1)
        )
        estimates = []
        for piece in pieces:
            head, state = run_stacks([stack.weights() for stack in self.layer_stacks], piece, knobs, state)
            estimates.append(self.head_scale * head)
        return (estimates[0] if len(estimates) == 1 else torch.cat(estimates, dim=1)), state

    def silence(self, num_rows: int, knobs: Tensor | None = None) -> State:
        """The state after endless silence at these knobs: for each layer [past, B, C], the same at all times."""
        reference = self.layer_stacks[0].input_weight
        inputs: Tensor = reference.new_zeros(num_rows, 1)
        conditions = inputs if knobs is None else torch.cat([inputs, knobs.to(inputs.dtype)], dim=1)
        head: Tensor | None = None
        past: list[Tensor] = []
        for stack in self.layer_stacks:
            with torch.autocast(inputs.device.type, enabled=False):
                layer_inputs, inputs, head = stack.at_rest(inputs, conditions, head)
            past += [
                x.expand(samples, *x.shape)
                for x, samples in zip(layer_inputs, stack.past_samples, strict=True)
            ]
        return tuple(past)
