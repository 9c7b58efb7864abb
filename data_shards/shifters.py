"""Pitch shifters, each an optional package behind one call: wave, rate, semitones -> wave.

Only what was asked for is imported; `require_engine` says how to install what is missing. All are functions of their
arguments and the seed alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hparams.errors import UserError
from hparams.shifting import ENGINES

Shift = Callable[[np.ndarray, int, float, int], np.ndarray]
"""`shift(wave, rate_hz, semitones, seed)`: float32 [T] -> float32 [T'], as long but for varispeed."""


class Unshiftable(ValueError):
    """An engine cannot work on this sound; the text is the reason."""


@dataclass(frozen=True)
class Engine:
    """One shifter.

    Args:
        shift: the call.
        module: what it imports; None where nothing beside the project's own is needed.
        package: what to install for that.
        window_seconds: what it looks at in one piece; shorter recordings are not shifted.
    """

    shift: Shift
    module: str | None
    package: str
    window_seconds: float


def require_engine(name: str) -> Engine:
    """The engine called `name`, whose package is there. Raises UserError with the command to run where it is not."""
    engine = SHIFTERS[name]
    if engine.module is not None and importlib.util.find_spec(engine.module) is None:
        raise UserError(
            f"the engine {name} needs {engine.package}, and that is not installed; run: pip install {engine.package}, "
            f"or use engines that are there: {', '.join(installed_engines())}"
        )
    return engine


def installed_engines() -> list[str]:
    """Names of the engines that can be used here."""
    return [
        name
        for name, engine in SHIFTERS.items()
        if engine.module is None or importlib.util.find_spec(engine.module) is not None
    ]


def _signalsmith(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
    """Signalsmith Stretch (python-stretch, MIT)."""
    import python_stretch

    stretch = python_stretch.Signalsmith.Stretch(seed % 2**31)
    stretch.preset(1, rate_hz)
    stretch.setTransposeSemitones(semitones)
    return np.array(stretch.process(np.array(wave[None], np.float32)))[0]


def _rubberband(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
    """Rubber Band R3, offline (pylibrb, GPL)."""
    from pylibrb import Option, RubberBandStretcher

    options = Option.PROCESS_OFFLINE | Option.ENGINE_FINER | Option.PitchHighQuality | Option.THREADING_NEVER
    stretcher = RubberBandStretcher(rate_hz, 1, options, 1.0, 2 ** (semitones / 12))
    audio = np.array(wave[None], np.float32)
    stretcher.set_max_process_size(len(wave))
    stretcher.study(audio, True)
    stretcher.process(audio, True)
    return np.array(stretcher.retrieve_available())[0]


def _parselmouth(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
    """Praat's pitch-synchronous overlap-add (praat-parselmouth, GPL), for single voices."""
    import parselmouth
    from parselmouth.praat import call, run

    run(f"random_initializeWithSeedUnsafelyButPredictably ({seed % 2**31})")
    sound = parselmouth.Sound(wave.astype(np.float64), sampling_frequency=rate_hz)
    try:
        manipulation = call(sound, "To Manipulation", 0.01, PRAAT_FLOOR_HZ, PRAAT_CEILING_HZ)
        tier = call(manipulation, "Extract pitch tier")
        if call(tier, "Get number of points") == 0:
            raise Unshiftable("parselmouth finds no voice in it")
        call(tier, "Multiply frequencies", sound.xmin, sound.xmax, 2 ** (semitones / 12))
        call([tier, manipulation], "Replace pitch tier")
        return call(manipulation, "Get resynthesis (overlap-add)").values[0].astype(np.float32)
    except parselmouth.PraatError as error:
        raise Unshiftable(f"parselmouth cannot work on it: {error}") from error


def _phase_vocoder(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
    """Stretched by a phase vocoder, then played faster or slower, as librosa does; it smears most."""
    import soxr
    import torch

    from enhancer.signal.phase_vocoder import time_stretched

    factor = 2 ** (semitones / 12)
    longer = time_stretched(torch.from_numpy(np.ascontiguousarray(wave, np.float32)), factor).numpy()
    return soxr.resample(longer, factor, 1.0, quality="HQ")


def _varispeed(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
    """Played faster or slower, so that there and back only the band limit is left: a control without artefacts."""
    import soxr

    return soxr.resample(np.ascontiguousarray(wave, np.float32), 2 ** (semitones / 12), 1.0, quality="HQ")


PRAAT_FLOOR_HZ, PRAAT_CEILING_HZ = 60.0, 800.0
SHIFTERS: dict[str, Engine] = dict(
    zip(
        ENGINES,
        (
            Engine(_signalsmith, "python_stretch", "python-stretch", 0.12),
            Engine(_rubberband, "pylibrb", "pylibrb", 0.1),
            Engine(_parselmouth, "parselmouth", "praat-parselmouth", 0.1),
            Engine(_phase_vocoder, None, "wavewright", 0.05),
            Engine(_varispeed, None, "wavewright", 0.01),
        ),
        strict=True,
    )
)
