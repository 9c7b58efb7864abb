"""From a log-mel spectrogram back: the envelope of the STFT that it tells of, and a waveform by Griffin-Lim."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from enhancer.signal.mel import MelSpectrogram, band_centres_hz, mel_filterbank
from enhancer.signal.stft import hann_window
from enhancer.signal.torchaudio import torchaudio
from enhancer.signal.types import WaveBatch

ITERATIONS, MOMENTUM = 32, 0.99
"""Of Griffin-Lim; torchaudio's own."""


class MelEnvelope:
    """Log magnitudes of an STFT by interpolation between the bands of a log-mel spectrogram, pre-emphasis undone.

    Linear over frequency between the centres of the bands, and the nearest band outside. That a vocoder may start from
    what the mel spectrogram says of the magnitudes anyhow is due to Y. Lv et al., "FreeV: Free Lunch For Vocoders
    Through Pseudo Inversed Mel Filter" (2024); a pseudo-inverse has negative values, which interpolation has not.

    A plain class, as `MelSpectrogram`.

    Args:
        mel: the front end.
        rate_hz: its rate.
        window_samples: Hann window, and length of the FFT, of the STFT wanted.
    """

    def __init__(self, mel: MelSpectrogram, rate_hz: int, window_samples: int) -> None:
        hz = torch.linspace(0, rate_hz / 2, window_samples // 2 + 1)
        weights = _interpolation(hz, band_centres_hz(rate_hz, mel.num_mels))
        # What a band gives for magnitudes of one; the same noise has smaller ones in a shorter window.
        gains = mel_filterbank(rate_hz, mel.n_fft, mel.num_mels).sum(0).clamp(min=1e-12).log()
        gains = gains + 0.5 * math.log(mel.window_samples / window_samples)
        self._weights = weights * (math.log(10) / 20)
        self._offset = -(gains @ weights) - _preemphasis_response(hz, rate_hz, mel.preemphasis).log()

    def __call__(self, mel_db: Float[Tensor, "*batch frame mel"]) -> Float[Tensor, "*batch frame freq"]:
        """dB [..., N, M] -> natural logarithm of magnitudes [..., N, F]."""
        if self._weights.device != mel_db.device:
            self._weights, self._offset = self._weights.to(mel_db.device), self._offset.to(mel_db.device)
        with torch.autocast(mel_db.device.type, enabled=False):
            return mel_db.float() @ self._weights + self._offset


def griffin_lim(
    mel_db: Float[Tensor, "batch mel frame"], mel: MelSpectrogram, rate_hz: int, length: int, seed: int = 0
) -> WaveBatch:
    """A waveform whose log-mel spectrogram is about `mel_db`, dB [B, M, N] -> [B, length], with no model at all.

    Magnitudes are the least-squares ones where these are not negative (torchaudio's `InverseMelScale`), pre-emphasis
    undone in them; phases come of the fast Griffin-Lim algorithm (N. Perraudin et al., 2013) from random ones of
    `seed`, which are the same for each row: what becomes of a row hangs on no other.
    """
    wanted = 10 ** (mel_db[..., : length // mel.hop_samples + 1] / 20)
    inverse = _inverse_bank(rate_hz, mel.n_fft, mel.num_mels).to(mel_db.device)
    hz = torch.linspace(0, rate_hz / 2, mel.n_fft // 2 + 1, device=mel_db.device)
    response = _preemphasis_response(hz, rate_hz, mel.preemphasis)
    magnitude = (inverse @ wanted).clamp(min=0) / response[:, None]
    window = hann_window(mel.window_samples, magnitude.dtype, magnitude.device)
    waves = []
    with torch.random.fork_rng(devices=[mel_db.device] if mel_db.is_cuda else []):
        for row in magnitude:
            torch.manual_seed(seed)
            wave = torchaudio.functional.griffinlim(
                row,
                window=window,
                n_fft=mel.n_fft,
                hop_length=mel.hop_samples,
                win_length=mel.window_samples,
                power=1.0,
                n_iter=ITERATIONS,
                momentum=MOMENTUM,
                length=length,
                rand_init=True,
            )
            waves.append(wave)
    return torch.stack(waves)


def _interpolation(hz: Float[Tensor, " freq"], centres_hz: Float[Tensor, " mel"]) -> Tensor:
    """Weights [M, F] of linear interpolation at `hz` between values at `centres_hz`, held outside."""
    inside = hz.clamp(float(centres_hz[0]), float(centres_hz[-1]))
    above = torch.searchsorted(centres_hz, inside).clamp(1, len(centres_hz) - 1)
    low, high = centres_hz[above - 1], centres_hz[above]
    share = (inside - low) / (high - low)
    weights = hz.new_zeros(len(centres_hz), len(hz))
    weights.scatter_add_(0, (above - 1)[None], (1 - share)[None])
    return weights.scatter_add_(0, above[None], share[None])


@lru_cache(maxsize=8)
def _inverse_bank(rate_hz: int, n_fft: int, num_mels: int) -> Tensor:
    """[F, M]; bands are fewer than bins, so it is the solution of the smallest norm."""
    return torch.linalg.pinv(mel_filterbank(rate_hz, n_fft, num_mels).double().T).float()


def _preemphasis_response(hz: Tensor, rate_hz: int, coefficient: float) -> Tensor:
    """|1 - c exp(-i w)| at `hz`; not below what it is at 20 Hz, so that what is inaudible is not blown up."""
    angle = 2 * math.pi * hz.clamp(min=20) / rate_hz
    return (1 - 2 * coefficient * angle.cos() + coefficient**2).sqrt()
