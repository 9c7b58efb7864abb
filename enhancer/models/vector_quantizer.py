"""Residual vector quantisation with factorised codebooks of normalised entries, as in the Descript Audio Codec.

J. Yu et al., "Vector-quantized Image Modeling with Improved VQGAN" (2021), section 3.2; N. Zeghidour et al.,
"SoundStream" (2021), section 3.3. The names of the weights are those of transformers' `DacModel`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """The nearest entry of a codebook, by angle, in a space of few dimensions: [B, D, N] -> [B, D, N]."""

    def __init__(self, latent_size: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(latent_size, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, latent_size, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantised latents [B, D, N], codes [B, N], and commitment and codebook loss of each row [B].

        The gradient of the quantised latents goes straight through to the latents.
        """
        projected = self.in_proj(latents)
        codes = self.codes(projected.detach())
        chosen = self.codebook(codes).transpose(1, 2)
        commitment = (projected - chosen.detach()).float().square().mean((1, 2))
        codebook = (chosen - projected.detach()).float().square().mean((1, 2))
        straight = projected + (chosen - projected).detach()
        return self.out_proj(straight), codes, commitment, codebook

    @torch.no_grad()
    def codes(self, projected: Tensor) -> Tensor:
        """Codes [B, N] of projected latents [B, K, N]. In float32: a bf16 product would choose other entries."""
        with torch.autocast(projected.device.type, enabled=False):
            vectors = F.normalize(projected.float().transpose(1, 2), dim=-1)
            entries = F.normalize(self.codebook.weight.float(), dim=-1)
            # Of unit vectors the nearest is the one with the largest product.
            return (vectors @ entries.t()).argmax(-1)


class ResidualVectorQuantizer(nn.Module):
    """Quantisers in a row, each of what those before it have left over."""

    def __init__(self, latent_size: int, num_codebooks: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(
            VectorQuantizer(latent_size, codebook_size, codebook_dim) for _ in range(num_codebooks)
        )

    def forward(
        self, latents: Tensor, num_codebooks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantised latents [B, D, N], codes [B, Q, N], commitment and codebook loss, scalars over used codebooks.

        `num_codebooks`, int64 [B]: how many of them each row uses; all when None.
        """
        quantised, residual = torch.zeros_like(latents), latents
        codes, commitments, codebooks = [], [], []
        for number, quantizer in enumerate(self.quantizers):
            part, chosen, commitment, codebook = quantizer(residual)
            used = part.new_ones(len(part)) if num_codebooks is None else (number < num_codebooks).to(part)
            quantised = quantised + part * used[:, None, None]
            residual = residual - part
            codes.append(chosen)
            commitments.append((commitment * used).mean())
            codebooks.append((codebook * used).mean())
        return quantised, torch.stack(codes, 1), torch.stack(commitments).sum(), torch.stack(codebooks).sum()

    def from_codes(self, codes: Tensor) -> Tensor:
        """Quantised latents [B, D, N] of the first codebooks' codes [B, Q, N]."""
        parts = [
            quantizer.out_proj(quantizer.codebook(chosen).transpose(1, 2))  # type: ignore[operator]
            for quantizer, chosen in zip(self.quantizers, codes.unbind(1), strict=False)
        ]
        return torch.stack(parts).sum(0)
