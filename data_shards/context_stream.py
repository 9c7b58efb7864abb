"""The data stream of a context run: windows of dry samples and the wet sample at the end of each.

The windows of a recording are a strided view of it and are copied out a batch at a time, so a table of them, n times
as large as the recording, is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from data_shards.errors import CorpusError
from data_shards.pedal_stream import (
    TEST_SIDE,
    VALID_SIDE,
    Batch,
    LoadedPair,
    PairStream,
    clipping_notes,
    open_pairs,
)
from data_shards.schedule import generator, sample_of_draw

if TYPE_CHECKING:
    from hparams.schema import HParams
    from hparams.tasks import ContextHParams

Stretch = tuple[int, int]
"""First frame of a part of a recording, and the one after its last."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Where windows lie, both int64 [N]: in which pair, and at which of its frames each begins."""

    pair: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)

    def __getitem__(self, rows: np.ndarray) -> Windows:
        return Windows(self.pair[rows], self.first[rows])


@dataclass(frozen=True, eq=False)
class WindowSplit:
    """The windows that train, those that validate, and the stretch of each pair that those may lie in."""

    train: Windows
    valid: Windows
    valid_stretches: tuple[Stretch, ...]


def strided_windows(wave: np.ndarray, context_samples: int) -> np.ndarray:
    """All windows of a wave [T], as a view of it: [T - context_samples + 1, context_samples]."""
    return np.lib.stride_tricks.sliding_window_view(wave, context_samples)


def spread_windows(stretches: Sequence[Stretch], context_samples: int, count: int) -> Windows:
    """`count` windows that lie inside the stretches of the pairs, at even distances over all of them.

    Each stretch is as long as a window at least. Where fewer windows are possible, all of them.
    """
    starts = np.array([start for start, _ in stretches], np.int64)
    possible = np.array([stop - start - context_samples + 1 for start, stop in stretches], np.int64)
    ends = possible.cumsum()
    count = min(count, ends[-1].item())
    place = np.arange(count, dtype=np.int64) * ends[-1] // count
    pair = np.searchsorted(ends, place, side="right")
    return Windows(pair, starts[pair] + place - (ends - possible)[pair])


def split_in_time(
    pairs: Sequence[LoadedPair], context_samples: int, num_train: int, num_valid: int
) -> WindowSplit:
    """Training windows inside the stretches that train, the others inside those that validate: no common sample."""
    train = tuple((0, pair.train_frames) for pair in pairs)
    valid = tuple(pair.judged(VALID_SIDE) for pair in pairs)
    return WindowSplit(
        spread_windows(train, context_samples, num_train),
        spread_windows(valid, context_samples, num_valid),
        valid,
    )


def split_at_random(
    pairs: Sequence[LoadedPair], context_samples: int, num_train: int, num_valid: int, seed: int
) -> WindowSplit:
    """Windows over all that is not kept for a test, each put on a side by chance.

    Windows of the two sides overlap, so the model is judged on what it has learned by heart (a leak): it is there to
    compare with figures that were got this way.
    """
    whole = tuple((0, pair.train_frames + pair.valid_frames) for pair in pairs)
    windows = spread_windows(whole, context_samples, num_train + num_valid)
    order = generator(seed, 0, "context-split").random(len(windows)).argsort(kind="stable")
    num_train = len(windows) * num_train // (num_train + num_valid)
    return WindowSplit(windows[np.sort(order[:num_train])], windows[np.sort(order[num_train:])], whole)


@dataclass(frozen=True, eq=False, kw_only=True)
class ContextStream(PairStream):
    """Windows. A training batch has `draw` int64 [B], `dry` float32 [B, n], `wet` float32 [B, 1], the wet sample at the
    end of each window, and `knobs` float32 [B, K]. In an epoch every window comes once, in an order of its own.
    """

    seed: int
    context_samples: int
    split: WindowSplit
    views: tuple[np.ndarray, ...]
    """Of each pair all its windows, as a view of its dry side."""

    @property
    def epoch_draws(self) -> int:
        """Draws in which each window comes once."""
        return len(self.split.train)

    def training_batch(self, draws: range) -> Batch:
        """The rows of `draws`."""
        train = self.split.train
        dry = np.empty((len(draws), self.context_samples), np.float32)
        wet = np.empty((len(draws), 1), np.float32)
        knobs = np.empty((len(draws), len(self.knob_names)), np.float32)
        for row, draw in enumerate(draws):
            window = sample_of_draw(self.seed, draw, len(train), "context")
            number, first = train.pair[window], train.first[window]
            dry[row] = self.views[number][first]
            wet[row] = self.pairs[number].wet[first + self.context_samples - 1]
            knobs[row] = self.pairs[number].knobs
        numbers = np.arange(draws.start, draws.stop, dtype=np.int64)
        arrays = {"draw": numbers, "dry": dry, "wet": wet, "knobs": knobs}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def validation_row(self, item: int) -> Batch:
        """The stretch that validates, dry and wet, float32 [1, T]; where its windows begin in it, `first`, int64
        [1, W]; knobs [1, K].
        """
        pair, valid = self.pairs[item], self.split.valid
        start, stop = self.split.valid_stretches[item]
        return {
            "dry": torch.from_numpy(pair.dry[None, start:stop].copy()),
            "wet": torch.from_numpy(pair.wet[None, start:stop].copy()),
            "first": torch.from_numpy(valid.first[valid.pair == item][None] - start),
            "knobs": torch.from_numpy(pair.knobs[None].copy()),
        }


def open_context_stream(
    hp: HParams,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int | None = None,
    num_workers: int | None = None,
    judged_side: str = VALID_SIDE,
) -> ContextStream:
    """As `data_shards.pedal_stream.open_pedal_stream`, for hyper-parameters of a context run: rows are windows.

    A context in milliseconds follows the rate of the corpus. Raises the same, a pair being too short for a window.
    """
    own = cast("ContextHParams", hp.task)
    corpus, pairs = open_pairs(hp, judged_side)
    context_samples = own.context_at(corpus.rate_hz)
    _check_lengths(pairs, context_samples, own, corpus.rate_hz, judged_side)
    split = (
        split_in_time(pairs, context_samples, own.train_windows, own.valid_windows)
        if own.split == "time"
        else split_at_random(pairs, context_samples, own.train_windows, own.valid_windows, hp.valid_seed)
    )
    if judged_side == TEST_SIDE:
        kept = tuple(pair.judged(TEST_SIDE) for pair in pairs)
        split = WindowSplit(split.train, spread_windows(kept, context_samples, own.valid_windows), kept)
    _check_split(pairs, split)
    return ContextStream(
        pairs=pairs,
        seed=hp.seed,
        context_samples=context_samples,
        split=split,
        views=tuple(strided_windows(pair.dry, context_samples) for pair in pairs),
        rate_hz=corpus.rate_hz,
        knob_names=tuple(corpus.takes[0].knobs),
        fingerprint=corpus.fingerprint,
        rank=rank,
        world_size=world_size,
        batch_size=hp.batch_size_per_gpu if batch_size is None else batch_size,
        judged_side=judged_side,
        warnings=(*clipping_notes(corpus), *_notes(own, split)),
    )


def _check_lengths(
    pairs: Sequence[LoadedPair], context_samples: int, own: ContextHParams, rate_hz: int, judged_side: str
) -> None:
    key = "task.context_ms" if own.context_samples is None else "task.context_samples"
    for pair in pairs:
        judged_first, judged_end = pair.judged(judged_side)
        for frames, side in (
            (pair.train_frames, "train"),
            (judged_end - judged_first, "validate" if judged_side == VALID_SIDE else "test"),
        ):
            if frames < context_samples:
                raise CorpusError(
                    f"{pair.dry_name} has {frames} samples ({frames / rate_hz:.3f} s) to {side} on, fewer than a "
                    f"window of {context_samples}. Lower {key}, or build the corpus from longer recordings or "
                    "with another --valid-seconds"
                )


def _check_split(pairs: Sequence[LoadedPair], split: WindowSplit) -> None:
    counts = np.bincount(split.valid.pair, minlength=len(pairs))
    if not counts.all():
        raise CorpusError(
            f"none of the {len(split.valid)} windows that validate lies in {pairs[int(counts.argmin())].dry_name}; "
            "raise task.valid_windows"
        )
    if not len(split.train):
        raise CorpusError("no window is left to train on; raise task.train_windows")


def _notes(own: ContextHParams, split: WindowSplit) -> list[str]:
    lines = []
    for key, asked, found in (
        ("task.train_windows", own.train_windows, len(split.train)),
        ("task.valid_windows", own.valid_windows, len(split.valid)),
    ):
        if found < asked:
            lines.append(
                f"{key} is {asked}, but the recordings have no more than {found}; all of them are taken"
            )
    if own.split == "random":
        lines.append(
            "task.split is random: windows that validate overlap windows that train, so the validation ESR is too good "
            "to be true. Use it only to compare; task.split=time shares nothing"
        )
    return lines
