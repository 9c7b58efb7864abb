"""One training example, or one item of the validation list, as a pure function of its number and the seed.

An example is two raw crops and the drawn numbers of its mix; convolution, mixing and distortions are done
by the task on the device. Which worker, rank or run asks makes no difference.

Numbers are drawn from named streams (`data_shards.schedule.generator`), one place in a stream for each
quantity, so that turning one quantity off leaves the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_shards.corpus import Corpus
from data_shards.crops import CropAt, audible_crop, looped_crop, padded_crop
from data_shards.distortions import CLEAN, DISTORTIONS, NUM_UNIFORMS, draw_distortions
from data_shards.praat import change_voice
from data_shards.reader import Reader
from data_shards.schedule import below, between, generator, log_between, sample_of_draw
from data_shards.settings import MixSettings
from data_shards.split import Split
from data_shards.variety import NUM_ANCHORS, at_speed, equalised, layered

Example = dict[str, np.ndarray | float | int | bool]
Rows = dict[str, int]

# One row of a batch: name -> type; the two waveforms have one more axis.
WAVES = ("fg", "bg")
NUMBERS: dict[str, str] = {
    "is_pair": "bool",
    "rir": "int64",
    "room_gain_db": "float32",
    "snr_db": "float32",
    "level_db": "float32",
    "eq_hz": "float32",
    "eq_gain_db": "float32",
    "eq_q": "float32",
    "lowpass_hz": "float32",
    "highpass_hz": "float32",
    "drive_db": "float32",
    "noise_snr_db": "float32",
    "noise_seed": "int64",
}
_PAIR_UNIT_BITS = 32


@dataclass(frozen=True, eq=False)
class Source:
    """One corpus with its split."""

    corpus: Corpus
    split: Split


class MixRecipe:
    """Makes examples from foreground, background, room and pair corpora; each may be absent when unused.

    Args:
        settings: what to draw.
        sources: corpora by kind (fg, bg, rir, pair).
    """

    waves: tuple[str, ...] = WAVES
    numbers = NUMBERS

    def __init__(self, settings: MixSettings, sources: dict[str, Source]) -> None:
        self.settings = settings
        self.sources = sources
        self._readers = {kind: Reader(source.corpus) for kind, source in sources.items()}
        self._checked = {kind: Reader(source.corpus, verify=True) for kind, source in sources.items()}
        self._pair_unit = round(settings.pair_fraction * 2**_PAIR_UNIT_BITS)

    def __reduce__(self) -> tuple[type[MixRecipe], tuple[MixSettings, dict[str, Source]]]:
        # Loader workers need neither the files nor the validation list.
        return type(self), (self.settings, self.sources)

    @cached_property
    def _valid_groups(self) -> dict[str, list[np.ndarray]]:
        """Rows of each validation group, by kind."""
        return {
            kind: rows_by_group(source.corpus.group, source.split.valid)
            for kind, source in self.sources.items()
        }

    def close(self) -> None:
        """Close all files."""
        for reader in (*self._readers.values(), *self._checked.values()):
            reader.close()

    def example(self, draw: int) -> Example:
        """Training example `draw`: `fg` and `bg`, int16 [crop_samples], and the numbers of `NUMBERS`."""
        pairs_before = self._pairs_before(draw)
        if self._pairs_before(draw + 1) > pairs_before:
            return self._pair(draw, pairs_before)
        return self._mixture(draw, draw - pairs_before)

    def valid_item(self, item: int) -> Example:
        """Item `item` of the validation list: as `example`, with [valid_samples]."""
        return self._valid(item)[0]

    def valid_sources(self, item: int) -> dict[str, str]:
        """The recordings behind an item of the validation list, by kind, as named when the corpus was built."""
        corpora = {kind: self.sources[kind].corpus for kind in self.sources}
        rows = self._valid(item)[1]
        return {kind: corpora[kind].sources[corpora[kind].source.item(row)] for kind, row in rows.items()}

    def _valid(self, item: int) -> tuple[Example, Rows]:
        pairs_before = self._pairs_before(item)
        if self._pairs_before(item + 1) > pairs_before:
            return self._valid_pair(item, pairs_before)
        return self._valid_mixture(item, item - pairs_before)

    def _pairs_before(self, draw: int) -> int:
        """How many of the draws below `draw` are pairs: spread evenly, in whole numbers."""
        return draw * self._pair_unit >> _PAIR_UNIT_BITS

    def _mixture(self, draw: int, number: int) -> Example:
        """The own mix of `draw`, the `number`-th own mix of the run."""
        settings, frames = self.settings, self.settings.crop_samples
        (silence, room_on, room, snr, level), drawn = _split_draws(generator(settings.seed, draw, "mix"))
        rows = self.sources["fg"].split.train
        fg = np.zeros(frames, np.int16)
        if silence >= settings.silence_prob:
            row = int(rows[sample_of_draw(settings.seed, number, len(rows))])
            fg = self._crop("fg", row, draw, padded_crop)
            if self._is_praat(draw):
                fg = change_voice(fg, settings.rate_hz, settings.seed, draw)
            fg = self._equalised(fg, draw, "fg", settings.fg_eq_db)
        example: Example = {
            "fg": fg,
            "bg": np.zeros(frames, np.int16),
            "is_pair": False,
            "rir": -1,
            "room_gain_db": 0.0,
            "snr_db": between(snr, settings.snr_range_db),
            "level_db": between(level, settings.level_range_db),
            **draw_distortions(drawn, settings.distort_prob, settings.rate_hz),
        }
        has_bg, may_have_room = self._surroundings(draw)
        if has_bg:
            example["bg"] = self._background(draw)
        if may_have_room and room_on < settings.rir_prob:
            rooms = self.sources["rir"].split.train
            example["rir"] = int(rooms[below(room, len(rooms))])
            place = generator(settings.seed, draw, "room gain").random()
            example["room_gain_db"] = between(place, settings.room_range_db)
        return example

    def _surroundings(self, draw: int) -> tuple[bool, bool]:
        """Whether a draw has a background, and whether it may have a room."""
        return not self.settings.load_fg_only, not self.settings.load_fg_only

    def _is_praat(self, draw: int) -> bool:
        settings = self.settings
        return (
            settings.praat_prob > 0
            and generator(settings.seed, draw, "praat on").random() < settings.praat_prob
        )

    def _background(self, draw: int) -> np.ndarray:
        wave = self._one_background(draw, "bg")
        if self.settings.second_bg_prob > 0:
            is_on, place = generator(self.settings.seed, draw, "bg layers").random(2).tolist()
            if is_on < self.settings.second_bg_prob:
                return layered(wave, self._one_background(draw, "second bg"), place)
        return wave

    def _one_background(self, draw: int, stream: str) -> np.ndarray:
        rows = self.sources["bg"].split.train
        row = int(rows[below(generator(self.settings.seed, draw, f"{stream} row").random(), len(rows))])
        wave = self._crop("bg", row, draw, looped_crop, stream)
        return self._equalised(wave, draw, stream, self.settings.bg_eq_db)

    def _equalised(self, wave: np.ndarray, draw: int, stream: str, range_db: float) -> np.ndarray:
        if range_db == 0:
            return wave
        places = generator(self.settings.seed, draw, f"{stream} eq").random(NUM_ANCHORS)
        return equalised(wave, range_db * (2 * places - 1), self.settings.rate_hz)

    def _crop(self, kind: str, row: int, draw: int, crop_at: CropAt, stream: str | None = None) -> np.ndarray:
        """A training crop of sample `row`, at a drawn speed where speeds are drawn: int16 [crop_samples]."""
        settings, frames = self.settings, self.settings.crop_samples
        speed = 1.0
        if settings.speed_range != (1.0, 1.0):
            place = generator(settings.seed, draw, f"{stream or kind} speed").random()
            speed = log_between(place, settings.speed_range)
        rng = generator(settings.seed, draw, stream or kind)
        rows = self.sources[kind].split.train
        return at_speed(
            audible_crop(self._readers[kind], row, rows, round(frames * speed), rng, crop_at).wave, frames
        )

    def _pair(self, draw: int, number: int) -> Example:
        """The `number`-th pair of the run. It is as damaged as it was recorded: no distortion is added."""
        settings = self.settings
        rows = self.sources["pair"].split.train
        row = int(rows[sample_of_draw(settings.seed, number, len(rows), "pair")])
        level = generator(settings.seed, draw, "mix").random()
        rng = generator(settings.seed, draw, "pair")
        waves, _ = self._pair_waves(self._readers["pair"], row, rows, settings.crop_samples, rng)
        return {**waves, "level_db": between(level, settings.level_range_db)}

    @staticmethod
    def _pair_waves(
        reader: Reader, row: int, others: np.ndarray, frames: int, rng: np.random.Generator
    ) -> tuple[Example, int]:
        """Input and target at one place where the input is not quiet (a silent target is worth learning)."""
        target = np.zeros(frames, np.int16)

        def crop_both(reader: Reader, row: int, frames: int, place: float) -> np.ndarray:
            nonlocal target
            target = padded_crop(reader, row, frames, place, "target")
            return padded_crop(reader, row, frames, place, "input")

        recorded = audible_crop(reader, row, others, frames, rng, crop_both)
        if not recorded.wave.any():
            target = recorded.wave
        values: Example = {"fg": target, "bg": recorded.wave, "is_pair": True}
        return {**values, "rir": -1, "room_gain_db": 0.0, "snr_db": 0.0, **CLEAN}, recorded.row

    def _valid_mixture(self, item: int, number: int) -> tuple[Example, Rows]:
        """The `number`-th mixture of the list. Every second one is in a room; groups take turns."""
        example, chosen, drawn = self._valid_foreground(item, number)
        if self.settings.load_fg_only:
            # Without background and room only the distortions are left to be undone: one of each in turn.
            on = [float(place != number % len(DISTORTIONS)) for place in range(len(DISTORTIONS))]
            distortions = draw_distortions(on + drawn[len(on) :], 0.5, self.settings.rate_hz)
            return {**example, **distortions}, chosen
        self._add_valid_background(item, number, example, chosen)
        if number % 2 == 1:
            example["rir"] = chosen["rir"] = self._valid_row("rir", number // 2)[0]
        return example, chosen

    def _valid_foreground(self, item: int, number: int) -> tuple[Example, Rows, list[float]]:
        """The item without anything else, what it is made of, and uniform numbers for its distortions."""
        settings, frames = self.settings, self.settings.valid_samples
        snr, level, *drawn = generator(settings.valid_seed, item, "valid").random(2 + NUM_UNIFORMS).tolist()
        rng = generator(settings.valid_seed, item, "valid fg")
        row, members = self._valid_row("fg", number)
        fg = audible_crop(self._checked["fg"], row, members, frames, rng, padded_crop)
        example: Example = {
            "fg": fg.wave,
            "bg": np.zeros(frames, np.int16),
            "is_pair": False,
            "rir": -1,
            "room_gain_db": 0.0,
            "snr_db": between(snr, settings.valid_snr_range_db),
            "level_db": between(level, settings.level_range_db),
            **CLEAN,
        }
        return example, {"fg": fg.row}, drawn

    def _add_valid_background(self, item: int, number: int, example: Example, chosen: Rows) -> None:
        row, members = self._valid_row("bg", number)
        rng = generator(self.settings.valid_seed, item, "valid bg")
        bg = audible_crop(self._checked["bg"], row, members, self.settings.valid_samples, rng, looped_crop)
        example["bg"], chosen["bg"] = bg.wave, bg.row

    def _valid_pair(self, item: int, number: int) -> tuple[Example, Rows]:
        rng = generator(self.settings.valid_seed, item, "valid pair")
        row, members = self._valid_row("pair", number)
        waves, row = self._pair_waves(self._checked["pair"], row, members, self.settings.valid_samples, rng)
        return {**waves, "level_db": np.nan}, {"pair": row}

    def _valid_row(self, kind: str, number: int) -> tuple[int, np.ndarray]:
        """A sample for the `number`-th use of `kind` on the list, and all rows of its group."""
        return valid_turn(self._valid_groups[kind], self.settings.valid_seed, number, kind)

    def room_bank(self) -> np.ndarray:
        """All room responses, checked and zero-padded: float32 [R, L], direct path 1 at sample 0; [0, 1]
        without.
        """
        if "rir" not in self.sources:
            return np.zeros((0, 1), np.float32)
        corpus, reader = self.sources["rir"].corpus, self._checked["rir"]
        bank = np.zeros((len(corpus), int(corpus.frames.max())), np.float32)
        for row in range(len(corpus)):
            wave = reader.whole(row)
            bank[row, : len(wave)] = wave / np.float32(32767)
        return bank


def valid_turn(groups: list[np.ndarray], seed: int, number: int, kind: str) -> tuple[int, np.ndarray]:
    """A sample for the `number`-th place of a validation list, and all rows of its group.

    Every one of `groups` (of `rows_by_group`) has its turn, in another order each round, before one comes again; so do
    the samples in it.
    """
    place = sample_of_draw(seed, number, len(groups), f"valid {kind}")
    members = groups[place]
    visit = number // len(groups)
    return int(members[sample_of_draw(seed, visit, len(members), f"valid {kind} {place}")]), members


def rows_by_group(group: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """`rows` cut into one array per group, in the order of the groups."""
    rows = rows[np.argsort(group[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1)


def _split_draws(rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Five numbers for the mix, and those for its distortions."""
    drawn = rng.random(5 + NUM_UNIFORMS).tolist()
    return drawn[:5], drawn[5:]
