"""Stage 1 of the enhancer: a mel front end, an autoencoder of its frames and a vocoder, as one module."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from enhancer.models.mel_autoencoder import MelAutoencoder
from enhancer.models.vocoder import SpectralVocoder
from enhancer.signal.mel import MelSpectrogram
from enhancer.signal.mel_inverse import MelEnvelope
from enhancer.signal.types import WaveBatch

MOST_COUNTED = 1000
SMALLEST_SPREAD = 0.01


class Normaliser(nn.Module):
    """Makes mel frames, or latents, of mean 0 and spread 1, by what training has seen of them.

    The mean over the first MOST_COUNTED batches, and a moving average afterwards. One mean and one spread for all
    bands, so that what differs between bands stays, or with `size` for each of so many latents.
    """

    mean: Tensor
    mean_square: Tensor
    num_seen: Tensor

    def __init__(self, size: int | None = None, mean: float = 0.5, mean_square: float = 0.3) -> None:
        super().__init__()
        shape = () if size is None else (size,)
        self.register_buffer("mean", torch.full(shape, mean))
        self.register_buffer("mean_square", torch.full(shape, mean_square))
        self.register_buffer("num_seen", torch.tensor(0.0))

    @torch.no_grad()
    def observe(self, moments: Float[Tensor, "two ..."]) -> None:
        """Take in the mean and the mean square of a batch, the same on all ranks, where they are finite."""
        if not bool(torch.isfinite(moments).all()):
            return
        self.num_seen.add_(1).clamp_(max=MOST_COUNTED)
        for kept, found in zip((self.mean, self.mean_square), moments.to(self.mean), strict=True):
            kept.add_((found - kept) / self.num_seen)

    def spread(self) -> Tensor:
        """The standard deviation."""
        return (self.mean_square - self.mean.square()).clamp(min=SMALLEST_SPREAD**2).sqrt()

    def forward(self, mel: Tensor) -> Tensor:
        return (mel - self.mean) / self.spread()

    def inverse(self, mel: Tensor) -> Tensor:
        """What `forward` was given."""
        return mel * self.spread() + self.mean


class Stage1(nn.Module):
    """Waveform in, waveform out, by way of `num_latents` latents for each frame of the mel spectrogram.

    `context_samples`, `stride_samples`: as in `MaskUNet`; a recording may be cut into chunks with them.

    Args:
        mel: the front end, at `rate_hz`.
        rate_hz: of the waveform.
        autoencoder: of its frames.
        vocoder: hears what the autoencoder gives, and frames of the same hop.
    """

    def __init__(
        self, mel: MelSpectrogram, rate_hz: int, autoencoder: MelAutoencoder, vocoder: SpectralVocoder
    ) -> None:
        super().__init__()
        self.mel = mel
        # Constants are no weights, also where a model is built without memory.
        with torch.device("cpu"):
            self.envelope = MelEnvelope(mel, rate_hz, vocoder.stft.window_samples)
        self.normaliser = Normaliser()
        self.autoencoder = autoencoder
        self.vocoder = vocoder
        self.stride_samples = mel.hop_samples
        frames = autoencoder.reach_frames + vocoder.reach_frames
        windows = mel.window_samples // 2 + vocoder.stft.window_samples // 2 + 1
        self.context_samples = frames * mel.hop_samples + windows

    def forward(self, wave: WaveBatch, with_frames: bool = False) -> Any:
        """The waveform [B, T] as it comes back, [B, T].

        `with_frames`: that, the normalised mel frames that came back and those that went in, [B, N, M] both.
        """
        frames = self.frames(wave)
        estimate, restored = self._decoded(self.autoencoder.encode(frames), wave.shape[-1])
        return (estimate, restored, frames) if with_frames else estimate

    def frames(self, wave: WaveBatch) -> Float[Tensor, "batch frame mel"]:
        """Normalised mel frames of a waveform: [B, T] -> [B, N, M], N = ceil(T / hop) + 1."""
        return self.normaliser(self.mel.scaled(wave).transpose(1, 2))

    def encode(self, wave: WaveBatch) -> Float[Tensor, "batch frame latent"]:
        """The latents [B, N, L] of a waveform [B, T]."""
        return self.autoencoder.encode(self.frames(wave))

    def decode(self, latents: Float[Tensor, "batch frame latent"], length: int) -> WaveBatch:
        """The waveform [B, length] of latents [B, N, L], N = ceil(length / hop) + 1."""
        return self._decoded(latents, length)[0]

    def _decoded(self, latents: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The waveform, and the normalised mel frames that it was made of."""
        restored, features = self.autoencoder.decode(latents)
        restored = restored.float()
        mel_db = self.mel.unscaled(self.normaliser.inverse(restored))
        return self.vocoder(features, self.envelope(mel_db), length), restored
