"""What is known about one pair of a pitch corpus, and how such pairs are asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data_shards.errors import CorpusError
from data_shards.strict_json import MAX_INTEGER, JsonObject
from hparams.shifting import ENGINES, MOST_SEMITONES

UP_DOWN, DOWN_UP = "up-down", "down-up"
LEVELS = "as loud below the cutoff"
"""How the sides of a pair are levelled; what was built otherwise is built again."""


@dataclass(frozen=True)
class ShiftTake:
    """How a recording was shifted and shifted back.

    Args:
        semitones: of the first shift; above 0 up and then down again. Never 0.
        engine: the shifter, one of ENGINES.
        direction: `up-down` or `down-up`, as the sign of `semitones` says.
        lag_samples: frames by which the result was late, taken out; negative where it was early.
        confidence: correlation of the envelopes at that lag, 0..1.
        cutoff_hz: above it nothing is left to be restored: half the rate, or less where it went up first.
    """

    semitones: int
    engine: str
    direction: str
    lag_samples: int
    confidence: float
    cutoff_hz: float

    def as_json(self) -> dict[str, Any]:
        """The object in the sidecar."""
        return dict(vars(self))

    def as_text(self) -> str:
        """One line, equal for equal takes."""
        return json.dumps(self.as_json(), separators=(",", ":"))


def parse_shift(obj: JsonObject) -> ShiftTake:
    """The take in `obj`; CorpusError when it is not whole."""
    take = ShiftTake(
        semitones=obj.integer("semitones", -MOST_SEMITONES, MOST_SEMITONES),
        engine=obj.text("engine", ENGINES),
        direction=obj.text("direction", (UP_DOWN, DOWN_UP)),
        lag_samples=obj.integer("lag_samples", -MAX_INTEGER),
        confidence=obj.number("confidence", 0, 1),
        cutoff_hz=obj.number("cutoff_hz", 1, 1e6),
    )
    obj.done()
    if take.semitones == 0 or take.direction != direction_of(take.semitones):
        raise obj.error(f"says {take.direction} of {take.semitones} semitones")
    return take


def direction_of(semitones: int) -> str:
    """Which way it went first."""
    return UP_DOWN if semitones > 0 else DOWN_UP


def cutoff_of(semitones: int, rate_hz: int) -> float:
    """Above it nothing is left after the round trip: rate/2 / 2^(s/12) where it went up first, else rate/2, Hz."""
    return rate_hz / 2 / 2 ** (max(semitones, 0) / 12)


@dataclass(frozen=True)
class ShiftOptions:
    """How the pairs of a pitch corpus are made.

    Args:
        semitones: (lowest, highest), whole; 0 between them is passed over.
        engines: shifters; one is drawn for each pair.
        copies: pairs made of each stretch of a recording, each drawn anew.
        seed: semitones, engine and what is random in an engine are functions of it and of the stretch.
    """

    semitones: tuple[int, int] = (-12, 12)
    engines: tuple[str, ...] = ("signalsmith",)
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.semitones
        shown = f"{low}..{high}"
        if max(abs(low), abs(high)) > MOST_SEMITONES or low > high:
            raise CorpusError(
                f"--semitones is {shown}; needed a range from -{MOST_SEMITONES} to {MOST_SEMITONES}, such as -12..12"
            )
        if not self.choices:
            raise CorpusError(
                f"--semitones is {shown}, which shifts nothing: a pair needs at least a semitone up or down, such as "
                "-12..12"
            )
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown or not self.engines or len(set(self.engines)) < len(self.engines):
            raise CorpusError(
                f"--engines is {','.join(self.engines)!r}; needed one or more of {', '.join(ENGINES)}, each once"
            )
        if not 1 <= self.copies <= 1000:
            raise CorpusError(f"--copies is {self.copies}; needed a number from 1 to 1000")
        if not 0 <= self.seed < 2**63:
            raise CorpusError(f"--seed is {self.seed}; needed a number from 0 to 2^63 - 1")

    @property
    def choices(self) -> tuple[int, ...]:
        """The shifts that are drawn from."""
        low, high = self.semitones
        return tuple(number for number in range(low, high + 1) if number)

    def as_text(self) -> str:
        """One line, equal for equal options."""
        return f"{self.semitones} {self.engines} {self.copies} {self.seed} {LEVELS}"


def semitone_range(text: str) -> tuple[int, int]:
    """`-12..12` or `5` as (lowest, highest). Raises CorpusError for anything else."""
    low, dots, high = text.partition("..")
    try:
        return int(low), int(high if dots else low)
    except ValueError:
        raise CorpusError(
            f"--semitones is {text!r}; needed whole numbers such as -12..12, or one such as 5"
        ) from None
