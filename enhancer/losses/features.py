"""Feature matching: distance of two waveforms as the layers of a trained network hear them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enhancer.signal.types import WaveBatch

QUIET = 1e-3
"""A feature of the target is taken to have at least this mean magnitude where it is divided by."""


class FeatureMatching:
    """Mean over the features of mean |f(estimate) - f(target)| / mean |f(target)|, each per row, averaged over rows.

    Divided by the feature's own size, every layer counts alike, and the value says by what share the two differ. The
    target is heard without gradients. With checkpointing the memory for the way back is one feature and its target for
    each layer: what lies between two features is computed again when their gradient is.

    Args:
        stages: modules to call in turn on [B, 1, T], such as of `DacEncoder.stages`; True beside those whose output is
            a feature, the last one among them. Their parameters are frozen here: the loss trains what it judges alone.
        is_checkpointed: False keeps everything that the way back needs.

    Raises ValueError where the last stage gives no feature.
    """

    def __init__(self, stages: Sequence[tuple[nn.Module, bool]], is_checkpointed: bool = True) -> None:
        if not stages or not stages[-1][1]:
            raise ValueError(
                f"the last of {len(stages)} stages is no feature, so it would be computed for nothing; leave it out"
            )
        self.is_checkpointed = is_checkpointed
        self._segments: list[nn.Sequential] = []
        """What lies between two features, the second one included."""
        between: list[nn.Module] = []
        for stage, is_feature in stages:
            between.append(stage)
            if is_feature:
                self._segments.append(nn.Sequential(*between).eval().requires_grad_(False))
                between = []

    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""
        for segment in self._segments:
            segment.to(device)

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> scalar, in float32."""
        found, wanted = estimate.float()[:, None], target.float()[:, None]
        distances = []
        with torch.autocast(estimate.device.type, enabled=False):
            for segment in self._segments:
                with torch.no_grad():
                    wanted = segment(wanted)
                if self.is_checkpointed and found.requires_grad:
                    found = checkpoint(segment, found, use_reentrant=False, preserve_rng_state=False)
                else:
                    found = segment(found)
                distances.append(relative_distance(found, wanted))
        return torch.stack(distances).mean()


def relative_distance(found: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """mean |found - wanted| / mean |wanted|, per row [B, ...], averaged over the rows, in float32."""
    found, wanted = found.float().flatten(1), wanted.float().flatten(1)
    size = wanted.abs().mean(1).clamp(min=QUIET)
    return ((found - wanted).abs().mean(1) / size).mean()
