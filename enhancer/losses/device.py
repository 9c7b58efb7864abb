"""Losses of models of pedals and amplifiers, as that field writes them.

Their ratios are taken over the whole batch, [B, T] at once, as the error of a whole recording is: per row, a rest
between two riffs would weigh as much as the riffs. EPSILON (a power, -50 dBFS) keeps silence finite.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from enhancer.losses.a_weighting import a_weighting_taps
from enhancer.losses.waveform import waveform_l1, waveform_mse
from enhancer.signal.stft import windowed_frames
from enhancer.signal.types import WaveBatch

EPSILON = 1e-5
FEW_TAPS = 8
MAGNITUDE_FLOOR = 1e-6
"""Far below what 24 bits resolve in a spectrum: keeps the slope of a magnitude finite at silence."""

mse = waveform_mse
mae = waveform_l1


def esr(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Error-to-signal ratio: mean((t - e)^2) / (mean(t^2) + EPSILON).

    A. Wright, E.-P. Damskägg, V. Välimäki, "Real-Time Black-Box Modelling with Recurrent Neural Networks" (DAFx 2019),
    equation 9, without its pre-emphasis.
    """
    estimate, target = estimate.float(), target.float()
    return (target - estimate).square().mean() / (target.square().mean() + EPSILON)


def dc(estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
    """Difference in mean of each row, squared and averaged, over the power of the target.

    Equation 11 of the same paper.
    """
    estimate, target = estimate.float(), target.float()
    offset = target.mean(-1) - estimate.mean(-1)
    return offset.square().mean() / (target.square().mean() + EPSILON)


class PreemphasisedEsr:
    """ESR of the filtered signals: high frequencies count as the ear hears them, not as their little energy.

    `highpass` is y[n] = x[n] - coefficient x[n - 1] (equation 10 of the same paper); `a_weighting` a linear-phase FIR
    filter (A. Wright, V. Välimäki, "Perceptual Loss Function for Neural Modelling of Audio Systems", 2019). Raises
    ValueError for any other name.
    """

    hears_before = True
    """`WeightedLoss` passes on what came before the chunk."""

    def __init__(
        self,
        filter_name: str = "highpass",
        rate_hz: float | int = 44_100,
        coefficient: float | int = 0.85,
    ) -> None:
        if filter_name == "highpass":
            self.taps = torch.tensor([1.0, -coefficient])
        elif filter_name == "a_weighting":
            self.taps = torch.from_numpy(a_weighting_taps(rate_hz)).float()
        else:
            raise ValueError(f"pre-emphasis is {filter_name!r}; needed 'highpass' or 'a_weighting'")

    @property
    def num_before(self) -> int:
        """Samples before a chunk that its filtered samples depend on."""
        return len(self.taps) - 1

    def __call__(
        self,
        estimate: WaveBatch,
        target: WaveBatch,
        before: tuple[Float[Tensor, "batch past"], Float[Tensor, "batch past"]] | None = None,
    ) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> scalar. `before` is what came before the chunk in both; None is silence.

        With it, the chunks of a segment are filtered as the segment is, whatever their length.
        """
        estimate, target = estimate.float(), target.float()
        error = target - estimate
        pasts = (None, None) if before is None else (before[1].float() - before[0].float(), before[1].float())
        filtered = [self._filter(wave, past) for wave, past in zip((error, target), pasts, strict=True)]
        return filtered[0].square().mean() / (filtered[1].square().mean() + EPSILON)

    def _filter(self, wave: Tensor, past: Tensor | None) -> Tensor:
        """[B, T] -> [B, T]."""
        if past is not None:
            wave = torch.cat([past[:, max(0, past.shape[1] - self.num_before) :], wave], dim=1)
        missing = self.num_before - (0 if past is None else min(past.shape[1], self.num_before))
        padded = F.pad(wave, (missing, 0))
        taps, count = self.taps.to(wave.device), padded.shape[1] - self.num_before
        if len(taps) <= FEW_TAPS:
            delayed = (padded[:, self.num_before - n :][:, :count] for n in range(len(taps)))
            return sum(
                (tap * late for tap, late in zip(taps, delayed, strict=True)), start=taps.new_zeros(())
            )
        # Circular, but what wraps around is cut off.
        length = 1 << (padded.shape[1] - 1).bit_length()
        spectrum = torch.fft.rfft(padded, length) * torch.fft.rfft(taps, length)
        return torch.fft.irfft(spectrum, length)[:, self.num_before : padded.shape[1]]


class HFHinge:
    """Punishes high frequencies that the target has not: strength * mean(log1p(relu(|STFT(e)| - |STFT(t)|))).

    The mean is over the bins at or above `fmin` Hz, the frames and the rows; the logarithm is taken of each bin's
    excess. A lack of high frequencies costs nothing. Centred Hann windows with zeros around the chunk, so it may be
    shorter than a window. Raises ValueError where no bin is that high.
    """

    def __init__(
        self,
        rate_hz: float | int,
        fmin: float | int = 10_000.0,
        strength: float | int = 0.5,
        n_fft: int = 2048,
        hop_samples: int = 512,
    ) -> None:
        if not 0 <= fmin <= rate_hz / 2:
            raise ValueError(
                f"fmin is {fmin} Hz but a rate of {rate_hz} Hz ends at {rate_hz / 2}; lower it or leave the loss out"
            )
        self.strength, self.n_fft, self.hop_samples = strength, n_fft, hop_samples
        self.first_bin = -int(-fmin * n_fft // rate_hz)

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> Float[Tensor, ""]:
        """[B, T], [B, T] -> scalar."""
        excess = self._magnitude(estimate) - self._magnitude(target)
        return self.strength * torch.log1p(excess.relu()).mean()

    def _magnitude(self, wave: Tensor) -> Tensor:
        """Magnitudes [B, N, F] of the bins at or above `fmin`."""
        frames = windowed_frames(wave.float(), self.n_fft, self.hop_samples)
        spectrum = torch.fft.rfft(frames)[..., self.first_bin :]
        return (spectrum.real.square() + spectrum.imag.square() + MAGNITUDE_FLOOR**2).sqrt()


class Spectral(HFHinge):
    """The former name of HFHinge, with its arguments."""

    def __init__(self, *args: Any, **options: Any) -> None:
        warnings.warn(
            "the loss Spectral is deprecated; it is called HFHinge", DeprecationWarning, stacklevel=2
        )
        super().__init__(*args, **options)
