"""Corpora of a few seconds for the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from data_shards.build import build_corpus
from data_shards.options import BuildOptions

RATE_HZ = 44_100


def build_corpora(root: Path) -> dict[str, Any]:
    """Tones, noises and rooms in `root`, as values for `--set`."""
    rng = np.random.default_rng(7)
    at = np.arange(RATE_HZ) / RATE_HZ
    rooms = np.exp(-at[:8000] * 20)
    for number in range(6):
        _write(root / f"audio/fg/{number}.wav", 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at))
        _write(root / f"audio/bg/{number}.wav", 0.1 * rng.standard_normal(RATE_HZ))
        _write(root / f"audio/rir/{number}.wav", rooms * rng.standard_normal(8000) * 0.1 + (at[:8000] == 0))
    for kind in ("fg", "bg", "rir"):
        build_corpus(kind, [root / "audio" / kind], root / kind, BuildOptions(kind))
    return {f"{kind}_dir": root / kind for kind in ("fg", "bg", "rir")} | {"valid_fraction": 0.4}


def _write(path: Path, wave: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave.clip(-1, 1), RATE_HZ)
