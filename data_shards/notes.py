"""What is known about one recorded note of a string."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from data_shards.strict_json import JsonObject

ATTACK_MODES = ("cut", "keep")
PITCH_SOURCES = ("name", "given", "estimate")


@dataclass(frozen=True)
class NoteTake:
    """One note. Times are in frames at the rate of the corpus.

    Args:
        group: what stays together in training or validation: notes of one pitch of one instrument.
        f0_hz: as measured behind the attack.
        f0_from: what said which note it is.
        given_hz: what that was; equal to f0_hz where the pitch was only estimated.
        clarity: how periodic the note is, 0..1.
        velocity: how hard it was plucked, 0..1; None where nothing says.
        position: where, as a share of the string, 0..1; None where nothing says.
        onset: where the note begins in the file.
        attack_end: where, in the file, the string is left alone: from there on it only decays.
        start: first frame that is kept: `attack_end`, or with attack `keep` the onset.
        frames: how many are kept: until the decay meets the noise floor, a fade-out begins, or the file ends.
        end: which of these three: `noise`, `fade` or `file`.
        attack: `cut` or `keep`.
        clipped_share: share of the file that lies flat at full scale, 0..1.
        t60_seconds: by centre frequency of the octave band, where it can be told.
        noise_db: noise floor at the end of the decay by band, dB re full scale, at most what is there.
    """

    group: str
    f0_hz: float
    f0_from: str
    given_hz: float
    clarity: float
    velocity: float | None
    position: float | None
    onset: int
    attack_end: int
    start: int
    frames: int
    end: str
    attack: str
    clipped_share: float
    t60_seconds: dict[str, float]
    noise_db: dict[str, float]

    @property
    def attack_frames(self) -> int:
        """Frames of the attack that are kept."""
        return self.attack_end - self.start

    def as_json(self) -> dict[str, Any]:
        """The object in the sidecar; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def as_text(self) -> str:
        """One line, equal for equal notes."""
        return json.dumps(self.as_json(), separators=(",", ":"))


def parse_note(obj: JsonObject) -> NoteTake:
    """The note in `obj`; CorpusError when it is not whole."""
    note = NoteTake(
        group=obj.text("group"),
        f0_hz=obj.number("f0_hz", 1, 1e5),
        f0_from=obj.text("f0_from", PITCH_SOURCES),
        given_hz=obj.number("given_hz", 1, 1e5),
        clarity=obj.number("clarity", 0, 1),
        velocity=obj.number("velocity", 0, 1) if obj.has("velocity") else None,
        position=obj.number("position", 0, 1) if obj.has("position") else None,
        onset=obj.integer("onset"),
        attack_end=obj.integer("attack_end"),
        start=obj.integer("start"),
        frames=obj.integer("frames", 1),
        end=obj.text("end", ("noise", "fade", "file")),
        attack=obj.text("attack", ATTACK_MODES),
        clipped_share=obj.number("clipped_share", 0, 1),
        t60_seconds=obj.numbers("t60_seconds"),
        noise_db=obj.numbers("noise_db"),
    )
    obj.done()
    if not note.onset <= note.attack_end < note.start + note.frames or note.start > note.attack_end:
        raise obj.error(f"puts the attack at {note.onset} to {note.attack_end}, outside what is kept")
    return note
