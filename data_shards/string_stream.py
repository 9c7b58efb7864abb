"""The data stream of a string run: windows of notes at every level of their decay, in the order of the draws.

Notes are seconds long, so each rank holds all of them as float32 and cuts windows in its own process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.notes import NoteTake
from data_shards.pedal_stream import VALID_SIDE, Batch, PedalBatches
from data_shards.reader import Reader
from data_shards.schedule import below, generator, sample_of_draw
from data_shards.string_notes import AUDIBLE_DB
from enhancer.signal.decay import (
    OCTAVE_CENTRES_HZ,
    audible_bands,
    octave_levels,
    octave_t60,
    window_samples,
)

if TYPE_CHECKING:
    from hparams.schema import HParams
    from hparams.tasks import StringHParams

LEVEL_HOP_SECONDS = 0.01
NOISE_MARGIN_DB = 10.0
LOWEST_DB = -200.0
MOST_OUTLOOK_NOTES = 48
"""Evenly among those that train: what is learned from them is a handful of numbers."""


@dataclass(frozen=True, eq=False)
class LoadedNote:
    """One note in memory. wave: float32 [frames] from the end of the attack on."""

    source: str
    take: NoteTake
    wave: np.ndarray
    level_db: np.ndarray
    """Level of the history that begins at each hop against that of the first one, never rising: float64 [hops]."""
    hop: int
    t60: torch.Tensor
    """Seconds in the octave bands, as `measured_t60` has them: float32 [1, bands]."""
    t60_range_db: torch.Tensor

    def start_at(self, uniform: float, last: int, is_level_balanced: bool) -> int:
        """First frame of a window, 0 to `last`, for a number of [0, 1).

        Level-balanced: all levels in dB that the note goes through until `last` are as likely.
        """
        levels = self.level_db[: last // self.hop + 1]
        if not is_level_balanced or len(levels) < 2 or levels[-1] == levels[0]:
            return below(uniform, last + 1)
        wanted_db = levels[0] + uniform * (levels[-1] - levels[0])
        after = int(np.searchsorted(-levels, -wanted_db, side="left"))
        if after == 0:
            return 0
        high, low = levels[after - 1], levels[after]
        place = after - 1 + ((high - wanted_db) / (high - low) if high > low else 0.0)
        return min(int(place * self.hop), last)


@dataclass(frozen=True, eq=False, kw_only=True)
class StringStream:
    """One rank's windows of notes. See `enhancer.engine.task.Stream`, which it fulfils.

    A training batch has `draw` int64 [B], `note` float32 [B, T], and float32 [B] `f0_hz`, `velocity`, `position`,
    `time`, `decay_db`; `t60` is float32 [B, 9]. NaN is what is not known. docs/strings.md says what they are.
    """

    train: tuple[LoadedNote, ...]
    valid: tuple[LoadedNote, ...]
    seed: int
    window_frames: int
    history_frames: int
    valid_frames: int
    """Longest validation item, its history included."""
    is_level_balanced: bool
    start_share: float
    """Of the draws that begin with the note."""
    rate_hz: int
    fingerprint: str
    """That of the corpus."""
    rank: int
    world_size: int
    batch_size: int
    warnings: tuple[str, ...]

    def place(self, draw: int) -> tuple[int, int]:
        """(row of `train`, first frame) of a draw: a pure function of (seed, draw)."""
        row = sample_of_draw(self.seed, draw, len(self.train), "string")
        note = self.train[row]
        uniform, other = generator(self.seed, draw, "string-window").random(2)
        if other < self.start_share:
            return row, 0
        return row, note.start_at(uniform, len(note.wave) - self.window_frames, self.is_level_balanced)

    def training_batch(self, draws: range) -> Batch:
        """The rows of `draws`."""
        places = [self.place(draw) for draw in draws]
        rows = [self._row(self.train[row], start, self.window_frames) for row, start in places]
        numbers = torch.arange(draws.start, draws.stop, dtype=torch.int64)
        return {"draw": numbers, **{name: torch.cat([row[name] for row in rows]) for name in rows[0]}}

    def validation_row(self, item: int) -> Batch:
        """Note `item` from the end of its attack on, a batch of one row; `noise_db` float32 [1, 9]: its noise floor."""
        note = self.valid[item]
        row = self._row(note, 0, min(self.valid_frames, len(note.wave)))
        return {**row, "noise_db": _bands(note.take.noise_db)}

    def _row(self, note: LoadedNote, start: int, frames: int) -> Batch:
        take = note.take
        scalars = {
            "f0_hz": take.f0_hz,
            "velocity": take.velocity,
            "position": take.position,
            "time": start / self.rate_hz,
            "decay_db": _history_db(note.wave, start, self.history_frames)
            - _history_db(note.wave, 0, self.history_frames),
        }
        wave = torch.from_numpy(note.wave[None, start : start + frames].copy())
        values = {name: np.nan if value is None else value for name, value in scalars.items()}
        columns = {name: torch.tensor([value], dtype=torch.float32) for name, value in values.items()}
        return {"note": wave, **columns, "t60": note.t60, "t60_range_db": note.t60_range_db}

    def from_draw(self, draw: int) -> PedalBatches:
        """Endless batches, the first starting at global draw `draw`."""
        return PedalBatches(self, draw)

    def validation(self) -> Iterator[Batch]:
        """This rank's share of the held-out notes, one a batch, as many batches on every rank.

        `item` int64 [1] is the note's number, or -1 in a batch that only fills up; the rest is its validation row.
        """
        for first in range(0, len(self.valid), self.world_size):
            item = first + self.rank
            is_filling = item >= len(self.valid)
            yield {
                "item": torch.tensor([-1 if is_filling else item]),
                **self.validation_row(0 if is_filling else item),
            }

    @property
    def num_valid_items(self) -> int:
        """Notes that are held out."""
        return len(self.valid)

    @property
    def epoch_draws(self) -> int:
        """Draws in which each note comes once."""
        return len(self.train)

    def item_sources(self, item: int) -> dict[str, str]:
        """The file behind a held-out note."""
        return {"note": self.valid[item].source}

    def constants(self) -> dict[str, torch.Tensor]:
        """What the outlook of a string learns from: `outlook_level_db` [N, bands, frames] of N notes that train,

        from the end of the attack on, as long as notes are judged, NaN behind their end; `outlook_f0_hz` [N]; and
        `outlook_stop_db` [N, bands], where their noise begins.
        """
        notes = self.train[:: math.ceil(len(self.train) / MOST_OUTLOOK_NOTES)]
        waves = [torch.from_numpy(note.wave[None, : self.valid_frames]) for note in notes]
        levels = [octave_levels(wave, self.rate_hz).band_db[0].T for wave in waves]
        noise = torch.cat([_bands(note.take.noise_db) for note in notes])
        return {
            "outlook_level_db": pad_sequence(levels, batch_first=True, padding_value=math.nan).transpose(
                1, 2
            ),
            "outlook_f0_hz": torch.tensor([note.take.f0_hz for note in notes]),
            "outlook_stop_db": noise.nan_to_num(LOWEST_DB) + NOISE_MARGIN_DB,
        }


def open_string_stream(
    hp: HParams,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int | None = None,
    num_workers: int | None = None,
    judged_side: str = VALID_SIDE,
) -> StringStream:
    """Open the corpus hp.note_dir and read all of it, every checksum compared.

    Args:
        hp: hyper-parameters of a string run, whose wav_rate is the corpus's.
        rank: this process among `world_size`.
        world_size: processes that share the draws.
        batch_size: rows of a training batch; hp.batch_size_per_gpu when not given.
        num_workers: of no meaning here: batches are cut from memory. There so that streams open alike.
        judged_side: `valid`; there is no other.

    Raises: CorpusError when there is no string corpus, it is at another rate, or too few notes are long enough;
    DataError for damage.
    """
    if hp.note_dir is None:
        raise CorpusError(
            "note_dir is not set: a string is learned from single notes. Build a corpus: python "
            "launch/build_shards.py string --input notes/ --output data/my_notes, then --set note_dir=data/my_notes; "
            "or use the synthetic one: python launch/demo_corpora.py --kind string, --set note_dir=data/string"
        )
    if judged_side != VALID_SIDE:
        raise CorpusError(f"--split {judged_side}: notes have no {judged_side} stretch; leave --split out")
    own = cast("StringHParams", hp.task)
    corpus = Corpus.open(hp.note_dir, "string", hp.wav_rate)
    history_frames = round(own.history_seconds * corpus.rate_hz)
    train, valid = split_notes(corpus.groups, own.folds, own.held_out_fold, str(corpus.folder))
    window_frames = round(hp.training_seconds * corpus.rate_hz)
    valid_frames = history_frames + round(own.valid_seconds * corpus.rate_hz)
    notes = _load(corpus, history_frames, valid_frames)
    fewest = {"train": window_frames, "validate": history_frames + 2 * window_samples(corpus.rate_hz)}
    sides, warnings = {}, []
    for (what, frames), groups in zip(fewest.items(), (train, valid), strict=True):
        side = [note for note, group in zip(notes, corpus.group, strict=True) if int(group) in groups]
        long = tuple(note for note in side if len(note.wave) >= frames)
        if len(long) < len(side):
            warnings.append(
                f"{len(side) - len(long)} of {len(side)} notes are shorter than the {frames / corpus.rate_hz:.2f} s "
                f"that are needed to {what}, and are left out"
            )
        if not long:
            raise CorpusError(
                f"{corpus.folder} has no note to {what} of {frames / corpus.rate_hz:.2f} s or more. Record longer "
                "notes, or lower training_seconds and task.history_seconds"
            )
        sides[what] = long
    return StringStream(
        train=sides["train"],
        valid=sides["validate"],
        seed=hp.seed,
        window_frames=window_frames,
        history_frames=history_frames,
        valid_frames=valid_frames,
        is_level_balanced=own.is_level_balanced,
        start_share=own.start_share,
        rate_hz=corpus.rate_hz,
        fingerprint=corpus.fingerprint,
        rank=rank,
        world_size=world_size,
        batch_size=hp.batch_size_per_gpu if batch_size is None else batch_size,
        warnings=tuple(warnings),
    )


def split_notes(
    groups: tuple[str, ...], folds: int, held_out_fold: int, place: str
) -> tuple[set[int], set[int]]:
    """(rows of `groups` that train, rows that validate): number n of the sorted groups is in fold n % folds.

    Neighbours by name are notes of one instrument, so every instrument is on both sides where it has enough pitches.
    Raises: CorpusError where one side would be empty.
    """
    order = sorted(range(len(groups)), key=lambda row: groups[row])
    valid = {row for number, row in enumerate(order) if number % folds == held_out_fold}
    train = set(order) - valid
    if not train or not valid:
        raise CorpusError(
            f"{place} has {len(groups)} different notes, too few to hold one in {folds} out. Record more pitches, or "
            "lower task.folds and task.held_out_fold"
        )
    return train, valid


def _load(corpus: Corpus, history_frames: int, valid_frames: int) -> list[LoadedNote]:
    reader = Reader(corpus, verify=True)
    hop = max(round(LEVEL_HOP_SECONDS * corpus.rate_hz), 1)
    notes = []
    for row, take in enumerate(corpus.notes):
        wave = reader.whole(row)[take.attack_frames :].astype(np.float32)
        source = corpus.sources[corpus.source.item(row)]
        t60 = measured_t60(wave[history_frames:valid_frames], take, corpus.rate_hz)
        notes.append(LoadedNote(source, take, wave, _levels(wave, history_frames, hop), hop, *t60))
    reader.close()
    return notes


def measured_t60(decay: np.ndarray, take: NoteTake, rate_hz: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(seconds, dB by which the level falls over the line that they are of) in the octave bands of `decay` [T]: [1, 9].

    As a validation note is judged, which begins where its history ends; NaN where there is nothing to be measured. A
    stretch too short for that has the T60 of the whole decay, and NaN for its range.
    """
    if len(decay) < 2 * window_samples(rate_hz):
        whole = _bands(take.t60_seconds)
        return whole, torch.full_like(whole, np.nan)
    levels = octave_levels(torch.from_numpy(decay[None]), rate_hz)
    measured, stop_db = octave_t60(levels, _bands(take.noise_db), NOISE_MARGIN_DB)
    is_told = (audible_bands(levels, AUDIBLE_DB) > 0) & measured.t60_seconds.isfinite()
    columns = (measured.t60_seconds, levels.band_db[..., 0] - stop_db)
    seconds, range_db = (torch.where(is_told, column, np.nan).float() for column in columns)
    return seconds, range_db


def _levels(wave: np.ndarray, history_frames: int, hop: int) -> np.ndarray:
    total = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    energy = np.maximum(total[history_frames:] - total[:-history_frames], 0)[::hop] / history_frames
    if not len(energy):
        return np.zeros(1)
    return np.minimum.accumulate(_decibels(energy) - _decibels(energy[:1]))


def _history_db(wave: np.ndarray, start: int, frames: int) -> float:
    history = wave[start : start + frames].astype(np.float64)
    return float(_decibels((history**2).mean(keepdims=True))[0])


def _decibels(energy: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(energy, 10 ** (LOWEST_DB / 10)))


def _bands(values: dict[str, float]) -> torch.Tensor:
    """[1, bands] of a table by centre frequency; NaN where it has none."""
    return torch.tensor(
        [[values.get(f"{centre:g}", np.nan) for centre in OCTAVE_CENTRES_HZ]], dtype=torch.float32
    )
