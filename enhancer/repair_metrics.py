"""How near a repaired recording is to the original below a cutoff, per row: log-mel, STFT and log-spectral distance.

Each row has a cutoff of its own, above which nothing is left that could be restored; bins from there on do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from enhancer.signal.mel import MelSpectrogram, mel_filterbank
from enhancer.signal.spectral_distance import (
    FLOOR_DB,
    QUIET_DB,
    Resolution,
    noise_power,
    require_possible,
)
from enhancer.signal.stft import power_spectrogram
from enhancer.signal.types import PerRow, WaveBatch

LSD_WINDOW_SAMPLES, LSD_HOP_SAMPLES = 2048, 512
DISTANCES = ("log_mel_distance_db", "stft_distance", "log_spectral_distance_db")


class RepairDistance:
    """The distances in DISTANCES, of bins below a cutoff.

    Args:
        mel: of the log-mel distance, the mean absolute difference in dB over bands that end below the cutoff.
        num_mels: its bands.
        rate_hz: of all waveforms.
        resolutions: of the STFT distance: spectral convergence plus log-magnitude L1 (nepers), as the training loss.

    The log-spectral distance is the mean over frames of the RMS over bins of the difference in dB (A. Gray, J. Markel,
    "Distance measures for speech processing", 1976, d2). Magnitudes are not below FLOOR_DB.
    """

    def __init__(
        self, mel: MelSpectrogram, num_mels: int, rate_hz: int, resolutions: Sequence[Resolution]
    ) -> None:
        require_possible(resolutions)
        self.mel = mel
        self.rate_hz = rate_hz
        self.resolutions = tuple(resolutions)
        bands = mel_filterbank(rate_hz, mel.n_fft, num_mels) > 0
        bins_hz = _bins_hz(mel.n_fft, rate_hz, bands.device)
        # Bands may be empty at low frequencies: they end at 0.
        self.band_ends_hz = (bands * bins_hz[:, None]).amax(0)

    def __call__(self, estimate: WaveBatch, target: WaveBatch, cutoff_hz: PerRow) -> dict[str, PerRow]:
        """[B, T], [B, T], Hz [B] -> each distance [B]."""
        distances = (self.log_mel, self.stft, self.log_spectral)
        return {
            name: distance(estimate, target, cutoff_hz)
            for name, distance in zip(DISTANCES, distances, strict=True)
        }

    def log_mel(self, estimate: WaveBatch, target: WaveBatch, cutoff_hz: PerRow) -> PerRow:
        """dB [B]."""
        is_below = self.band_ends_hz.to(cutoff_hz.device) < cutoff_hz[:, None]
        difference = (self.mel(estimate) - self.mel(target)).abs().mean(-1)
        return _mean(difference, is_below)

    def stft(self, estimate: WaveBatch, target: WaveBatch, cutoff_hz: PerRow) -> PerRow:
        """Nepers [B], averaged over the resolutions."""
        return torch.stack([self._stft(estimate, target, cutoff_hz, cfg) for cfg in self.resolutions]).mean(0)

    def log_spectral(self, estimate: WaveBatch, target: WaveBatch, cutoff_hz: PerRow) -> PerRow:
        """dB [B]."""
        floor = noise_power(FLOOR_DB, LSD_WINDOW_SAMPLES)
        ours, theirs = (
            power_spectrogram(wave, LSD_WINDOW_SAMPLES, LSD_HOP_SAMPLES, LSD_WINDOW_SAMPLES).clamp(min=floor)
            for wave in (estimate, target)
        )
        squares = (10 * (ours / theirs).log10()).square()
        is_below = _bins_hz(LSD_WINDOW_SAMPLES, self.rate_hz, cutoff_hz.device) < cutoff_hz[:, None]
        return _mean(squares, is_below[:, None].expand_as(squares)).sqrt().mean(-1)

    def _stft(self, estimate: WaveBatch, target: WaveBatch, cutoff_hz: PerRow, cfg: Resolution) -> PerRow:
        floor = noise_power(FLOOR_DB, cfg.win_length)
        ours, theirs = (
            power_spectrogram(wave, cfg.win_length, cfg.hop_length, cfg.n_fft).clamp(min=floor).sqrt()
            for wave in (estimate, target)
        )
        is_below = (_bins_hz(cfg.n_fft, self.rate_hz, cutoff_hz.device) < cutoff_hz[:, None])[:, None]
        count = is_below.sum(-1).squeeze(-1) * ours.shape[-2]
        quiet = (count * noise_power(QUIET_DB, cfg.win_length)).sqrt()
        error, norm = (
            torch.linalg.vector_norm(values * is_below, dim=(-2, -1)) for values in (ours - theirs, theirs)
        )
        log_distance = ((ours / theirs).log().abs() * is_below).sum((-2, -1)) / count
        return error / torch.maximum(norm, quiet) + log_distance


def _mean(
    values: Float[Tensor, "*batch bin"], is_counted: Bool[Tensor, "*batch bin"]
) -> Float[Tensor, "*batch"]:
    """Mean over the last axis of what counts; NaN where nothing does."""
    count = is_counted.sum(-1)
    total = values.where(is_counted, 0.0).sum(-1)
    return torch.where(count > 0, total / count.clamp(min=1), math.nan)


def _bins_hz(n_fft: int, rate_hz: int, device: torch.device) -> Float[Tensor, " bin"]:
    return torch.fft.rfftfreq(n_fft, 1 / rate_hz, device=device)
