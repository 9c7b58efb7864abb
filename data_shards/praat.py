"""Gives a foreground another voice: Praat's "Change gender" by parselmouth (the [praat] extra, GPL;
optional).

Formants are moved by a ratio and the pitch range is widened or narrowed around its median; the crop keeps
its length and level. Runs in loader workers, on the clean crop, before anything else. A crop in which Praat
finds too little voice to work on (noise, an instrument's rest, a very short crop) comes back unchanged.

Source: Boersma and Weenink, Praat manual, "Sound: Change gender..." (pitch-synchronous overlap-add and
resampling).
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

from data_shards.schedule import generator
from hparams.errors import UserError

PITCH_FLOOR_HZ = 75.0
PITCH_CEILING_HZ = 600.0
LARGEST_FORMANT_RATIO = 1.4
LARGEST_PITCH_RANGE_FACTOR = 1.5
# Praat refuses sounds shorter than three periods of the pitch floor; at less than this little is left to
# change.
SHORTEST_SECONDS = 0.1
FEWEST_VOICED_SECONDS = 0.05
# Change gender with a new median of 0 keeps the median; a duration factor of 1 keeps the length.
KEEP_MEDIAN = 0.0
KEEP_DURATION = 1.0


def require_praat() -> None:
    """Raise UserError with the command to run when parselmouth is not installed."""
    if importlib.util.find_spec("parselmouth") is None:
        raise UserError(
            "praat_augment_prob is above 0, which needs praat-parselmouth, and that is not installed; "
            "run: pip install 'wavewright[praat]', or set praat_augment_prob=0"
        )


def change_voice(wave: np.ndarray, rate_hz: int, seed: int, draw: int) -> np.ndarray:
    """`wave` (int16, [T]) in another voice: int16, [T]. A function of `wave`, `seed` and `draw` only.

    The formant ratio is log-uniform in [1/1.4, 1.4] and the pitch range factor in [1/1.5, 1.5].
    """
    import parselmouth
    from parselmouth.praat import call, run

    if len(wave) < SHORTEST_SECONDS * rate_hz:
        return wave
    place, spread, noise = generator(seed, draw, "praat").random(3).tolist()
    scaled = wave / 32768.0
    sound = parselmouth.Sound(scaled, sampling_frequency=rate_hz)
    pitch = sound.to_pitch(pitch_floor=PITCH_FLOOR_HZ, pitch_ceiling=PITCH_CEILING_HZ)
    if pitch.count_voiced_frames() * pitch.time_step < FEWEST_VOICED_SECONDS:
        return wave
    # Praat moves the pieces of unvoiced parts at random, from one generator for the whole process.
    run(f"random_initializeWithSeedUnsafelyButPredictably ({int(noise * 2**31)})")
    with warnings.catch_warnings():
        # Praat says so when no voice is left at the moved formants, and then gives an unusable sound.
        warnings.simplefilter("error", parselmouth.PraatWarning)
        try:
            changed = call(
                [sound, pitch],
                "Change gender",
                LARGEST_FORMANT_RATIO ** (2 * place - 1),
                KEEP_MEDIAN,
                LARGEST_PITCH_RANGE_FACTOR ** (2 * spread - 1),
                KEEP_DURATION,
            )
        except parselmouth.PraatWarning:
            return wave
    return _fit(changed.values[0], scaled)


def _fit(changed: np.ndarray, original: np.ndarray) -> np.ndarray:
    """`changed` at the length and RMS of `original`, as int16, turned down where it would clip."""
    fitted = np.zeros_like(original)
    count = min(len(changed), len(original))
    fitted[:count] = changed[:count]
    power = float(np.mean(fitted**2))
    if not np.isfinite(power) or power == 0:
        return np.rint(original * 32768).astype(np.int16)
    fitted *= np.sqrt(float(np.mean(original**2)) / power)
    fitted *= min(1.0, 32767 / 32768 / float(np.abs(fitted).max()))
    return np.rint(fitted * 32768).astype(np.int16)
