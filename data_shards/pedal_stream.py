"""The data stream of a pedal run: segments of dry and wet with the knobs, in the order of the draws.

A pedal corpus is minutes long, so each rank holds all of it as float32 and cuts batches in its own process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.reader import Reader
from data_shards.schedule import below, generator, sample_of_draw
from data_shards.takes import TEST_SIDE, VALID_SIDE

if TYPE_CHECKING:
    from hparams.schema import HParams
    from hparams.tasks import PedalHParams

Batch = dict[str, Tensor]
JUDGED_SIDES = (VALID_SIDE, TEST_SIDE)


@dataclass(frozen=True, eq=False)
class LoadedPair:
    """One dry/wet pair in memory. dry, wet: float32 [frames], the lag taken out; knobs: float32 [K].

    The first `train_frames` train, the next `valid_frames` validate, and what is left is kept for a test.
    """

    dry_name: str
    wet_name: str
    dry: np.ndarray
    wet: np.ndarray
    knobs: np.ndarray
    train_frames: int
    valid_frames: int

    def judged(self, side: str) -> tuple[int, int]:
        """(first frame, end) of the stretch that judges on `side`, one of JUDGED_SIDES."""
        end_of_valid = self.train_frames + self.valid_frames
        return (self.train_frames, end_of_valid) if side == VALID_SIDE else (end_of_valid, len(self.dry))


@dataclass(frozen=True)
class SegmentPlan:
    """Which segment of which pair a draw takes: a pure function of (seed, draw).

    In each epoch every pair's training stretch is cut into segments side by side, from an offset that is new in each
    epoch, and a keyed permutation orders those of all pairs. The offset leaves out less than two segments at the two
    ends together, other ones in each epoch.

    Args:
        seed: of the run.
        segment_frames: length of a segment.
        train_frames: length of each pair's training stretch, none shorter than a segment.
    """

    seed: int
    segment_frames: int
    train_frames: tuple[int, ...]

    def num_segments(self, pair: int) -> int:
        """Segments of `pair` in an epoch: one fewer than fit, so that the offset has room; at least one."""
        return max(self.train_frames[pair] // self.segment_frames - 1, 1)

    @property
    def epoch_draws(self) -> int:
        """Draws in which each segment comes once."""
        return sum(self.num_segments(pair) for pair in range(len(self.train_frames)))

    def place(self, draw: int) -> tuple[int, int]:
        """(pair, first frame) of a draw."""
        total = self.epoch_draws
        segment = sample_of_draw(self.seed, draw, total, "pedal")
        pair = 0
        while segment >= self.num_segments(pair):
            segment -= self.num_segments(pair)
            pair += 1
        return pair, _epoch_offset(self, draw // total, pair) + segment * self.segment_frames


@lru_cache(maxsize=4096)
def _epoch_offset(plan: SegmentPlan, epoch: int, pair: int) -> int:
    room = plan.train_frames[pair] - plan.num_segments(pair) * plan.segment_frames
    return below(generator(plan.seed, epoch, f"pedal-offset-{pair}").random(), room + 1)


class RowSource(Protocol):
    """One rank's share of the draws, by rows."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    def training_batch(self, draws: range) -> Batch: ...


class PedalBatches(Iterator[Batch]):
    """Endless batches of one rank, made when asked for."""

    def __init__(self, stream: RowSource, first_draw: int) -> None:
        self._stream, self._next_draw = stream, first_draw

    def __next__(self) -> Batch:
        stream = self._stream
        start = self._next_draw + stream.rank * stream.batch_size
        self._next_draw += stream.world_size * stream.batch_size
        return stream.training_batch(range(start, start + stream.batch_size))

    def next_batch(self, timeout_seconds: float) -> Batch | None:
        """The next batch; there is nothing to wait for."""
        return next(self)

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PairStream(ABC):
    """One rank's data of a corpus of pairs. See `enhancer.engine.task.Stream`, which its kinds fulfil."""

    pairs: tuple[LoadedPair, ...]
    rate_hz: int
    knob_names: tuple[str, ...]
    fingerprint: str
    """That of the corpus."""
    rank: int
    world_size: int
    batch_size: int
    warnings: tuple[str, ...]
    judged_side: str
    """Which stretch `validation` gives."""

    @abstractmethod
    def training_batch(self, draws: range) -> Batch:
        """The rows of `draws`."""

    @abstractmethod
    def validation_row(self, item: int) -> Batch:
        """What there is to judge of pair `item`, a batch of one row."""

    def from_draw(self, draw: int) -> PedalBatches:
        """Endless batches, the first starting at global draw `draw`."""
        return PedalBatches(self, draw)

    def validation(self) -> Iterator[Batch]:
        """This rank's share of the validation stretches, one pair a batch, as many batches on every rank.

        `item` int64 [1] is the pair's number, or -1 in a batch that only fills up; the rest is its validation row.
        """
        for first in range(0, len(self.pairs), self.world_size):
            item = first + self.rank
            is_filling = item >= len(self.pairs)
            yield {
                "item": torch.tensor([-1 if is_filling else item]),
                **self.validation_row(0 if is_filling else item),
            }

    @property
    def num_valid_items(self) -> int:
        """Items of the validation list."""
        return len(self.pairs)

    @property
    @abstractmethod
    def epoch_draws(self) -> int:
        """Draws in which each training example comes once."""

    def item_sources(self, item: int) -> dict[str, str]:
        """The files behind an item of the validation list."""
        return {"dry": self.pairs[item].dry_name, "wet": self.pairs[item].wet_name}

    def constants(self) -> dict[str, Tensor]:
        """None: rows refer to nothing beside themselves."""
        return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class PedalStream(PairStream):
    """Segments. A training batch has `draw` int64 [B], `dry` and `wet` float32 [B, T] with T the frames of
    training_seconds, and `knobs` float32 [B, K], K being 0 for a corpus without knobs.
    """

    plan: SegmentPlan
    lead_frames: int
    """Context before a stretch that judges, from the end of the one before it; no metric looks at it."""

    @property
    def epoch_draws(self) -> int:
        """Draws in which each segment comes once."""
        return self.plan.epoch_draws

    def training_batch(self, draws: range) -> Batch:
        """The rows of `draws`."""
        frames = self.plan.segment_frames
        dry, wet = (np.empty((len(draws), frames), np.float32) for _ in range(2))
        knobs = np.empty((len(draws), len(self.knob_names)), np.float32)
        for row, draw in enumerate(draws):
            number, start = self.plan.place(draw)
            pair = self.pairs[number]
            dry[row] = pair.dry[start : start + frames]
            wet[row] = pair.wet[start : start + frames]
            knobs[row] = pair.knobs
        numbers = np.arange(draws.start, draws.stop, dtype=np.int64)
        arrays = {"draw": numbers, "dry": dry, "wet": wet, "knobs": knobs}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def validation_row(self, item: int) -> Batch:
        """dry and wet, float32 [1, lead_frames + T], which begin `lead_frames` before the stretch; knobs [1, K]."""
        pair = self.pairs[item]
        first_judged, end = pair.judged(self.judged_side)
        start = first_judged - self.lead_frames
        return {
            "dry": torch.from_numpy(pair.dry[None, start:end].copy()),
            "wet": torch.from_numpy(pair.wet[None, start:end].copy()),
            "knobs": torch.from_numpy(pair.knobs[None].copy()),
        }


def open_pedal_stream(
    hp: HParams,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int | None = None,
    num_workers: int | None = None,
    judged_side: str = VALID_SIDE,
) -> PedalStream:
    """Open the corpus hp.pair_dir and read all of it, every checksum compared.

    Args:
        hp: hyper-parameters of a pedal run. The rate is the corpus's own.
        rank: this process among `world_size`.
        world_size: processes that share the draws.
        batch_size: rows of a training batch; hp.batch_size_per_gpu when not given.
        num_workers: of no meaning here: batches are cut from memory. There so that streams open alike.
        judged_side: `valid`, or `test` for what was kept for a test when the corpus was built.

    Raises: CorpusError when there is no pedal corpus, a pair is shorter than a segment, or nothing was kept for a test;
    DataError for damage.
    """
    corpus, pairs = open_pairs(hp, judged_side)
    segment_frames = round(hp.training_seconds * corpus.rate_hz)
    lead_frames = cast("PedalHParams", hp.task).warmup_samples
    _check_lengths(hp, corpus, pairs, segment_frames, lead_frames)
    return PedalStream(
        pairs=pairs,
        plan=SegmentPlan(hp.seed, segment_frames, tuple(pair.train_frames for pair in pairs)),
        lead_frames=lead_frames,
        rate_hz=corpus.rate_hz,
        knob_names=tuple(corpus.takes[0].knobs),
        fingerprint=corpus.fingerprint,
        rank=rank,
        world_size=world_size,
        batch_size=hp.batch_size_per_gpu if batch_size is None else batch_size,
        warnings=clipping_notes(corpus),
        judged_side=judged_side,
    )


def open_pairs(hp: HParams, judged_side: str) -> tuple[Corpus, tuple[LoadedPair, ...]]:
    """The corpus hp.pair_dir and all of its pairs in memory, every checksum compared.

    Raises: CorpusError when there is no pedal corpus, or none with a stretch for `judged_side`; DataError for damage.
    """
    if hp.pair_dir is None:
        raise CorpusError(
            "pair_dir is not set: a pedal is learned from a pair of recordings. Build a corpus: "
            "python launch/build_shards.py pedal --dry IN.wav --wet OUT.wav --output data/my_pedal, then --set "
            "pair_dir=data/my_pedal"
        )
    assert judged_side in JUDGED_SIDES, judged_side
    corpus = Corpus.open(hp.pair_dir, "pedal")
    if judged_side == TEST_SIDE and not all(take.test_frames for take in corpus.takes):
        raise CorpusError(
            f"{corpus.folder} has no test stretch. Build it again with --test-seconds, and train on that corpus: what "
            "has trained is no test"
        )
    return corpus, _load(corpus)


def clipping_notes(corpus: Corpus) -> tuple[str, ...]:
    """A line for each pair whose wet side is clipped."""
    return tuple(
        f"{take.wet}: {100 * take.clipped_share:.2g} % of the wet samples are clipped at full scale"
        for take in (corpus.takes[row] for row in _train_rows(corpus))
        if take.clipped_share > 0
    )


def _train_rows(corpus: Corpus) -> list[int]:
    """Row of each pair's training stretch; its others follow. Raises CorpusError where they do not."""
    sides = [corpus.groups[code] for code in corpus.group]
    rows, row = [], 0
    while row < len(corpus):
        expected = [side for side, _, _ in corpus.takes[row].stretches(0)]
        if sides[row : row + len(expected)] != expected:
            raise CorpusError(
                f"{corpus.folder} has not a training and a validation stretch for each pair. Run the build again"
            )
        rows.append(row)
        row += len(expected)
    return rows


def _load(corpus: Corpus) -> tuple[LoadedPair, ...]:
    names = {tuple(take.knobs) for take in corpus.takes}
    if len(names) != 1:
        raise CorpusError(
            f"{corpus.folder} has pairs with different knobs: {sorted(names)}. Run the build again"
        )
    reader = Reader(corpus, verify=True)
    pairs = []
    for row in _train_rows(corpus):
        take = corpus.takes[row]
        parts = range(row, row + len(take.stretches(0)))
        dry, wet = (
            np.concatenate([reader.whole(part, member) for part in parts]).astype(np.float32)
            for member in ("input", "target")
        )
        name = corpus.sources[corpus.source.item(row)]
        knobs = np.array(list(take.knobs.values()), np.float32)
        lengths = [corpus.frames.item(part) for part in parts]
        pairs.append(LoadedPair(name, take.wet, dry, wet, knobs, *lengths[:2]))
    reader.close()
    return tuple(pairs)


def _check_lengths(
    hp: HParams, corpus: Corpus, pairs: tuple[LoadedPair, ...], segment_frames: int, lead_frames: int
) -> None:
    shortest = min(pairs, key=lambda pair: pair.train_frames)
    seconds = shortest.train_frames / corpus.rate_hz
    if shortest.train_frames < segment_frames:
        raise CorpusError(
            f"{shortest.dry_name} in {corpus.folder} has {seconds:.3f} s to train on, shorter than a segment of "
            f"training_seconds={hp.training_seconds:g}. Record more, give less to validation when building, or lower "
            "training_seconds"
        )
    if shortest.train_frames < lead_frames:
        raise CorpusError(
            f"{shortest.dry_name} in {corpus.folder} has {shortest.train_frames} samples before its validation "
            f"stretch, but task.warmup_samples={lead_frames} are needed. Record more, or lower task.warmup_samples"
        )
