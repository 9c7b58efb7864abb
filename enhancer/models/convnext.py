"""A U-Net of ConvNeXt blocks over grids of features, channels last: one row of samples, or bins by frames.

The block is that of Z. Liu et al., "A ConvNet for the 2020s" (2022): a depthwise convolution, layer normalisation over
the channels of one place, and two pointwise layers. What differs, and why:

- Features lie as [batch, height, width, channel] throughout. Pointwise layers, and the layers that shorten and lengthen
  the grid (each takes a patch of it to one place, or back), are then plain `Linear`s without a copy of the features.
- Normalisation sees one place only, so that a long recording may be cut into chunks.
- Residual branches start at zero by their last layer, and the number of semitones scales and shifts what comes out of
  the normalisation (E. Perez et al., "FiLM", 2018), starting at zero too.
- What a branch adds gets back the level that normalisation took out, and no layer outside of branches has a bias: twice
  the input gives twice the output, so that what is added to a quiet passage is as much quieter (docs/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_SIZE = 32
SEMITONES_SCALE = 12.0
NUM_SHIFT_FEATURES = 4
LEVEL_FLOOR = 1e-5
"""Levels of features from here down are one level."""

Sides = tuple[int, int]
"""Height and width of a patch or a kernel."""


class ShiftEmbedding(nn.Module):
    """What is told of the shift, as a vector: semitones [B] -> [B, EMBEDDING_SIZE]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_SHIFT_FEATURES, EMBEDDING_SIZE)
        self.second = nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE)

    def forward(self, semitones: Tensor) -> Tensor:
        shift = semitones.to(self.first.weight.dtype) / SEMITONES_SCALE
        features = torch.stack([shift, shift.abs(), shift.sign(), shift.square()], dim=-1)
        return F.silu(self.second(F.silu(self.first(features))))


class Block(nn.Module):
    """A ConvNeXt block; starts as the identity. Features [B, H, W, C], embedding [B, E] or None."""

    def __init__(self, channels: int, kernel: Sides, scale: float, is_conditioned: bool) -> None:
        super().__init__()
        hidden = max(1, round(scale * channels))
        self.kernel = kernel
        self.depthwise = nn.Conv2d(
            channels, channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=channels, bias=False
        )
        self.norm = nn.LayerNorm(channels, eps=LEVEL_FLOOR**2)
        self.widen = nn.Linear(channels, hidden)
        self.narrow = nn.Linear(hidden, channels)
        self.condition = nn.Linear(EMBEDDING_SIZE, 2 * channels) if is_conditioned else None
        _start_at_zero(self.narrow)
        if self.condition is not None:
            _start_at_zero(self.condition)

    def forward(self, features: Tensor, embedding: Tensor | None) -> Tensor:
        # In channels-last memory both permutations are free.
        hidden = self.depthwise(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        level = (hidden.float().var(-1, correction=0, keepdim=True) + LEVEL_FLOOR**2).sqrt().to(hidden.dtype)
        hidden = self.norm(hidden)
        if self.condition is not None and embedding is not None:
            scale, shift = self.condition(embedding)[:, None, None].chunk(2, dim=-1)
            hidden = torch.addcmul(shift, hidden, 1 + scale)
        return features + level * self.narrow(F.gelu(self.widen(hidden)))


class Shorten(nn.Module):
    """Each patch of a grid becomes one place: [B, H, W, C] -> [B, H/h, W/w, C']."""

    def __init__(self, inputs: int, outputs: int, patch: Sides) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(inputs * patch[0] * patch[1], outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        rows, height, width, channels = features.shape
        high, wide = self.patch
        patches = features.reshape(rows, height // high, high, width // wide, wide, channels)
        if high > 1:
            patches = patches.transpose(2, 3)
        return self.linear(patches.reshape(rows, height // high, width // wide, high * wide * channels))


class Lengthen(nn.Module):
    """Each place of a grid becomes a patch: [B, H, W, C] -> [B, H h, W w, C']."""

    def __init__(self, inputs: int, outputs: int, patch: Sides) -> None:
        super().__init__()
        self.patch, self.outputs = patch, outputs
        self.linear = nn.Linear(inputs, outputs * patch[0] * patch[1], bias=False)

    def forward(self, features: Tensor) -> Tensor:
        rows, height, width, _ = features.shape
        high, wide = self.patch
        patches = self.linear(features).reshape(rows, height, width, high, wide, self.outputs)
        if high > 1:
            patches = patches.transpose(2, 3)
        return patches.reshape(rows, height * high, width * wide, self.outputs)


class ConvNextUNet(nn.Module):
    """Down through levels of blocks and up again, what came before a level added behind it.

    Args:
        channels: before the first level, and of each level.
        blocks: of each level, on the way down and again on the way up.
        patches: by which each level shortens the grid.
        kernel: of the depthwise convolutions, odd sides.
        scale: width inside the pointwise layers against the channels.
        is_conditioned: whether it hears the semitones.
        starts_at_zero: the network gives zeros at first.

    Raises ValueError where the lengths of these do not fit together.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        patches: Sequence[Sides],
        kernel: Sides,
        scale: float = 4.0,
        is_conditioned: bool = True,
        starts_at_zero: bool = True,
    ) -> None:
        super().__init__()
        if not len(channels) - 1 == len(blocks) == len(patches) >= 1:
            raise ValueError(
                f"{len(channels)} channels, {len(blocks)} blocks and {len(patches)} patches; needed one more channel "
                "than blocks, and as many patches as blocks"
            )
        if not all(side % 2 for side in kernel):
            raise ValueError(f"the kernel is {kernel}; needed odd sides")
        self.patches = tuple(patches)
        self.multiple: Sides = (math.prod(p[0] for p in patches), math.prod(p[1] for p in patches))
        """Heights and widths that the grid must be multiples of."""
        self.embedding = ShiftEmbedding() if is_conditioned else None

        def level(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, kernel, scale, is_conditioned) for _ in range(count))

        steps = list(zip(pairwise(channels), patches, strict=True))
        self.shorten = nn.ModuleList(Shorten(a, b, patch) for (a, b), patch in steps)
        self.down = nn.ModuleList(level(b, count) for b, count in zip(channels[1:], blocks, strict=True))
        self.up = nn.ModuleList(level(b, count) for b, count in zip(channels[1:], blocks, strict=True))
        self.lengthen = nn.ModuleList(Lengthen(b, a, patch) for (a, b), patch in steps)
        if starts_at_zero:
            first = self.lengthen[0]
            assert isinstance(first, Lengthen)
            nn.init.zeros_(first.linear.weight)

    def reach(self, axis: int) -> int:
        """Places on each side along `axis` (0 height, 1 width) that can influence one, itself not counted."""
        stride, reach = 1, 0
        for level, patch in enumerate(self.patches):
            stride *= patch[axis]
            count = len(self.down[level]) + len(self.up[level])  # type: ignore[arg-type]
            block = self.down[level][0] if len(self.down[level]) else None  # type: ignore[index, arg-type]
            half = block.kernel[axis] // 2 if isinstance(block, Block) else 0
            reach += count * half * stride
        # Of a patch any place may be asked of.
        return reach + stride

    def forward(self, features: Tensor, semitones: Tensor | None = None) -> Tensor:
        """Features [B, H, W, C] and semitones [B] -> [B, H, W, C]; H and W are multiples of `multiple`.

        Raises ValueError where the model hears semitones and gets none.
        """
        embedding = None
        if self.embedding is not None:
            if semitones is None:
                raise ValueError("the model hears by how many semitones was shifted; give semitones [B]")
            embedding = self.embedding(semitones)
        skips = []
        for shorten, blocks in zip(self.shorten, self.down, strict=True):
            skips.append(features)
            features = shorten(features)
            for block in blocks:  # type: ignore[attr-defined]
                features = block(features, embedding)
        ups = list(self.up)
        for level in reversed(range(len(self.patches))):
            for block in ups[level]:  # type: ignore[attr-defined]
                features = block(features, embedding)
            features = self.lengthen[level](features)
            # What comes before the first level is what the network hears, which is added by `predict` or not at all.
            if level:
                features = features + skips[level]
        return features


def _start_at_zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
