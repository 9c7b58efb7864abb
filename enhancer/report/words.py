"""Values and names as a person reads them."""

from __future__ import annotations

import json
import math
from typing import Any

_NAMES = {
    "si_sdr": "SI-SDR", "esr": "ESR", "mse": "MSE", "mae": "MAE", "dc": "DC", "l1": "L1", "stft": "STFT", "db": "(dB)",
    "hf": "HF", "10k": "10 kHz", "t60": "T60", "f0": "f0", "dbfs": "(dBFS)", "hz": "(Hz)", "pesq": "PESQ",
    "stoi": "STOI",
}  # fmt: skip


def label(name: str) -> str:
    """`si_sdr_improvement_db` as `SI-SDR improvement (dB)`."""
    words = name.replace("si_sdr", "si-sdr").split("_")
    text = " ".join(_NAMES.get(word.replace("-", "_"), word) for word in words)
    return text[:1].upper() + text[1:] if words[0].replace("-", "_") not in _NAMES else text


def figure(value: float) -> str:
    """A number with four digits that count; a dash for one that is not known."""
    return f"{value:.4g}" if math.isfinite(value) else "—"


def interval(mean: float, low: float, high: float) -> str:
    """A mean with its interval."""
    return f"{figure(mean)} ({figure(low)} … {figure(high)})" if math.isfinite(low) else figure(mean)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two that count."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {total % 60:02d} s" if minutes else f"{total} s"


def value(thing: Any) -> str:
    """A hyper-parameter as one writes it in YAML."""
    return thing if isinstance(thing, str) else json.dumps(thing)
