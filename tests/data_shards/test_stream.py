"""Batches are the same however they are made, resume at any draw, and report what breaks."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_shards.corpus import Corpus
from data_shards.errors import CorpusError, DataError
from data_shards.format import WAV_HEADER_BYTES
from data_shards.stream import open_stream
from hparams.codec import CodecHParams
from hparams.errors import UserError
from tests.data_shards import mix_corpora


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return mix_corpora.build_all(tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def damaged(hp, tmp_path):
    """Hyper-parameters whose foreground corpus may be damaged."""
    shutil.copytree(hp.fg_dir, tmp_path / "fg")
    return mix_corpora.with_task(replace(hp, fg_dir=tmp_path / "fg"), silence_prob=0.0)


def take(hp, count, *, draw=0, **arguments):
    batches = open_stream(hp, **arguments).from_draw(draw)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_codec_takes_the_foregrounds_of_the_same_draws_and_no_other_corpus(hp, tmp_path):
    own = CodecHParams(level_range_db=(-30.0, -20.0), valid_items=5, valid_seconds=0.5, stft_weight=0.0)
    codec = replace(hp, task=own, bg_dir=tmp_path / "none", rir_dir=tmp_path / "none")
    (batch,) = take(codec, 1, draw=16, num_workers=0)
    (mixed,) = take(
        mix_corpora.with_task(replace(hp, load_fg_only=True), silence_prob=0.0), 1, draw=16, num_workers=0
    )
    assert torch.equal(batch["fg"], mixed["fg"]) and bool(batch["fg"].any())
    assert not batch["bg"].any() and bool((batch["rir"] < 0).all())
    assert bool(((batch["level_db"] >= -30) & (batch["level_db"] <= -20)).all())
    stream = open_stream(codec, num_workers=0)
    items = torch.cat([each["item"] for each in stream.validation()])
    assert sorted(items[items >= 0].tolist()) == [0, 1, 2, 3, 4]


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_a_batch_has_the_documented_keys_types_and_shapes(hp):
    (batch,) = take(hp, 1, num_workers=0)
    wave, number, flag = torch.int16, torch.float32, torch.bool
    expected = {
        "draw": torch.int64,
        "fg": wave,
        "bg": wave,
        "is_pair": flag,
        "rir": torch.int64,
        "room_gain_db": number,
        **dict.fromkeys(["snr_db", "level_db", "eq_hz", "eq_gain_db", "eq_q", "lowpass_hz"], number),
        **dict.fromkeys(["highpass_hz", "drive_db", "noise_snr_db"], number),
        "noise_seed": torch.int64,
    }
    assert {name: value.dtype for name, value in batch.items()} == expected
    for name, value in batch.items():
        assert value.shape == ((8, 2000) if name in ("fg", "bg") else (8,)), name
    assert batch["draw"].tolist() == list(range(8))


@pytest.mark.multi
def test_batches_are_bit_identical_for_any_number_of_workers(hp):
    alone = take(hp, 7, num_workers=0)
    for num_workers in (1, 2, 3):
        for one, other in zip(alone, take(hp, 7, num_workers=num_workers), strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("draw", [8, 24, 13, 10**9])
def test_a_stream_goes_on_from_any_draw(hp, draw):
    through = joined(take(hp, 3, draw=draw, num_workers=0))
    resumed = joined(take(hp, 2, draw=draw + 8, num_workers=0))
    assert_equal({name: value[8:] for name, value in through.items()}, resumed)
    assert through["draw"].tolist() == list(range(draw, draw + 24))


@pytest.mark.multi
def test_a_stream_with_workers_goes_on_from_any_draw(hp):
    through = take(hp, 5, draw=40, num_workers=0)
    for one, other in zip(through[3:], take(hp, 2, draw=64, num_workers=2), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_draws_of_one(hp, world_size):
    whole = take(hp, 4, num_workers=0, batch_size=8)
    shares = [
        take(hp, 4, num_workers=0, rank=rank, world_size=world_size, batch_size=8 // world_size)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert_equal(batch, joined([share[step] for share in shares]))


@pytest.mark.parametrize("world_size,batch_size", [(1, 8), (2, 4), (3, 2), (4, 8), (1, 64)])
def test_the_validation_list_is_the_same_for_any_world_size_and_batch(hp, world_size, batch_size):
    reference = joined(list(open_stream(hp, num_workers=0, batch_size=1).validation()))
    assert reference["item"].tolist() == list(range(21))
    shares = [
        list(
            open_stream(
                hp, rank=rank, world_size=world_size, batch_size=batch_size, num_workers=0
            ).validation()
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    rows = joined([batch for share in shares for batch in share])
    size = min(batch_size, math.ceil(21 / world_size))
    assert all(len(batch["fg"]) == size for share in shares for batch in share)
    listed = rows["item"] >= 0
    order = torch.argsort(rows["item"][listed])
    assert_equal(reference, {name: value[listed][order] for name, value in rows.items()})


def test_the_fingerprint_names_the_corpora_in_use(hp, damaged):
    pair_dir = hp.fg_dir.parent / "pair"
    base = open_stream(hp, num_workers=0).fingerprint
    assert base == open_stream(replace(hp, seed=5), rank=1, world_size=2, num_workers=2).fingerprint
    assert base == open_stream(damaged, num_workers=0).fingerprint
    others = {
        open_stream(replace(hp, load_fg_only=True), num_workers=0).fingerprint,
        open_stream(replace(hp, pair_dir=pair_dir), num_workers=0).fingerprint,
        open_stream(mix_corpora.with_task(replace(hp, pair_dir=pair_dir), pair_fraction=0.5)).fingerprint,
    }
    assert len(others | {base}) == 4


def test_a_missing_corpus_is_named_before_anything_starts(hp, tmp_path):
    with pytest.raises(CorpusError, match=str(tmp_path / "none")):
        open_stream(replace(hp, bg_dir=tmp_path / "none"))
    assert issubclass(CorpusError, UserError)


def test_one_room_for_training_and_validation_is_told(hp, tmp_path):
    from data_shards.build import build_corpus
    from data_shards.options import BuildOptions

    mix_corpora.write_wav(tmp_path / "audio/only.wav", np.array([9000, 3000, -1000] * 400, np.int16))
    options = BuildOptions("rir", rate_hz=mix_corpora.RATE_HZ, workers=1)
    build_corpus("rir", [tmp_path / "audio"], tmp_path / "rir", options)
    (line,) = open_stream(replace(hp, rir_dir=tmp_path / "rir"), num_workers=0).warnings
    assert str(tmp_path / "rir") in line


def cut_header(hp, row=None) -> Corpus:
    """Overwrite the WAV header of a training sample."""
    corpus = Corpus.open(hp.fg_dir, "fg")
    row = int(corpus.split(hp.valid_fraction).train[0]) if row is None else row
    with corpus.shards[corpus.shard[row]].open("r+b") as file:
        file.seek(int(corpus.members["wav"].offset[row]))
        file.write(bytes(WAV_HEADER_BYTES))
    return corpus


@pytest.mark.multi
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_damage_met_in_a_worker_is_raised_with_shard_member_draw_and_rank(damaged, num_workers):
    corpus = cut_header(damaged)
    batches = open_stream(damaged, rank=1, world_size=2, num_workers=num_workers).from_draw(0)
    with pytest.raises(DataError, match="header") as caught:
        for _ in range(20):
            next(batches)
    with pytest.raises(DataError):
        next(batches)
    batches.close()
    error = caught.value
    assert error.rank == 1 and error.draw is not None and error.draw % 16 >= 8
    assert error.shard in {str(path) for path in corpus.shards} and error.member is not None
    for part in (error.shard, error.member, f"draw {error.draw}", "rank 1"):
        assert str(part) in str(error)


def test_damage_in_the_samples_of_a_validation_item_is_seen(damaged):
    corpus = Corpus.open(damaged.fg_dir, "fg")
    row = int(corpus.split(damaged.valid_fraction).valid[0])
    place = int(corpus.members["wav"].offset[row] + corpus.members["wav"].size[row] - 1)
    path = corpus.shards[corpus.shard[row]]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="crc32"):
        list(open_stream(damaged, num_workers=0).validation())


def test_opening_a_stream_imports_no_trainer():
    code = (
        "import sys, data_shards.stream; print({'deepspeed', 'accelerate', 'torchaudio'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.multi
def test_workers_share_batches_where_there_is_no_memfd(hp, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    for one, other in zip(take(hp, 3, num_workers=0), take(hp, 3, num_workers=1), strict=True):
        assert_equal(one, other)


def test_a_recipe_is_sent_to_workers_without_its_validation_list(hp):
    recipe = open_stream(hp, num_workers=0).recipe
    size = len(pickle.dumps(recipe))
    recipe.valid_item(0)
    assert len(pickle.dumps(recipe)) == size
