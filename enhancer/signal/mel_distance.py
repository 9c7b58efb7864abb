"""Distance of two waveforms in log-mel magnitude at seven time scales, per example: the mel loss of the DAC paper."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from enhancer.signal.mel import mel_filterbank
from enhancer.signal.stft import hann_window, power_of_frames
from enhancer.signal.types import PerWave, Wave

SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""Window in samples and number of mel bands of each scale; its hop is a quarter of the window."""
FLOOR = 1e-5
"""Of a band's magnitude before the logarithm."""
# Far below that floor: keeps the slope of a root finite at silence.
_POWER_FLOOR = 1e-20


def mel_distance(estimate: Wave, target: Wave, rate_hz: int) -> PerWave:
    """Sum over SCALES of the mean | log10 mel(target) - log10 mel(estimate) |, [..., T] -> [...].

    R. Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (2023), section 3.4, with the values of its
    published configuration: magnitudes (not powers), Slaney's bands of unit area from 0 Hz to half the rate, periodic
    Hann windows centred on their frame, the waveform mirrored at its ends, no linear term. The gradient goes to the
    estimate only. Raises ValueError for waveforms too short to be mirrored.
    """
    shortest = SCALES[-1][0] // 2 + 1
    if target.shape[-1] < shortest:
        raise ValueError(
            f"waveforms of {target.shape[-1]} samples are given; the mel distance needs {shortest} or more"
        )
    distances = []
    for window_samples, num_mels in SCALES:
        with torch.no_grad():
            wanted = _log_mel(target, rate_hz, window_samples, num_mels)
        found = _log_mel(estimate, rate_hz, window_samples, num_mels)
        distances.append((found - wanted).abs().mean((-2, -1)))
    return torch.stack(distances).sum(0)


def _log_mel(
    wave: Wave, rate_hz: int, window_samples: int, num_mels: int
) -> Float[Tensor, "*batch frame mel"]:
    half, hop_samples = window_samples // 2, window_samples // 4
    rows = wave.float().reshape(-1, wave.shape[-1])
    mirrored = F.pad(rows, (half, half), mode="reflect").reshape(*wave.shape[:-1], -1)
    frames = mirrored.unfold(-1, window_samples, hop_samples)
    power = power_of_frames(frames * hann_window(window_samples, wave.dtype, wave.device), window_samples)
    # Autocast would round the product to bf16.
    with torch.autocast(wave.device.type, enabled=False):
        mel = power.clamp(min=_POWER_FLOOR).sqrt() @ _bands(rate_hz, window_samples, num_mels, wave.device)
    return mel.clamp(min=FLOOR).log10()


@lru_cache(maxsize=32)
def _bands(rate_hz: int, window_samples: int, num_mels: int, device: torch.device) -> Tensor:
    """Mel bands [F, M]; at some rates one of a short window holds no bin, and says nothing on either side."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        return mel_filterbank(rate_hz, window_samples, num_mels).to(device)
