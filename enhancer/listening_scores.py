"""PESQ and STOI of speech, by the packages of these names where they are installed: the extra `quality`."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np

from enhancer.signal.resample import resample
from enhancer.signal.types import WaveBatch

RATE_HZ = 16_000
NOTHING_HEARD = 1e-5
"""What pystoi gives, with a warning, where it finds too little speech to judge."""
PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}
Score = Callable[[np.ndarray, np.ndarray], float]


def missing() -> list[str]:
    """Packages that are not installed, without which their scores are left out."""
    return [package for package in PACKAGES.values() if importlib.util.find_spec(package) is None]


def listening_scores(estimate: WaveBatch, target: WaveBatch, rate_hz: int) -> dict[str, list[float]]:
    """Wide-band PESQ (MOS-LQO, 1 to 4.6) and STOI (0 to 1) of each row, of those whose package is installed.

    NaN where there is no speech to judge, as in silence.
    """
    scores: dict[str, Score] = {"pesq": _pesq, "stoi": _stoi}
    absent = missing()
    if len(absent) == len(PACKAGES):
        return {}
    waves = [resample(wave.float().cpu(), rate_hz, RATE_HZ).double().numpy() for wave in (target, estimate)]
    return {
        name: [
            scores[name](clean, heard) if clean.any() and heard.any() else float("nan")
            for clean, heard in zip(*waves, strict=True)
        ]
        for name, package in PACKAGES.items()
        if package not in absent
    }


def notice() -> list[str]:
    """What the user should be told of scores that are left out."""
    absent = missing()
    if not absent:
        return []
    return [
        f"{' and '.join(name.upper() for name, package in PACKAGES.items() if package in absent)} are left out: "
        f"{' and '.join(absent)} not installed (pip install wavewright[quality])"
    ]


def _pesq(target: np.ndarray, estimate: np.ndarray) -> float:
    import pesq

    value = pesq.pesq(RATE_HZ, target, estimate, "wb", on_error=pesq.PesqError.RETURN_VALUES)
    return float(value) if value > 0 else float("nan")


def _stoi(target: np.ndarray, estimate: np.ndarray) -> float:
    import pystoi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = float(pystoi.stoi(target, estimate, RATE_HZ))
    return value if value != NOTHING_HEARD else float("nan")
