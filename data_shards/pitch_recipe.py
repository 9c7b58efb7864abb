"""One training example of a pitch run, or one item of its validation list, as a pure function of its number.

`PitchRecipe` crops pairs that were built into shards; `DrawnPitchRecipe` shifts crops of recordings as they are asked
for, which takes a worker about 0.1 s for a second of audio. No torch here: loader workers start in a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.crops import audible_crop, padded_crop
from data_shards.errors import DataError
from data_shards.ingest import quantise
from data_shards.mix import Example, Source, rows_by_group, valid_turn
from data_shards.reader import Reader
from data_shards.schedule import between, generator, sample_of_draw
from data_shards.shift_pairs import PairFailed, drawn_shift, margin_frames, shifted_pair
from data_shards.shifts import ShiftOptions, ShiftTake
from hparams.shifting import ENGINES

if TYPE_CHECKING:
    from hparams.schema import HParams

WAVES = ("input", "target")
NUMBERS: dict[str, str] = {
    "semitones": "float32",
    "cutoff_hz": "float32",
    "engine": "int64",
    "level_db": "float32",
}
MOST_ATTEMPTS = 8
"""Stretches that are tried until one gives a pair."""


@dataclass(frozen=True)
class PitchSettings:
    """Values of one run; see the fields of the same names in `hparams.schema` and `hparams.pitch`."""

    seed: int
    valid_seed: int
    rate_hz: int
    crop_samples: int
    valid_samples: int
    valid_items: int
    level_range_db: tuple[float, float]
    shift: ShiftOptions
    """Of drawn pairs."""

    @classmethod
    def of(cls, hp: HParams) -> PitchSettings:
        """The settings that `hp` of a task `pitch` asks for."""
        task: Any = hp.task
        return cls(
            seed=hp.seed,
            valid_seed=hp.valid_seed,
            rate_hz=hp.wav_rate,
            crop_samples=hp.crop_samples,
            valid_samples=round(task.valid_seconds * hp.wav_rate),
            valid_items=task.valid_items,
            level_range_db=task.level_range_db,
            shift=ShiftOptions(task.semitones, task.engines),
        )


class PitchRecipe:
    """Examples from a corpus of kind `pitch`.

    `input` and `target` are int16 [T]; `semitones` (of the first shift), `cutoff_hz`, `engine` (its place in ENGINES)
    and `level_db` (RMS that the input is to have) are numbers.
    """

    kind = "pitch"
    waves: tuple[str, ...] = WAVES
    numbers = NUMBERS

    def __init__(self, settings: PitchSettings, sources: dict[str, Source]) -> None:
        self.settings = settings
        self.sources = sources
        corpus = sources[self.kind].corpus
        self._reader, self._checked = Reader(corpus), Reader(corpus, verify=True)

    def __reduce__(self) -> tuple[type[PitchRecipe], tuple[PitchSettings, dict[str, Source]]]:
        return type(self), (self.settings, self.sources)

    def close(self) -> None:
        """Close all files."""
        self._reader.close()
        self._checked.close()

    def example(self, draw: int) -> Example:
        """Training example `draw`."""
        settings, rows = self.settings, self.sources[self.kind].split.train
        row = int(rows[sample_of_draw(settings.seed, draw, len(rows), self.kind)])
        level = generator(settings.seed, draw, "pitch level").random()
        rng = generator(settings.seed, draw, self.kind)
        example, _ = self._pair(self._reader, row, rows, settings.crop_samples, rng, (settings.seed, draw))
        return {**example, "level_db": between(level, settings.level_range_db)}

    def valid_item(self, item: int) -> Example:
        """Item `item` of the validation list, at the middle of the levels."""
        low, high = self.settings.level_range_db
        return {**self._valid(item)[0], "level_db": (low + high) / 2}

    def valid_sources(self, item: int) -> dict[str, str]:
        """The recording behind an item of the validation list, and how it was shifted."""
        corpus = self.sources[self.kind].corpus
        example, row = self._valid(item)
        engine = ENGINES[int(example["engine"])]
        return {
            "recording": corpus.sources[corpus.source.item(row)],
            "shift": f"{engine} {int(example['semitones']):+d}",
        }

    def _valid(self, item: int) -> tuple[Example, int]:
        settings = self.settings
        row, members = valid_turn(self._valid_groups, settings.valid_seed, item, self.kind)
        rng = generator(settings.valid_seed, item, f"valid {self.kind}")
        name = (settings.valid_seed, f"valid {item}")
        return self._pair(self._checked, row, members, settings.valid_samples, rng, name)

    @cached_property
    def _valid_groups(self) -> list[np.ndarray]:
        source = self.sources[self.kind]
        return rows_by_group(source.corpus.group, source.split.valid)

    def _pair(
        self,
        reader: Reader,
        row: int,
        others: np.ndarray,
        frames: int,
        rng: np.random.Generator,
        name: tuple[int, int | str],
    ) -> tuple[Example, int]:
        """Input and target at one place of a sample where the input is not quiet, and the row it came to be."""
        target = np.zeros(frames, np.int16)

        def crop_both(reader: Reader, row: int, frames: int, place: float) -> np.ndarray:
            nonlocal target
            target = padded_crop(reader, row, frames, place, "target")
            return padded_crop(reader, row, frames, place, "input")

        found = audible_crop(reader, row, others, frames, rng, crop_both)
        if not found.wave.any():
            target = found.wave
        take = self.sources[self.kind].corpus.shifts[found.row]
        return {"input": found.wave, "target": target, **_numbers(take)}, found.row


class DrawnPitchRecipe(PitchRecipe):
    """The same from a corpus of kind `fg`, whose crops are shifted when they are asked for."""

    kind = "fg"

    def _pair(
        self,
        reader: Reader,
        row: int,
        others: np.ndarray,
        frames: int,
        rng: np.random.Generator,
        name: tuple[int, int | str],
    ) -> tuple[Example, int]:
        settings, margin = self.settings, margin_frames(self.settings.rate_hz)
        problem = ""
        for attempt in range(MOST_ATTEMPTS):
            found = audible_crop(reader, row, others, frames + 2 * margin, rng, padded_crop)
            drawn = drawn_shift(settings.shift, *name, attempt)
            try:
                pair = shifted_pair(found.wave / np.float32(32768), drawn, settings.rate_hz)
            except PairFailed as error:
                problem = str(error)
                continue
            sides = [quantise(side)[0] for side in (pair.input, pair.target)]
            return {"input": sides[0], "target": sides[1], **_numbers(pair.take)}, found.row
        raise DataError(
            f"{MOST_ATTEMPTS} stretches of the recordings gave no pair, the last one for: {problem}. Use other "
            "task.engines, or recordings that they can shift"
        )


def _numbers(take: ShiftTake) -> Example:
    return {
        "semitones": float(take.semitones),
        "cutoff_hz": take.cutoff_hz,
        "engine": ENGINES.index(take.engine),
    }
