"""The demo corpora as plain audio folders: voices, instruments, noises and rooms, the same for the same seed.

`write_demo_audio` writes WAV files; `launch/demo_corpora.py` then builds corpora from them as from any
recordings. Foregrounds lie in one folder per speaker or instrument, so that a split by folder keeps back
whole voices.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from data_shards.synthetic_noise import NOISES
from data_shards.synthetic_notes import play, random_instrument
from data_shards.synthetic_rooms import simulate_room
from data_shards.synthetic_voice import random_speaker, speak

NUM_SPEAKERS, FILES_PER_SPEAKER = 8, 3
NUM_INSTRUMENTS_PER_KIND, FILES_PER_INSTRUMENT = 4, 2
FOREGROUND_SECONDS = 9.0
NUM_BACKGROUNDS, BACKGROUND_SECONDS = 25, 12.0
NUM_ROOMS = 24
REVERBERATION_RANGE_SECONDS = (0.15, 0.8)

Report = Callable[[str], None]


def write_demo_audio(folder: Path, *, seed: int = 0, rate_hz: int = 44_100, report: Report = print) -> None:
    """Write `folder`/fg, bg and rir: about 6 min of foreground, 5 min of background and 24 rooms, 16-bit WAV.

    `report` is called with a line before each part. Raises: UserError when pyroomacoustics is missing.
    """
    # Rooms first: if their extra is missing, that shows before anything was waited for.
    report(f"simulating {NUM_ROOMS} rooms")
    write_rooms(folder / "rir", NUM_ROOMS, seed=seed, rate_hz=rate_hz)
    report(f"synthesising {NUM_SPEAKERS} speakers and {2 * NUM_INSTRUMENTS_PER_KIND} instruments")
    write_foregrounds(folder / "fg", seed=seed, rate_hz=rate_hz)
    report(f"synthesising {NUM_BACKGROUNDS} backgrounds")
    write_backgrounds(folder / "bg", NUM_BACKGROUNDS, seed=seed, rate_hz=rate_hz)


def write_foregrounds(
    folder: Path,
    *,
    seed: int,
    rate_hz: int,
    num_speakers: int = NUM_SPEAKERS,
    num_instruments: int = NUM_INSTRUMENTS_PER_KIND,
    seconds: float = FOREGROUND_SECONDS,
) -> None:
    """Write voice-NN/, plucked-NN/ and bowed-NN/ folders of phrases, `seconds` each."""
    for number in range(num_speakers):
        rng = np.random.default_rng([seed, 1, number])
        speaker = random_speaker(rng)
        for take in range(FILES_PER_SPEAKER):
            wave = speak(speaker, seconds, rate_hz, rng)
            _write_wav(folder / f"voice-{number:02d}" / f"take-{take}.wav", wave, rate_hz, rng)
    kinds: tuple[Literal["plucked", "bowed"], ...] = ("plucked", "bowed")
    for place, kind in enumerate(kinds):
        for number in range(num_instruments):
            rng = np.random.default_rng([seed, 2 + place, number])
            instrument = random_instrument(kind, rng)
            for take in range(FILES_PER_INSTRUMENT):
                wave = play(instrument, seconds, rate_hz, rng)
                _write_wav(folder / f"{kind}-{number:02d}" / f"take-{take}.wav", wave, rate_hz, rng)


def write_backgrounds(
    folder: Path, count: int, *, seed: int, rate_hz: int, seconds: float = BACKGROUND_SECONDS
) -> None:
    """Write `count` noises, the kinds in turn."""
    names = sorted(NOISES)
    for number in range(count):
        rng = np.random.default_rng([seed, 4, number])
        name = names[number % len(names)]
        wave = NOISES[name](seconds, rate_hz, rng)
        _write_wav(folder / f"{name}-{number:02d}.wav", wave / np.abs(wave).max(), rate_hz, rng)


def write_rooms(folder: Path, count: int, *, seed: int, rate_hz: int) -> None:
    """Write `count` room responses whose RT60 goes evenly through 0.15 to 0.8 s."""
    for number, reverberation_seconds in enumerate(np.linspace(*REVERBERATION_RANGE_SECONDS, count)):
        rng = np.random.default_rng([seed, 5, number])
        wave = simulate_room(float(reverberation_seconds), rate_hz, rng)
        _write_wav(folder / f"room-{number:02d}.wav", 0.9 * wave, rate_hz, rng=None)


def _write_wav(path: Path, wave: np.ndarray, rate_hz: int, rng: np.random.Generator | None) -> None:
    """Write `wave` (peak 1) as 16-bit WAV; with `rng` at a recording level of -12 to -1 dBFS peak."""
    import soundfile

    gain = 1.0 if rng is None else 10 ** (rng.uniform(-12, -1) / 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.rint(wave * gain * 32767).astype(np.int16), rate_hz, subtype="PCM_16")
