"""Log-mel spectrogram of the enhancement models: pre-emphasis, 128 Slaney bands, decibels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from enhancer.signal.stft import power_spectrogram
from enhancer.signal.torchaudio import torchaudio
from enhancer.signal.types import MelFrames, Wave

TOP_DB = 15.0
"""Of the scaled front end: this level is 1 there, and the floor 0. About full scale."""


class MelSpectrogram:
    """20 log10(max(mel, floor)) of pre-emphasised speech, in dB.

    y[n] = x[n] - preemphasis x[n-1]; magnitudes (not powers) of the centred Hann STFT; triangular bands after
    M. Slaney's Auditory Toolbox (1998), each of unit area, from 0 Hz to half the rate. A plain class:
    constants in a module's buffers would be rounded by a cast of the module to bf16.
    """

    def __init__(
        self,
        rate_hz: int,
        n_fft: int = 2048,
        window_samples: int = 2048,
        hop_samples: int = 420,
        num_mels: int = 128,
        preemphasis: float = 0.97,
        magnitude_min: float = 1e-4,
    ) -> None:
        self.n_fft = n_fft
        self.num_mels = num_mels
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.preemphasis = preemphasis
        self.magnitude_min = magnitude_min
        self._bands = mel_filterbank(rate_hz, n_fft, num_mels)

    def __call__(self, wave: Wave) -> MelFrames:
        """[..., T] -> dB [..., M, N] with N = ceil(T / hop) + 1."""
        wave = wave.float()
        emphasised = wave - self.preemphasis * F.pad(wave, (1, 0))[..., :-1]
        power = power_spectrogram(emphasised, self.window_samples, self.hop_samples, self.n_fft)
        if self._bands.device != power.device:
            self._bands = self._bands.to(power.device)
        # This floor, far below that of the bands, keeps the gradient of the root finite at silence.
        magnitude = power.clamp(min=1e-20).sqrt()
        # Autocast would round this product to bf16, 0.03 dB and worse.
        with torch.autocast(magnitude.device.type, enabled=False):
            mel = magnitude @ self._bands
        return 20 * mel.clamp(min=self.magnitude_min).log10().transpose(-1, -2)

    @property
    def floor_db(self) -> float:
        """What silence is, dB."""
        return 20 * math.log10(self.magnitude_min)

    def scaled(self, wave: Wave) -> MelFrames:
        """[..., T] -> (dB - floor) / (TOP_DB - floor), [..., M, N]: (dB + 80) / 95 at a floor of 1e-4."""
        return (self(wave) - self.floor_db) / (TOP_DB - self.floor_db)

    def unscaled(self, mel: MelFrames) -> MelFrames:
        """The decibels of what `scaled` gives."""
        return mel * (TOP_DB - self.floor_db) + self.floor_db


def mel_filterbank(rate_hz: int, n_fft: int, num_mels: int) -> Tensor:
    """Slaney's triangular mel bands of unit area, [F, M], from 0 Hz to half of `rate_hz`."""
    return torchaudio.functional.melscale_fbanks(
        n_freqs=n_fft // 2 + 1,
        f_min=0.0,
        f_max=rate_hz / 2,
        n_mels=num_mels,
        sample_rate=rate_hz,
        norm="slaney",
        mel_scale="slaney",
    )


def band_centres_hz(rate_hz: int, num_mels: int) -> Tensor:
    """Frequencies at which the bands of `mel_filterbank` are highest, Hz [M]: Slaney's scale, linear below 1 kHz."""
    step = math.log(6.4) / 27
    top = 15 + math.log(rate_hz / 2000) / step if rate_hz > 2000 else rate_hz * 3 / 400
    mel = torch.linspace(0, top, num_mels + 2, dtype=torch.float64)[1:-1]
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * step).exp()).float()
