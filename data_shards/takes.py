"""What is known about one recording of a device: its settings, and how dry and wet fit together.

`Take` is that or its counterpart for a note of a string, or for a pair of a shifted recording.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.notes import NoteTake, parse_note
from data_shards.shifts import ShiftTake, parse_shift
from data_shards.strict_json import MAX_INTEGER, JsonObject

TRAIN_SIDE, VALID_SIDE, TEST_SIDE = "train", "valid", "test"
# Contiguous in time, in this order; the last one need not be there.
SIDES = (TRAIN_SIDE, VALID_SIDE, TEST_SIDE)
ALIGN_MODES = ("auto", "given", "off")


@dataclass(frozen=True)
class DeviceTake:
    """One dry/wet pair of a device.

    Args:
        wet: name of the wet file.
        knobs: value of each knob, in the order of the names.
        align: how the lag came about: measured, given by the user, or none applied.
        lag_samples: frames by which the wet file was late, taken out; negative where it was early.
        polarity: 1 or -1 (inverted) as measured in the recording; 0 when it could not be told.
        fixed_polarity: whether an inverted wet file was turned over.
        confidence: of lag and polarity, 0..1; see `data_shards.align`.
        clipped_share: share of the wet file's samples that lie flat at full scale, 0..1.
        channel: the channel taken from files with several.
        valid_frames: frames, after alignment, that validate; all before them train.
        test_frames: frames at the end, behind those, that neither train nor validate.
    """

    wet: str
    knobs: dict[str, float]
    align: str
    lag_samples: int
    polarity: int
    fixed_polarity: bool
    confidence: float
    clipped_share: float
    channel: int
    valid_frames: int
    test_frames: int = 0

    def stretches(self, frames: int) -> tuple[tuple[str, int, int], ...]:
        """(side, first frame, frames) of each stretch of a recording that has `frames` frames after alignment."""
        lengths = (frames - self.valid_frames - self.test_frames, self.valid_frames, self.test_frames)
        starts = (0, lengths[0], lengths[0] + lengths[1])
        places = zip(SIDES, starts, lengths, strict=True)
        return tuple(place for place in places if place[0] != TEST_SIDE or self.test_frames)

    def apply(self, dry: np.ndarray, wet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dry and wet without the lag, equally long, and the right way up if that was asked for. Float32 [frames]."""
        dry, wet = without_lag(dry, wet, self.lag_samples)
        return dry, -wet if self.fixed_polarity and self.polarity < 0 else wet

    def as_json(self) -> dict[str, Any]:
        """The object in the sidecar."""
        return {
            "wet": self.wet,
            "knobs": dict(sorted(self.knobs.items())),
            "align": self.align,
            "lag_samples": self.lag_samples,
            "polarity": self.polarity,
            "fixed_polarity": int(self.fixed_polarity),
            "confidence": self.confidence,
            "clipped_share": self.clipped_share,
            "channel": self.channel,
            "valid_frames": self.valid_frames,
            # Left out where there is none: corpora without a test stretch are as they were before there were any.
            **({"test_frames": self.test_frames} if self.test_frames else {}),
        }

    def as_text(self) -> str:
        """One line, equal for equal takes."""
        return json.dumps(self.as_json(), separators=(",", ":"))


def parse_take(obj: JsonObject) -> DeviceTake:
    """The take in `obj`; CorpusError when it is not whole."""
    take = DeviceTake(
        wet=obj.text("wet"),
        knobs=dict(sorted(obj.numbers("knobs").items())),
        align=obj.text("align", ALIGN_MODES),
        lag_samples=obj.integer("lag_samples", -MAX_INTEGER),
        polarity=obj.integer("polarity", -1, 1),
        fixed_polarity=bool(obj.integer("fixed_polarity", 0, 1)),
        confidence=obj.number("confidence", 0, 1),
        clipped_share=obj.number("clipped_share", 0, 1),
        channel=obj.integer("channel"),
        valid_frames=obj.integer("valid_frames", 1),
        test_frames=obj.integer("test_frames", 1) if obj.has("test_frames") else 0,
    )
    obj.done()
    return take


def without_lag(dry: np.ndarray, wet: np.ndarray, lag_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The stretch that both share once `wet`, late by `lag_samples`, is moved to its place. [frames] each."""
    frames = len(dry) - abs(lag_samples)
    first = max(-lag_samples, 0)
    return dry[first : first + frames], wet[first + lag_samples : first + lag_samples + frames]


Take = DeviceTake | NoteTake | ShiftTake
"""What a sidecar keeps of a recording beside its audio."""
TAKE_PARSERS: dict[str, Callable[[JsonObject], Take]] = {
    "pedal": parse_take,
    "string": parse_note,
    "pitch": parse_shift,
}
"""By kind; other kinds have no takes."""
