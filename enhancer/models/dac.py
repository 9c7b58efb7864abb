"""A neural audio codec of the structure of the Descript Audio Codec: encoder, residual vector quantiser, decoder.

R. Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (2023). The names of the weights are those of
transformers' `DacModel`, so weights of one load into the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enhancer.models.vector_quantizer import ResidualVectorQuantizer, VectorQuantizer

DILATIONS = (1, 3, 9)
KERNEL_SIZE = 7
SNAKE_EPSILON = 1e-9
START_GAIN = 0.7
"""Of each layer on white noise at the start; sound, whose neighbouring samples are alike, passes at about its level."""
ENTRY_STD = 0.1
"""Of a codebook's values at the start: about the RMS of music."""


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha with an alpha for each channel, [B, C, T] -> [B, C, T].

    L. Ziyin, T. Hartwig, M. Ueda, "Neural Networks Fail to Learn Periodic Functions and How to Fix It" (2020).
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, num_channels, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        return _SnakeFunction.apply(hidden, self.alpha)


class _SnakeFunction(torch.autograd.Function):
    """Keeps its input alone for the way back; torch's own would keep four tensors of that size."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, alpha)
        return (alpha * hidden).sin_().square_().mul_((alpha + SNAKE_EPSILON).reciprocal()).add_(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, alpha = ctx.saved_tensors
        inverse = (alpha + SNAKE_EPSILON).reciprocal()
        double_sine = (2 * alpha * hidden).sin_()
        by_hidden = by_alpha = None
        if ctx.needs_input_grad[1]:
            # sin^2 = (1 - cos 2x) / 2
            square = (2 * alpha * hidden).cos_().neg_().add_(1).mul_(0.5 * inverse)
            slope = (double_sine * hidden).sub_(square).mul_(inverse)
            by_alpha = slope.mul_(gradient).sum((0, 2), keepdim=True)
        if ctx.needs_input_grad[0]:
            by_hidden = double_sine.mul_(alpha * inverse).add_(1).mul_(gradient)
        return by_hidden, by_alpha


class ResidualUnit(nn.Module):
    """Snake, dilated convolution, snake, pointwise convolution, around which the input is added."""

    def __init__(self, num_channels: int, dilation: int) -> None:
        super().__init__()
        padding = (KERNEL_SIZE - 1) * dilation // 2
        self.snake1 = Snake(num_channels)
        self.conv1 = nn.Conv1d(num_channels, num_channels, KERNEL_SIZE, dilation=dilation, padding=padding)
        self.snake2 = Snake(num_channels)
        self.conv2 = nn.Conv1d(num_channels, num_channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv2(self.snake2(self.conv1(self.snake1(hidden))))


class EncoderBlock(nn.Module):
    """Three residual units, then half the frames or fewer with twice the channels."""

    def __init__(self, num_channels: int, stride: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(num_channels, d) for d in DILATIONS)
        self.snake1 = Snake(num_channels)
        self.conv1 = nn.Conv1d(num_channels, 2 * num_channels, 2 * stride, stride, math.ceil(stride / 2))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.res_unit3(self.res_unit2(self.res_unit1(hidden)))
        return self.conv1(self.snake1(hidden))


class DecoderBlock(nn.Module):
    """Twice the frames or more with half the channels, then three residual units."""

    def __init__(self, num_channels: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(num_channels)
        self.conv_t1 = nn.ConvTranspose1d(
            num_channels, num_channels // 2, 2 * stride, stride, math.ceil(stride / 2)
        )
        units = (ResidualUnit(num_channels // 2, d) for d in DILATIONS)
        self.res_unit1, self.res_unit2, self.res_unit3 = units

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv_t1(self.snake1(hidden))
        return self.res_unit3(self.res_unit2(self.res_unit1(hidden)))


class DacEncoder(nn.Module):
    """Waveform [B, 1, T] -> latents [B, D, T / hop]; channels double at every stride, from `width` on."""

    def __init__(self, width: int, strides: Sequence[int], latent_size: int | None = None) -> None:
        super().__init__()
        channels = [width << level for level in range(len(strides) + 1)]
        self.conv1 = nn.Conv1d(1, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.block = nn.ModuleList(
            EncoderBlock(num_channels, stride)
            for num_channels, stride in zip(channels[:-1], strides, strict=True)
        )
        self.snake1 = Snake(channels[-1])
        self.conv2 = nn.Conv1d(channels[-1], latent_size or channels[-1], 3, padding=1)

    def forward(self, wave: Tensor) -> Tensor:
        hidden = self.conv1(wave)
        for block in self.block:
            hidden = block(hidden)
        return self.conv2(self.snake1(hidden))

    def stages(self, blocks: Iterable[int]) -> list[tuple[nn.Module, bool]]:
        """The encoder up to the last of `blocks` as modules to call in turn, on [B, 1, T].

        True stands beside those whose output is a feature: the residual units of `blocks`. Raises ValueError for a
        block that the encoder has not.
        """
        wanted = sorted(set(blocks))
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(self.block):
            raise ValueError(
                f"encoder blocks {wanted} are asked for; needed some of {list(range(len(self.block)))}, such as [0, 1]"
            )
        stages: list[tuple[nn.Module, bool]] = [(self.conv1, False)]
        for number, block in enumerate(list(self.block)[: wanted[-1] + 1]):
            assert isinstance(block, EncoderBlock)
            units = (block.res_unit1, block.res_unit2, block.res_unit3)
            stages += [(unit, number in wanted) for unit in units]
            if number < wanted[-1]:
                stages.append((nn.Sequential(block.snake1, block.conv1), False))
        return stages


class DacDecoder(nn.Module):
    """Latents [B, D, N] -> waveform [B, 1, N * hop] within +-1; channels halve at every stride, from `width` on."""

    def __init__(self, latent_size: int, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(latent_size, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.block = nn.ModuleList(
            DecoderBlock(width >> level, stride) for level, stride in enumerate(strides)
        )
        last = width >> len(strides)
        self.snake1 = Snake(last)
        self.conv2 = nn.Conv1d(last, 1, KERNEL_SIZE, padding=KERNEL_SIZE // 2)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.conv1(latents)
        for block in self.block:
            hidden = block(hidden)
        return self.conv2(self.snake1(hidden)).tanh()


class Dac(nn.Module):
    """The codec: waveform in, waveform out.

    `stride_samples` and `context_samples` as in `MaskUNet`: a recording may be cut into chunks with them.

    Args:
        encoder_width: channels of the encoder before its first stride.
        decoder_width: channels of the decoder before its first stride; divisible by 2 for each.
        strides: of the encoder, even; the decoder has them backwards.
        num_codebooks: of the residual quantiser.
        codebook_size: entries of each.
        codebook_dim: dimensions of an entry.
    """

    def __init__(
        self,
        encoder_width: int = 64,
        decoder_width: int = 1536,
        strides: Sequence[int] = (2, 4, 8, 8),
        num_codebooks: int = 9,
        codebook_size: int = 1024,
        codebook_dim: int = 8,
    ) -> None:
        super().__init__()
        if any(stride < 2 or stride % 2 for stride in strides) or decoder_width % (1 << len(strides)):
            raise ValueError(
                f"strides are {list(strides)} and decoder_width is {decoder_width}; needed even strides, and a width "
                f"that {len(strides)} of them can halve, such as {1 << (len(strides) + 3)}"
            )
        latent_size = encoder_width << len(strides)
        self.encoder = DacEncoder(encoder_width, strides)
        self.decoder = DacDecoder(latent_size, decoder_width, strides[::-1])
        self.quantizer = ResidualVectorQuantizer(latent_size, num_codebooks, codebook_size, codebook_dim)
        self.stride_samples = math.prod(strides)
        self.context_samples = _context_samples(strides)
        self.apply(initialise)

    def forward(self, wave: Tensor, num_codebooks: Tensor | None = None) -> Any:
        """The waveform [B, T] as the codec gives it back, [B, T].

        With `num_codebooks`, int64 [B], in training: that, the commitment loss and the codebook loss (scalars) of rows
        that use so many codebooks each.
        """
        quantised, _, commitment, codebook = self.quantizer(self._latents(wave), num_codebooks)
        estimate = self._decoded(quantised, wave.shape[-1])
        return estimate if num_codebooks is None else (estimate, commitment, codebook)

    def encode(self, wave: Tensor) -> Tensor:
        """Codes [B, Q, N] of a waveform [B, T], N = ceil(T / hop)."""
        return self.quantizer(self._latents(wave))[1]

    def decode(self, codes: Tensor, num_samples: int) -> Tensor:
        """The waveform [B, T] of codes [B, Q, N]; Q may be fewer codebooks than there are."""
        return self._decoded(self.quantizer.from_codes(codes), num_samples)

    def _latents(self, wave: Tensor) -> Tensor:
        return self.encoder(F.pad(wave, (0, -wave.shape[-1] % self.stride_samples))[:, None])

    def _decoded(self, quantised: Tensor, num_samples: int) -> Tensor:
        return self.decoder(quantised)[:, 0, :num_samples]


def _context_samples(strides: Sequence[int]) -> int:
    """Samples on each side that one output sample hears: what each layer reaches, times the hop it works at."""
    units = sum((KERNEL_SIZE - 1) * dilation // 2 for dilation in DILATIONS)
    hops = [math.prod(strides[:level]) for level in range(len(strides) + 1)]
    # Encoder and decoder have the same layers at every hop; a strided kernel reaches a stride to each side.
    blocks = sum(units * hop + stride * hop for hop, stride in zip(hops[:-1], strides, strict=True))
    ends = (KERNEL_SIZE // 2) * hops[0] * 2 + (1 + KERNEL_SIZE // 2) * hops[-1]
    return 2 * blocks + ends


def initialise(module: nn.Module) -> None:
    """Weights with which the level of a sound stays about the same from layer to layer, and entries of its size.

    DAC's own, all of the same small spread, are meant for runs of 250,000 steps: latents hardly differ at first, and in
    a short run all of them stay with the same few entries.
    """
    if isinstance(module, (DacEncoder, DacDecoder, EncoderBlock, DecoderBlock, VectorQuantizer)):
        for child in module.children():
            if isinstance(child, nn.Conv1d):
                _keep_level(child, child.weight[0].numel())
            elif isinstance(child, nn.ConvTranspose1d):
                # Of its kernel two taps meet at every output sample.
                _keep_level(child, 2 * child.in_channels)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=ENTRY_STD)


def _keep_level(conv: nn.Conv1d | nn.ConvTranspose1d, num_inputs: int) -> None:
    nn.init.normal_(conv.weight, std=START_GAIN * num_inputs**-0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
