"""What a file name says about a note: pitch and how hard it was plucked."""

from __future__ import annotations

import re
from dataclasses import dataclass

A4_HZ, A4_NUMBER = 440.0, 69
DYNAMICS = {"ppp": 0.05, "pp": 0.15, "p": 0.3, "mp": 0.45, "mf": 0.6, "f": 0.8, "ff": 0.95, "fff": 1.0}
MIDI_NOTES = (12, 119)
MIDI_VELOCITIES = 127

_SEPARATORS = re.compile(r"[-_ .]+")
_NOTE = re.compile(r"([a-gA-G])(#|s|b)?(-1|\d)")
_NUMBER = re.compile(r"(?:midi|note)?(\d{2,3})")
_LAYER = re.compile(r"vl(\d{1,2})")
_VELOCITY = re.compile(r"vel(\d{1,3})")
_ROUND_ROBIN = re.compile(r"rr\d+")
_SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


@dataclass(frozen=True)
class NoteName:
    """What was read. `layer`: of velocity, as sample libraries number them from 1 on (vl3). `rest`: the other words.

    f0_hz is None where no note is named, velocity where nothing says how hard it was plucked.
    """

    f0_hz: float | None
    velocity: float | None
    layer: int | None
    rest: str

    def group(self, folder: str) -> str:
        """What stays together in a split: all notes of one pitch below the same name in one folder."""
        pitch = "" if self.f0_hz is None else f"{self.f0_hz:.2f}Hz"
        return "/".join(part for part in (folder, self.rest, pitch) if part)


def read_name(stem: str) -> NoteName:
    """The note in a file name without its extension, such as `twang-a3_f_rr1`, `eb3_p`, `c#4`, `064_vel100`.

    Words are what stands between - _ . and blanks. The last word that is a note counts; a number from 12 to 119 is a
    MIDI note where no word is one. `f` is a dynamic, never a pitch: pitches have an octave.
    """
    words = _SEPARATORS.split(stem)
    f0_hz = velocity = layer = None
    rest: list[str] = []
    is_note = [bool(_NOTE.fullmatch(word)) for word in words]
    last_note = max((place for place, found in enumerate(is_note) if found), default=None)
    for place, word in enumerate(words):
        lower = word.lower()
        if place == last_note:
            letter, accidental, octave = _NOTE.fullmatch(word).groups()  # type: ignore[union-attr]
            shift = {"#": 1, "s": 1, "b": -1}.get(accidental, 0)
            f0_hz = pitch_of(12 * (int(octave) + 1) + _SEMITONES[letter.lower()] + shift)
        elif lower in DYNAMICS:
            velocity = DYNAMICS[lower]
        elif match := _LAYER.fullmatch(lower):
            layer = int(match[1])
        elif (match := _VELOCITY.fullmatch(lower)) and int(match[1]) <= MIDI_VELOCITIES:
            velocity = int(match[1]) / MIDI_VELOCITIES
        elif last_note is None and (number := _midi(lower)) is not None:
            f0_hz = pitch_of(number)
        elif word and not _ROUND_ROBIN.fullmatch(lower):
            rest.append(word)
    return NoteName(f0_hz, velocity, layer, "_".join(rest))


def pitch_of(number: float) -> float:
    """Hz of a MIDI note number: 69 is 440 Hz."""
    return float(A4_HZ * 2 ** ((number - A4_NUMBER) / 12))


def _midi(word: str) -> int | None:
    match = _NUMBER.fullmatch(word)
    number = int(match[1]) if match else -1
    return number if MIDI_NOTES[0] <= number <= MIDI_NOTES[1] else None
