"""The network of CDPAM, a perceptual distance of recordings learned from listeners' judgements.

P. Manocha, Z. Jin, R. Zhang, A. Finkelstein, "CDPAM: Contrastive learning for perceptual audio similarity" (2021). The
names of the weights are those of the published checkpoint, of which only these parts are used; its network is told in
the authors' code and rebuilt here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE_HZ = 22_050
NUM_LAYERS, LAYERS_PER_STEP, WIDTH, KERNEL_SIZE = 16, 4, 64, 15
ENCODER_SLOPE = 0.1
DISTANCE_WIDTHS = (512, 256, 64, 16, 4)
UNUSED = "model_classif."


class CdpamEncoder(nn.Module):
    """Waveform [B, T] -> [B, 512] of unit length: the acoustic half of the time average of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        steps = [layer // LAYERS_PER_STEP for layer in range(1, NUM_LAYERS + 1)]
        widths = [1, *(WIDTH << step for step in steps)]
        pairs = list(pairwise(widths))
        self.encoder = nn.ModuleList(nn.Conv1d(a, b, KERNEL_SIZE, padding=KERNEL_SIZE // 2) for a, b in pairs)
        self.ebatch = nn.ModuleList(nn.BatchNorm1d(b) for _, b in pairs)

    def forward(self, wave: Tensor) -> Tensor:
        hidden = wave[:, None]
        for number, (conv, norm) in enumerate(zip(self.encoder, self.ebatch, strict=True), start=1):
            hidden = F.leaky_relu(norm(conv(hidden)), ENCODER_SLOPE)
            if number % LAYERS_PER_STEP == 0:
                hidden = hidden[:, :, ::2]
        return F.normalize(hidden.mean(-1).chunk(2, dim=1)[0], dim=1)


class CdpamDistance(nn.Module):
    """Two vectors [B, 512] -> [B]: absolute differences after each of four layers, with a weight for each channel."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(DISTANCE_WIDTHS))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.LeakyReLU() if b > DISTANCE_WIDTHS[-1] else nn.Identity())
            for a, b in pairs
        )
        self.chan_w = nn.ParameterList(nn.Parameter(torch.ones(b)) for _, b in pairs)

    def forward(self, reference: Tensor, other: Tensor) -> Tensor:
        distances = []
        for layer, weight in zip(self.convs, self.chan_w, strict=True):
            reference, other = layer(reference), layer(other)
            distances.append(((other - reference) * weight).abs().sum(1))
        return torch.stack(distances).sum(0)


class Cdpam(nn.Module):
    """Distance [B] of two waveforms [B, T] at RATE_HZ whose full scale is 32768, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.base_encoder = CdpamEncoder()
        self.model_dist = CdpamDistance()
        self.eval()

    def forward(self, reference: Tensor, other: Tensor) -> Tensor:
        return self.model_dist(self.base_encoder(reference), self.base_encoder(other))


def cdpam_of(weights: Mapping[str, Tensor]) -> Cdpam:
    """The network with the published checkpoint's weights. Raises ValueError that lists the names that do not fit."""
    found = {name: value for name, value in weights.items() if not name.startswith(UNUSED)}
    with torch.device("meta"):
        wanted = Cdpam().state_dict()
    wrong = {
        "missing": [name for name in wanted if name not in found],
        "not known": [name for name in found if name not in wanted],
        "of another shape": [
            name for name in wanted if name in found and found[name].shape != wanted[name].shape
        ],
    }
    if any(wrong.values()):
        raise ValueError(
            "weights that are not CDPAM's: "
            + "; ".join(f"{what} {', '.join(names[:6])}" for what, names in wrong.items() if names)
        )
    network = Cdpam()
    network.load_state_dict(found)
    return network.requires_grad_(False)
