"""Draws what a bad recording chain does to a mixture: equaliser, band limits, overdrive, noise.

Only numbers are drawn here; `enhancer.signal.distortion` applies them.
"""

from __future__ import annotations

import numpy as np

from data_shards.schedule import between, log_between

CLEAN: dict[str, float | int] = {
    "eq_hz": 1000.0,
    "eq_gain_db": 0.0,
    "eq_q": 1.0,
    "lowpass_hz": np.inf,
    "highpass_hz": 0.0,
    "drive_db": 0.0,
    "noise_snr_db": np.inf,
    "noise_seed": 0,
}
EQ_RANGE_HZ, EQ_RANGE_DB, EQ_RANGE_Q = (100.0, 8000.0), (-12.0, 12.0), (0.5, 4.0)
LOWPASS_RANGE_HZ, HIGHPASS_RANGE_HZ = (2000.0, 16_000.0), (40.0, 400.0)
DRIVE_RANGE_DB, NOISE_SNR_RANGE_DB = (3.0, 24.0), (10.0, 40.0)
# No filter of an example lies above this share of the sample rate.
HIGHEST_FILTER = 0.45
DISTORTIONS = ("eq", "lowpass", "highpass", "drive", "noise")
NUM_UNIFORMS = 16


def draw_distortions(drawn: list[float], prob: float, rate_hz: int) -> dict[str, float | int]:
    """Parameters of the distortions from NUM_UNIFORMS uniform numbers; the first five say which of them are
    on.
    """
    values = dict(CLEAN)
    on = dict(zip(DISTORTIONS, (number < prob for number in drawn), strict=False))
    eq_hz, eq_db, eq_q, lowpass, highpass, drive, noise, noise_seed = drawn[5:13]
    highest_hz = HIGHEST_FILTER * rate_hz
    if on["eq"]:
        values["eq_hz"] = log_between(eq_hz, EQ_RANGE_HZ, highest_hz)
        values["eq_gain_db"] = between(eq_db, EQ_RANGE_DB)
        values["eq_q"] = log_between(eq_q, EQ_RANGE_Q)
    if on["lowpass"]:
        values["lowpass_hz"] = log_between(lowpass, LOWPASS_RANGE_HZ, highest_hz)
    if on["highpass"]:
        values["highpass_hz"] = log_between(highpass, HIGHPASS_RANGE_HZ, highest_hz)
    if on["drive"]:
        values["drive_db"] = between(drive, DRIVE_RANGE_DB)
    if on["noise"]:
        values["noise_snr_db"] = between(noise, NOISE_SNR_RANGE_DB)
        values["noise_seed"] = int(noise_seed * 2**53)
    return values
