"""How good an estimate is, per row: SI-SDR, STFT and log-mel distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from enhancer.signal.average_spectrum import average_power
from enhancer.signal.mel import MelSpectrogram
from enhancer.signal.precision import widest_float
from enhancer.signal.spectral_distance import Resolution, require_possible, stft_distance
from enhancer.signal.types import PerRow, WaveBatch

SDR_LIMIT_DB = 100.0
"""SI-SDR is kept within +- this: float32 cannot tell more apart, and an infinity would spoil every mean."""


def si_sdr(estimate: WaveBatch, target: WaveBatch, zero_mean: bool = False) -> PerRow:
    """Scale-invariant signal-to-distortion ratio in dB per row, within +-SDR_LIMIT_DB.

    10 log10(||a s||^2 / ||a s - e||^2) with a = <e, s> / ||s||^2 for estimate e and target s: J. Le Roux et
    al., "SDR - half-baked or well done?" (2019), equation 3. With `zero_mean` both lose their mean first, so
    that an offset is no error. Where the target is digital silence no scaling of it explains anything, so the
    value is -SDR_LIMIT_DB, unless the estimate is digital silence too: then it is +SDR_LIMIT_DB.
    """
    exact = widest_float(target.device)
    estimate, target = estimate.to(exact), target.to(exact)
    if zero_mean:
        estimate = estimate - estimate.mean(-1, keepdim=True)
        target = target - target.mean(-1, keepdim=True)
    energy = target.square().sum(-1)
    dot = (estimate * target).sum(-1)
    scale = torch.where(energy > 0, dot / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0.0)
    explained = scale[:, None] * target
    signal = explained.square().sum(-1)
    distortion = (explained - estimate).square().sum(-1)
    ratio_db = 10 * (signal.log10() - distortion.log10())
    # 0/0: a silent estimate. It is right for a silent target only.
    both_silent = torch.where(energy > 0, -SDR_LIMIT_DB, SDR_LIMIT_DB)
    ratio_db = torch.where((signal == 0) & (distortion == 0), both_silent.to(ratio_db), ratio_db)
    return ratio_db.clamp(-SDR_LIMIT_DB, SDR_LIMIT_DB).float()


def si_sdr_improvement(estimate: WaveBatch, mixture: WaveBatch, target: WaveBatch) -> PerRow:
    """SI-SDR of the estimate minus that of the mixture, dB per row: what the model gained."""
    return si_sdr(estimate, target) - si_sdr(mixture, target)


class StftDistance:
    """Spectral convergence plus log-magnitude L1 (nepers), averaged over the resolutions, per row.

    The training loss without its mean over rows; see `enhancer.signal.spectral_distance`.
    """

    def __init__(self, resolutions: Sequence[Resolution]) -> None:
        require_possible(resolutions)
        self.resolutions = tuple(resolutions)

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> PerRow:
        """[B, T], [B, T] -> [B]."""
        return stft_distance(estimate, target, self.resolutions)


class LogMelDistance:
    """Mean absolute difference of log-mel spectrograms in dB, per row. Takes what `MelSpectrogram` takes."""

    def __init__(self, mel: MelSpectrogram) -> None:
        self.mel = mel

    def __call__(self, estimate: WaveBatch, target: WaveBatch) -> PerRow:
        """[B, T], [B, T] -> dB [B]."""
        return (self.mel(estimate) - self.mel(target)).abs().mean((-2, -1))


ESR_GRADES = (
    (0.01, "great"),
    (0.035, "not bad"),
    (0.1, "might sound ok"),
    (0.3, "probably won't sound great"),
)
"""Limits and words of S. Atkinson's neural-amp-modeler, which players know."""


def esr_grade(ratio: float) -> str:
    """The word for an error-to-signal ratio."""
    return next((word for limit, word in ESR_GRADES if ratio < limit), "something went wrong")


def error_to_signal(estimate: WaveBatch, target: WaveBatch) -> PerRow:
    """Error-to-signal ratio per row, sum (t - e)^2 / sum t^2: 0 is perfect, 1 is silence. NaN for a silent target."""
    error, target = (estimate - target).double(), target.double()
    return (error.square().sum(-1) / target.square().sum(-1)).float()


def excess_db(estimate: WaveBatch, target: WaveBatch, rate_hz: int, fmin_hz: float) -> PerRow:
    """Energy of the estimate at and above `fmin_hz` relative to the target's, dB per row; above 0 is too bright."""
    frequency = torch.fft.rfftfreq(target.shape[-1], 1 / rate_hz, device=target.device)
    energies = [
        torch.fft.rfft(wave.double())[:, frequency >= fmin_hz].abs().square().sum(-1).clamp(min=1e-20)
        for wave in (estimate, target)
    ]
    return (10 * (energies[0] / energies[1]).log10()).float()


RESPONSE_WINDOW_SAMPLES = 2048
RESPONSE_FLOOR_DB = -140.0
"""No bin is taken to be quieter than white noise of this RMS (dBFS) would make it: far below what 24 bits resolve."""


def response_excess_db(
    estimate: WaveBatch, target: WaveBatch, rate_hz: int, fmin_hz: float
) -> tuple[PerRow, PerRow]:
    """By how many dB the estimate's long-term spectrum lies above the target's, over the bins at or above `fmin_hz`.

    The mean over bins and the largest, dB per row; NaN where the rate has no such bins. Every bin counts alike, as one
    reads it off the two frequency responses, where `excess_db` is of their energies, which the lowest bins govern. The
    spectra are those of `average_power`, and no bin of them is below RESPONSE_FLOOR_DB.
    """
    # Of white noise half of the density lies at negative frequencies.
    floor = 10 ** (RESPONSE_FLOOR_DB / 10) * 2 / rate_hz
    levels_db = []
    for wave in (estimate, target):
        frequency, power = average_power(wave, rate_hz, RESPONSE_WINDOW_SAMPLES)
        levels_db.append(10 * power[:, frequency >= fmin_hz].clamp_min(floor).log10())
    excess = levels_db[0] - levels_db[1]
    if not excess.shape[-1]:
        nothing = excess.new_full((len(excess),), torch.nan).float()
        return nothing, nothing
    return excess.mean(-1).float(), excess.amax(-1).float()


HIGH_HZ = 10_000.0
"""Where models of distortion are known to add what the device has not."""


def device_metrics(estimate: WaveBatch, target: WaveBatch, rate_hz: int) -> dict[str, PerRow]:
    """What models of devices are judged by, per row.

    `esr` as `error_to_signal`; `mse` and `mae`; and what is too much above 10 kHz, in dB: `excess_above_10k_db` of
    the energy, `response_excess_above_10k_db` as the mean over frequency, and `peak_excess_above_10k_db` at the worst
    frequency.
    """
    mean_excess, peak_excess = response_excess_db(estimate, target, rate_hz, HIGH_HZ)
    return {
        "esr": error_to_signal(estimate, target),
        "mse": (estimate - target).square().mean(-1),
        "mae": (estimate - target).abs().mean(-1),
        "excess_above_10k_db": excess_db(estimate, target, rate_hz, HIGH_HZ),
        "response_excess_above_10k_db": mean_excess,
        "peak_excess_above_10k_db": peak_excess,
    }
