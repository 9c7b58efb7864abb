"""The data stream of a run: batches of raw crops and drawn mix parameters, in the order of the draws.

`open_stream` opens the corpora that the hyper-parameters name; `MixStream` then gives endless training
batches from any draw, this rank's share of the fixed validation list, and the constants (room responses)
that rows refer to. Batches are dicts of CPU tensors: `draw` (or `item`), `fg` and `bg` int16 [B, T], and
the numbers of `data_shards.mix.NUMBERS`, each [B].
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data_shards.batches import Arrays, BatchPlan, Recipe, fill_training, validation_arrays
from data_shards.cache import SIZE_VARIABLE, CachedShard, ShardCache
from data_shards.corpus import Corpus
from data_shards.damaged import DamagedRecipe
from data_shards.loader_pool import WorkerDied, WorkerPool
from data_shards.mix import MixRecipe, Source
from data_shards.praat import require_praat
from data_shards.settings import MixSettings

if TYPE_CHECKING:
    from hparams.schema import HParams

Batch = dict[str, Tensor]
# Without Praat a worker makes over a hundred batches of 16 x 1 s a second; eight outrun any device.
MOST_USEFUL_WORKERS = 8

__all__ = ["BatchIterator", "MixStream", "WorkerDied", "open_stream", "worker_count"]


class _InProcess:
    """Makes batches where they are asked for; stands in for WorkerPool when there are no workers."""

    def __init__(self, recipe: Recipe, plan: BatchPlan) -> None:
        self._recipe, self._plan, self._next_step = recipe, plan, 0

    def next_arrays(self, timeout_seconds: float) -> Arrays | None:
        arrays = self._plan.empty()
        fill_training(arrays, self._recipe, self._plan, self._next_step)
        self._next_step += 1
        return arrays

    def awaited(self) -> str:
        return "the process itself"

    def close(self) -> None:
        self._recipe.close()


class BatchIterator(Iterator[Batch]):
    """Endless batches. Workers begin to fill their slots when it is made, before the first is asked for."""

    def __init__(
        self, source: WorkerPool | _InProcess, timeout_seconds: float, cache: ShardCache | None = None
    ) -> None:
        self._source = source
        self._timeout_seconds = timeout_seconds
        self._cache = cache
        self._waited_seconds = 0.0
        self._progress_seen: object = None

    def __next__(self) -> Batch:
        """The next batch. Raises TimeoutError after data_timeout_seconds, and what `next_batch` raises."""
        while (batch := self.next_batch(self._timeout_seconds)) is None:
            pass
        return batch

    def next_batch(self, timeout_seconds: float) -> Batch | None:
        """The next batch, or None when it is not ready within `timeout_seconds`; ask again then.

        Raises: DataError when a shard is damaged (with draw and rank), WorkerDied, OSError, and
        TimeoutError when the waits for one batch add up to data_timeout_seconds without `progress`.
        """
        start = time.monotonic()
        arrays = self._source.next_arrays(min(timeout_seconds, self._timeout_seconds - self._waited_seconds))
        if arrays is not None:
            self._waited_seconds = 0.0
            return _tensors(arrays)
        self._waited_seconds += time.monotonic() - start
        if (progress := self.progress()) != self._progress_seen:
            self._progress_seen, self._waited_seconds = progress, 0.0
        if self._waited_seconds >= self._timeout_seconds:
            raise TimeoutError(
                f"no batch within data_timeout_seconds={self._timeout_seconds:g}: the storage is stalled or workers "
                "are too slow; look at the storage, raise nj, or raise data_timeout_seconds. It was waited for "
                f"{self._source.awaited()}"
            )
        return None

    def progress(self) -> object:
        """Changes while shards of remote corpora arrive, for which `next_batch` waits as long as it takes."""
        return None if self._cache is None else self._cache.progress()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the loader workers."""
        return self._source.pids if isinstance(self._source, WorkerPool) else []

    def close(self) -> None:
        """Stop the workers. The iterator cannot be used afterwards."""
        self._source.close()


@dataclass(frozen=True, eq=False)
class RecipeStream:
    """One rank's examples of a recipe. See `enhancer.engine.task.Stream`, which its kinds fulfil."""

    recipe: Recipe
    fingerprint: str
    """sha256 over the fingerprints of the corpora in use."""
    rank: int
    world_size: int
    batch_size: int
    num_workers: int
    timeout_seconds: float
    warnings: tuple[str, ...]
    """Lines to show the user once, such as that training and validation share the only room."""

    def from_draw(self, draw: int) -> BatchIterator:
        """Endless batches, the first starting at global draw `draw`. Close it when done with it early."""
        plan = self._plan(draw, self.batch_size, self.recipe.settings.crop_samples)
        if self.num_workers == 0:
            return BatchIterator(_InProcess(self.recipe, plan), self.timeout_seconds)
        pool = WorkerPool(self.recipe, plan, self.num_workers)
        return BatchIterator(pool, self.timeout_seconds, _cache_of(self.recipe.sources))

    def validation(self) -> Iterator[Batch]:
        """This rank's share of the fixed list, as many batches on every rank; `item` is -1 in rows that
        fill up.

        Made in this process: a list is short, and every byte it reads has its checksum checked. Raises:
        DataError.
        """
        num_items = self.recipe.settings.valid_items
        # A list shorter than the batches makes them smaller, rather than mostly filling.
        batch_size = min(self.batch_size, -(-num_items // self.world_size))
        plan = self._plan(0, batch_size, self.recipe.settings.valid_samples)
        for step in range(-(-num_items // (self.world_size * batch_size))):
            yield _tensors(validation_arrays(self.recipe, plan, step, num_items))

    def _plan(self, first_draw: int, batch_size: int, frames: int) -> BatchPlan:
        recipe = self.recipe
        numbers = tuple(recipe.numbers.items())
        return BatchPlan(first_draw, self.rank, self.world_size, batch_size, frames, recipe.waves, numbers)

    @property
    def num_valid_items(self) -> int:
        """Items of the validation list."""
        return self.recipe.settings.valid_items

    def item_sources(self, item: int) -> dict[str, str]:
        """The recordings behind an item of the validation list, by kind, relative to what their corpora were
        built from.
        """
        return self.recipe.valid_sources(item)


@dataclass(frozen=True, eq=False)
class MixStream(RecipeStream):
    """Mixes, and the rooms they refer to."""

    recipe: MixRecipe

    def constants(self) -> dict[str, Tensor]:
        """`rir`: all room responses, float32 [R, L], direct path 1 at sample 0; R is 0 when no rooms are
        used.
        """
        return {"rir": torch.from_numpy(self.recipe.room_bank())}


def open_stream(
    hp: HParams,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> MixStream:
    """Open the corpora that `hp` needs and no others.

    Pairs alone (pair_dir with task.pair_fraction 1) need pair_dir only; load_fg_only, a codec and an enhancer
    fg_dir only; a task that restores recordings bg_dir and rir_dir where their probabilities are above 0.

    Args:
        hp: hyper-parameters of a denoise, codec or enhance run, or of one that restores recordings.
        rank: this process among `world_size`.
        world_size: processes that share the draws.
        batch_size: rows of a batch; hp.batch_size_per_gpu when not given.
        num_workers: loader workers of this rank; `worker_count` when not given; 0 loads in this process.

    Raises: CorpusError, saying what to do, for each folder that is not a corpus as needed; UserError when
    Praat is asked for and not installed.
    """
    if hp.praat_augment_prob > 0:
        require_praat()
    settings = MixSettings.of(hp)
    sources = {}
    for kind, folder in _needed_folders(hp, settings).items():
        corpus = Corpus.open(folder, kind, hp.wav_rate)
        sources[kind] = Source(corpus, corpus.split(hp.valid_fraction))
    if num_workers is None:
        num_workers = worker_count(hp, world_size)
    return MixStream(
        recipe=(MixRecipe if settings.damage is None else DamagedRecipe)(settings, sources),
        fingerprint=joint_fingerprint(sources),
        rank=rank,
        world_size=world_size,
        batch_size=hp.batch_size_per_gpu if batch_size is None else batch_size,
        num_workers=num_workers,
        timeout_seconds=hp.data_timeout_seconds,
        warnings=tuple(stream_warnings(sources)),
    )


def worker_count(hp: HParams, ranks_on_machine: int) -> int:
    """Loader workers of one rank: hp.nj, but at most the rank's share of the cores this process may use (1
    at least).

    Also at most MOST_USEFUL_WORKERS unless Praat is in use, which takes about 20 ms a crop, or pairs of a pitch run are
    drawn in workers, which takes longer.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = max(cores // ranks_on_machine, 1)
    is_slow = hp.praat_augment_prob > 0 or getattr(hp.task, "pairs", None) == "drawn"
    useful = share if is_slow else min(share, MOST_USEFUL_WORKERS)
    return min(hp.nj, useful)


def _needed_folders(hp: HParams, settings: MixSettings) -> dict[str, Path | str]:
    folders: dict[str, Path | str] = {}
    if settings.pair_fraction < 1:
        folders["fg"] = hp.fg_dir
        damage = settings.damage
        if not settings.load_fg_only and (damage is None or damage.bg_prob > 0):
            folders["bg"] = hp.bg_dir
        if not settings.load_fg_only and (damage is None or settings.rir_prob > 0):
            folders["rir"] = hp.rir_dir
    if settings.pair_fraction > 0 and hp.pair_dir is not None:
        folders["pair"] = hp.pair_dir
    return folders


def _cache_of(sources: dict[str, Source]) -> ShardCache | None:
    return next((source.corpus.cache for source in sources.values() if source.corpus.cache), None)


def joint_fingerprint(sources: dict[str, Source]) -> str:
    """sha256 over the fingerprints of corpora by kind."""
    lines = [f"{kind} {source.corpus.fingerprint}" for kind, source in sorted(sources.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stream_warnings(sources: dict[str, Source]) -> Iterator[str]:
    """Lines to show the user once about the corpora of a run."""
    for source in sources.values():
        if source.split.warning:
            yield source.split.warning
    shards = [shard for source in sources.values() for shard in source.corpus.shards]
    sizes = {shard.sha256: shard.size for shard in shards if isinstance(shard, CachedShard)}
    cache, needed = _cache_of(sources), sum(sizes.values())
    if cache is not None and needed > cache.max_bytes:
        yield (
            f"the remote corpora hold {needed / 1e9:.3g} GB, more than the {cache.max_bytes / 1e9:.3g} GB of the cache "
            f"{cache.folder}: shards will be fetched again and again. Set ${SIZE_VARIABLE} higher"
        )


def _tensors(arrays: Arrays) -> Batch:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
