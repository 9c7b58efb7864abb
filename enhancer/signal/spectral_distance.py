"""Distance of two waveforms in STFT magnitude, per example: spectral convergence and log-magnitude L1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from enhancer.signal.stft import power_spectrogram, windowed_frames
from enhancer.signal.types import PerWave, Wave

FLOOR_DB = -80.0
"""Bins are taken to be at least as loud as white noise of this RMS (dBFS) would make them.

The slope of a logarithm at nearly nothing is nearly infinite: without a floor that is audible, training would
be about the silence above the band of a lossy recording.
"""
QUIET_DB = -50.0
"""A target is taken to have at least the norm of white noise of this RMS (dBFS) where it is divided by."""


@runtime_checkable
class Resolution(Protocol):
    """One STFT resolution, in samples; `n_fft` is even and not below `win_length`."""

    @property
    def n_fft(self) -> int: ...
    @property
    def hop_length(self) -> int: ...
    @property
    def win_length(self) -> int: ...


def require_possible(resolutions: Sequence[Resolution]) -> None:
    """Raises ValueError where there is no resolution, or one that no STFT can have."""
    if not resolutions:
        raise ValueError("no STFT resolution given; needed at least one")
    for cfg in resolutions:
        if cfg.n_fft < cfg.win_length or cfg.n_fft % 2 or cfg.win_length < 1 or cfg.hop_length < 1:
            raise ValueError(
                f"impossible STFT resolution {cfg}; n_fft must be even and not below win_length, "
                "hop_length and win_length at least 1"
            )


def stft_distance(estimate: Wave, target: Wave, resolutions: Sequence[Resolution]) -> PerWave:
    """Spectral convergence plus log-magnitude distance, averaged over `resolutions`: [..., T] -> [...].

    Yamamoto et al. (2020), equation 6, per example.
    """
    distances = [spectral_distance(estimate, target, cfg) for cfg in resolutions]
    return torch.stack([convergence + log_distance for convergence, log_distance in distances]).mean(0)


def spectral_distance(estimate: Wave, target: Wave, cfg: Resolution) -> tuple[PerWave, PerWave]:
    """Spectral convergence and mean absolute difference of log magnitudes (nepers), [..., T] -> [...] each.

    convergence = || |Y| - |X| ||_F / || |Y| ||_F,   log distance = mean | ln |Y| - ln |X| | with estimate X
    and target Y: R. Yamamoto, E. Song, J.-M. Kim, "Parallel WaveGAN" (2020), equations 4 and 5.

    Here magnitudes are not below a floor (FLOOR_DB), and the divisor not below that of a quiet noise
    (QUIET_DB), so that a silent target asks for silence with a gradient of about the usual size. Magnitudes
    are those of an unnormalised Hann STFT. The gradient goes to the estimate only. Raises ValueError where
    the target asks for one.
    """
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("the target of a spectral distance requires a gradient; detach it")
    frames = windowed_frames(estimate, cfg.win_length, cfg.hop_length)
    power_target = power_spectrogram(target, cfg.win_length, cfg.hop_length, cfg.n_fft)
    floor = noise_power(FLOOR_DB, cfg.win_length)
    quiet_norm = math.sqrt(power_target.shape[-2:].numel() * noise_power(QUIET_DB, cfg.win_length))
    return _SpectralDistance.apply(frames, power_target, cfg.n_fft, floor, quiet_norm)


def noise_power(level_db: float, window_samples: int) -> float:
    """Mean squared STFT magnitude of white noise at an RMS of `level_db` dBFS, any bin, any n_fft."""
    # The energy of a periodic Hann window is 3/8 of its length.
    return 10 ** (level_db / 10) * 0.375 * window_samples


class _SpectralDistance(torch.autograd.Function):
    """The two distances of windowed frames, with their gradient written out.

    torch's own would run a full complex FFT backwards where one real inverse FFT does, and keep a dozen
    spectrograms: three times the time and memory on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, frames: Tensor, power_target: Tensor, n_fft: int, floor: float, quiet_norm: float
    ) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.rfft(frames, n=n_fft)
        power = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
        magnitude = power.clamp_(min=floor).sqrt_()
        magnitude_target = power_target.clamp(min=floor).sqrt_()
        log_distance = (magnitude / magnitude_target).log_().abs_().mean((-2, -1))
        norm = torch.linalg.vector_norm(magnitude_target, dim=(-2, -1)).clamp(min=quiet_norm)
        difference = magnitude - magnitude_target
        error = torch.linalg.vector_norm(difference, dim=(-2, -1))
        ctx.save_for_backward(spectrum, magnitude, difference, error, norm)
        ctx.sizes = (frames.shape[-1], n_fft, floor)
        return error / norm, log_distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_convergence: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        spectrum, magnitude, difference, error, norm = ctx.saved_tensors
        window_samples, n_fft, floor = ctx.sizes
        # The norm has no slope where estimate and target agree in every bin; 0 is its subgradient.
        slope = torch.where(error > 0, grad_convergence / (error * norm), 0.0)[..., None, None]
        share = (grad_log / magnitude.shape[-2:].numel())[..., None, None]
        # With m = |X| and d = m - |Y|: dL/dm = slope * d + share * sign(d) / m,  and  dL/d(m^2) = dL/dm / (2 m).
        by_power = (share * difference.sign()).div_(magnitude).addcmul_(slope, difference)
        # Which way the root of the floor is rounded differs between processors.
        at_floor = magnitude <= math.sqrt(floor) * (1 + 1e-6)
        by_power.div_(magnitude).mul_(0.5).masked_fill_(at_floor, 0.0)
        # d(m^2)/dX is 2 X; irfft counts every bin but the first and the last twice, which is that 2.
        by_power[..., 0] *= 2
        by_power[..., -1] *= 2
        by_frame = torch.fft.irfft(by_power * spectrum, n=n_fft, norm="forward")[..., :window_samples]
        return by_frame, None, None, None, None
