"""Multi-resolution STFT loss."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from enhancer.signal.spectral_distance import Resolution, require_possible, stft_distance
from enhancer.signal.types import WaveBatch


class MultiResolutionStft:
    """Spectral convergence plus log-magnitude L1, each per row, averaged over the resolutions and the rows.

    R. Yamamoto, E. Song, J.-M. Kim, "Parallel WaveGAN" (2020), equation 6, but with norms per example instead
    of over the whole batch: a loud row does not drown a quiet one, and the mean over ranks is the mean over
    rows. Raises ValueError where there is no resolution or an impossible one.
    """

    def __init__(self, resolutions: Sequence[Resolution]) -> None:
        require_possible(resolutions)
        self.resolutions = tuple(resolutions)

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> scalar."""
        return stft_distance(estimate, target, self.resolutions).mean()
