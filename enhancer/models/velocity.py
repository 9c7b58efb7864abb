"""The velocity network of stage 2: how latents of damaged recordings move towards those of clean ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.models.convnext import EMBEDDING_SIZE
from enhancer.models.mel_autoencoder import FrameNetwork
from enhancer.models.stage1 import Normaliser

NUM_FREQUENCIES = 16
HIGHEST_FREQUENCY = 100.0
HIDDEN_SIZE = 128
Frames = Float[Tensor, "batch frame channel"]
PerRow = Float[Tensor, " batch"]


class FlowEmbedding(nn.Module):
    """Time, prior mix and strength, [B] each, as a vector [B, EMBEDDING_SIZE]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2 * NUM_FREQUENCIES + 3, HIDDEN_SIZE)
        self.second = nn.Linear(HIDDEN_SIZE, EMBEDDING_SIZE)

    def forward(self, time: PerRow, prior_mix: PerRow, strength: PerRow) -> Tensor:
        rates = torch.logspace(0, 1, NUM_FREQUENCIES, HIGHEST_FREQUENCY, device=time.device)
        angles = time.float()[:, None] * rates
        told = torch.stack([time, prior_mix, strength], dim=-1).float()
        features = torch.cat([angles.sin(), angles.cos(), told], dim=-1)
        return F.silu(self.second(F.silu(self.first(features))))


class VelocityNetwork(nn.Module):
    """ConvNeXt blocks over frames of latents and of a mel spectrogram. Starts at a velocity of zero.

    All that it normalises lies in one frame: a crop and a whole recording are the same to it. `latents` makes latents
    of stage 1 of mean 0 and spread 1, by what training has seen of them. `reach_frames`: as in `FrameNetwork`.
    """

    def __init__(
        self,
        num_latents: int = 64,
        num_mels: int = 128,
        width: int = 1024,
        num_blocks: int = 8,
        scale: float = 4.0,
        kernel_size: int = 15,
        recompute_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.latents = Normaliser(num_latents, mean=0.0, mean_square=1.0)
        self.embedding = FlowEmbedding()
        self.network = FrameNetwork(
            num_latents + num_mels,
            width,
            num_latents,
            num_blocks,
            scale,
            recompute_blocks,
            kernel_size,
            is_conditioned=True,
        )
        self.reach_frames = self.network.reach_frames
        nn.init.zeros_(self.network.head.weight)
        nn.init.zeros_(self.network.head.bias)

    def forward(
        self, state: Frames, condition: Frames, time: PerRow, prior_mix: PerRow, strength: PerRow
    ) -> Frames:
        """Velocities of normalised latents [B, N, L] beside normalised mel frames [B, N, M]."""
        embedding = self.embedding(time, prior_mix, strength)
        return self.network(torch.cat([state, condition], dim=-1), embedding)
