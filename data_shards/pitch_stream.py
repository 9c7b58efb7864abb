"""The data stream of a pitch run: pairs out of shards, or drawn by the loader workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.mix import Source
from data_shards.pitch_recipe import DrawnPitchRecipe, PitchRecipe, PitchSettings
from data_shards.shifters import require_engine
from data_shards.stream import RecipeStream, joint_fingerprint, stream_warnings, worker_count

if TYPE_CHECKING:
    from hparams.pitch import PitchHParams
    from hparams.schema import HParams


@dataclass(frozen=True, eq=False)
class PitchStream(RecipeStream):
    """Batches of `data_shards.pitch_recipe`; `semitones`, `cutoff_hz`, `engine` and `level_db` are [B]."""

    recipe: PitchRecipe

    def constants(self) -> dict[str, Tensor]:
        """None: rows refer to nothing beside themselves."""
        return {}


def open_pitch_stream(
    hp: HParams,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> PitchStream:
    """Open the corpus of pairs hp.pair_dir, or with task.pairs=drawn the recordings hp.fg_dir.

    Args:
        hp: hyper-parameters of a pitch run.
        rank: this process among `world_size`.
        world_size: processes that share the draws.
        batch_size: rows of a batch; hp.batch_size_per_gpu when not given.
        num_workers: loader workers of this rank; `worker_count` when not given; 0 loads in this process.

    Raises: CorpusError, saying what to do, where there is no such corpus; UserError where an engine that is to draw
    pairs is not installed.
    """
    task = cast("PitchHParams", hp.task)
    kind = "fg" if task.pairs == "drawn" else "pitch"
    if kind == "pitch" and hp.pair_dir is None:
        raise CorpusError(
            "pair_dir is not set: pitch repair is learned from pairs. Build a corpus: python launch/build_shards.py "
            "pitch --input music/ --output data/pitch, then --set pair_dir=data/pitch; or shift while training with "
            "--set task.pairs=drawn fg_dir=data/fg"
        )
    if kind == "fg":
        for name in task.engines:
            require_engine(name)
    place = hp.fg_dir if kind == "fg" else hp.pair_dir
    assert place is not None
    corpus = Corpus.open(place, kind, hp.wav_rate)
    sources = {kind: Source(corpus, corpus.split(hp.valid_fraction))}
    recipe = (DrawnPitchRecipe if kind == "fg" else PitchRecipe)(PitchSettings.of(hp), sources)
    return PitchStream(
        recipe=recipe,
        fingerprint=joint_fingerprint(sources),
        rank=rank,
        world_size=world_size,
        batch_size=hp.batch_size_per_gpu if batch_size is None else batch_size,
        num_workers=worker_count(hp, world_size) if num_workers is None else num_workers,
        timeout_seconds=hp.data_timeout_seconds,
        warnings=tuple(stream_warnings(sources)),
    )
