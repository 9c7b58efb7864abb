"""STFT resolutions of the multi-resolution loss."""

from __future__ import annotations

from dataclasses import dataclass

from hparams.errors import UserError

LOSS_HOPS_SAMPLES = (100, 256, 512)
LOSS_RATE_HZ = 44_100


@dataclass(frozen=True)
class StftConfig:
    """One STFT resolution, in samples. `n_fft` is never below `win_length`."""

    n_fft: int
    hop_length: int
    win_length: int


def loss_resolutions(rate_hz: int) -> list[StftConfig]:
    """Hops of 100, 256 and 512 samples, windows of four hops, FFTs of the next power of two.

    The hops are meant for 44.1 kHz. Raises UserError at any other rate.
    """
    if rate_hz != LOSS_RATE_HZ:
        raise UserError(
            f"wav_rate is {rate_hz} Hz, but the STFT loss resolutions hold for {LOSS_RATE_HZ} Hz only; "
            f"set wav_rate to {LOSS_RATE_HZ} and rebuild the corpora at that rate"
        )
    return [_resolution(hop) for hop in LOSS_HOPS_SAMPLES]


def scaled_resolutions(rate_hz: int) -> list[StftConfig]:
    """Those of `loss_resolutions`, lasting as long at any rate: for devices, whose rate is that of their recordings."""
    return [_resolution(max(1, round(hop * rate_hz / LOSS_RATE_HZ))) for hop in LOSS_HOPS_SAMPLES]


def _resolution(hop: int) -> StftConfig:
    return StftConfig(n_fft=1 << (4 * hop - 1).bit_length(), hop_length=hop, win_length=4 * hop)
