"""An autoencoder of log-mel spectrograms: a few latents for each frame, and back, with something more for a vocoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enhancer.models.convnext import Block

KERNEL_SIZE = 7
Frames = Float[Tensor, "batch frame channel"]


class FrameNetwork(nn.Module):
    """ConvNeXt blocks over frames, which all stay: [B, N, C] -> [B, N, C'].

    `reach_frames`: frames on each side that can influence one. The last layer is `head`. With `is_conditioned` the
    blocks hear an embedding [B, EMBEDDING_SIZE] too. With `recompute_blocks` only what goes into a block is kept for
    the backward pass, which computes the block again: the same gradients in less memory (T. Chen et al., "Training
    deep nets with sublinear memory cost", 2016).
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        num_blocks: int,
        scale: float,
        recompute_blocks: bool = False,
        kernel_size: int = KERNEL_SIZE,
        is_conditioned: bool = False,
    ) -> None:
        super().__init__()
        self.recompute_blocks = recompute_blocks
        self.embed = nn.Conv1d(inputs, width, kernel_size, padding=kernel_size // 2)
        self.start = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, (1, kernel_size), scale, is_conditioned) for _ in range(num_blocks)
        )
        self.end = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        self.reach_frames = (1 + num_blocks) * (kernel_size // 2)

    def forward(self, features: Frames, embedding: Tensor | None = None) -> Frames:
        hidden = self.start(self.embed(features.transpose(1, 2)).transpose(1, 2))[:, None]
        for block in self.blocks:
            if self.recompute_blocks and torch.is_grad_enabled():
                # Nothing is random in a block.
                hidden = checkpoint(block, hidden, embedding, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = block(hidden, embedding)
        hidden = self.end(hidden[:, 0])
        with torch.autocast(hidden.device.type, enabled=False):  # Phases are not to be rounded to bf16.
            return F.linear(hidden.float(), self.head.weight.float(), self.head.bias.float())


class MelAutoencoder(nn.Module):
    """Mel frames to latents and back.

    Both ways are a linear map of one frame and blocks over several. The maps start as the mean over neighbouring bands
    and its way back, and the blocks at zero, so that a vocoder hears a coarse mel spectrogram from the first step on.

    Args:
        num_mels: bands.
        num_latents: of each frame.
        num_extra: channels that the decoder gives a vocoder beside the bands.
        width: channels of the blocks.
        num_blocks: of the encoder, and again of the decoder.
        scale: width inside the pointwise layers of a block against `width`.
        recompute_blocks: see `FrameNetwork`.
    """

    def __init__(
        self,
        num_mels: int = 128,
        num_latents: int = 64,
        num_extra: int = 32,
        width: int = 1024,
        num_blocks: int = 6,
        scale: float = 4.0,
        recompute_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.num_mels, self.num_extra = num_mels, num_extra
        self.to_latents = nn.Linear(num_mels, num_latents)
        self.to_mel = nn.Linear(num_latents, num_mels)
        blocks = (num_blocks, scale, recompute_blocks)
        self.encoder = FrameNetwork(num_mels, width, num_latents, *blocks)
        self.decoder = FrameNetwork(num_latents, width, num_mels + num_extra, *blocks)
        self.reach_frames = self.encoder.reach_frames + self.decoder.reach_frames
        with torch.no_grad():
            pooled = F.adaptive_avg_pool1d(torch.eye(num_mels)[None], num_latents)[0].T
            self.to_latents.weight.copy_(pooled)
            self.to_mel.weight.copy_(
                F.interpolate(torch.eye(num_latents)[None], num_mels, mode="linear")[0].T
            )
            for layer in (self.to_latents, self.to_mel):
                layer.bias.zero_()
            for layer, rows in ((self.encoder.head, slice(None)), (self.decoder.head, slice(0, num_mels))):
                layer.weight[rows].zero_()
                layer.bias[rows].zero_()

    def encode(self, mel: Frames) -> Frames:
        """Normalised mel frames [B, N, M] -> latents [B, N, L]."""
        return self.to_latents(mel) + self.encoder(mel)

    def decode(self, latents: Frames) -> tuple[Frames, Frames]:
        """Latents [B, N, L] -> mel frames [B, N, M], and all that a vocoder hears, [B, N, M + extra]."""
        change, extra = self.decoder(latents).split([self.num_mels, self.num_extra], dim=-1)
        mel = self.to_mel(latents) + change
        return mel, torch.cat([mel, extra], dim=-1)
