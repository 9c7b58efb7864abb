"""Losses of an adversarial game over judgements: scores and features, as discriminators give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from enhancer.losses.features import relative_distance

Judgements = Sequence[tuple[Tensor, Sequence[Tensor]]]
BOUNDS = (0.0, 2.0)
"""Of the hinge loss: 0 when every target scores above 1 and every estimate below -1, 2 when nothing is told apart."""


def hinge_loss(targets: Judgements, estimates: Judgements) -> Float[Tensor, ""]:
    """What the discriminator descends: mean relu(1 - target) + mean relu(1 + estimate), averaged over its parts.

    J. H. Lim, J. C. Ye, "Geometric GAN" (2017).
    """
    parts = [
        F.relu(1 - target.float()).mean() + F.relu(1 + estimate.float()).mean()
        for (target, _), (estimate, _) in zip(targets, estimates, strict=True)
    ]
    return torch.stack(parts).mean()


def adversarial_loss(estimates: Judgements) -> Float[Tensor, ""]:
    """What the generator descends: minus the mean score of what it made, averaged over the parts."""
    return -torch.stack([scores.float().mean() for scores, _ in estimates]).mean()


def feature_loss(targets: Judgements, estimates: Judgements) -> Float[Tensor, ""]:
    """Mean over all features of the discriminator of mean |estimate - target| / mean |target|, per row.

    K. Kumar et al., "MelGAN" (2019), equation 4, with each feature divided by its own size, as in `FeatureMatching`.
    """
    distances = [
        relative_distance(found, wanted.detach())
        for (_, wanteds), (_, founds) in zip(targets, estimates, strict=True)
        for wanted, found in zip(wanteds, founds, strict=True)
    ]
    return torch.stack(distances).mean()
