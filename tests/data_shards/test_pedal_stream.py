"""Batches are what the files hold, a pure function of (seed, draw), and never take a sample that validates."""

from __future__ import annotations

import itertools
import tarfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from data_shards.errors import CorpusError, DataError
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from data_shards.pedal_stream import SegmentPlan, open_pedal_stream
from tests.data_shards import pedal_audio
from tests.data_shards.pedal_audio import RATE_HZ

WARMUP_SAMPLES = 400
SEGMENT = RATE_HZ // 4
NUM_PAIRS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A corpus of three pairs of 2, 3 and 4 s with two knobs; the last quarter of each validates."""
    root = tmp_path_factory.mktemp("pedal")
    pairs = [
        DevicePair(
            *pedal_audio.write_pair(root, 2.0 + seed, seed=seed), {"tone": 0.1 * seed, "drive": float(seed)}
        )
        for seed in range(NUM_PAIRS)
    ]
    build_pedal_corpus(pairs, root / "corpus", PedalOptions(valid_fraction=0.25))
    return root


def hp_of(root, **values: Any) -> Any:
    """The fields of HParams that the stream reads."""
    fields = {"pair_dir": root / "corpus", "seed": 3, "training_seconds": 0.25, "batch_size_per_gpu": 4}
    return SimpleNamespace(**{**fields, "task": SimpleNamespace(warmup_samples=WARMUP_SAMPLES), **values})


def wave(root, name: str) -> np.ndarray:
    return soundfile.read(root / f"{name}.wav", dtype="float32")[0]


def test_every_row_is_a_stretch_of_its_pair_before_the_last_quarter(root):
    stream = open_pedal_stream(hp_of(root))
    assert (stream.rate_hz, stream.knob_names, stream.num_valid_items) == (
        RATE_HZ,
        ("drive", "tone"),
        NUM_PAIRS,
    )
    assert stream.constants() == {}
    batches = stream.from_draw(0)
    for _ in range(8):
        batch = next(batches)
        assert batch["draw"].dtype == torch.int64
        assert batch["dry"].dtype == batch["wet"].dtype == batch["knobs"].dtype == torch.float32
        assert batch["dry"].shape == batch["wet"].shape == (4, SEGMENT) and batch["knobs"].shape == (4, 2)
        for row in range(4):
            pair = int(batch["knobs"][row, 0])
            assert batch["knobs"][row].tolist() == pytest.approx([pair, 0.1 * pair])
            dry, wet = wave(root, f"dry{pair}"), wave(root, f"wet{pair}")
            windows = np.lib.stride_tricks.sliding_window_view(dry[: len(dry) * 3 // 4], SEGMENT)
            start = int(np.flatnonzero((windows[:, :16] == batch["dry"][row, :16].numpy()).all(1))[0])
            np.testing.assert_array_equal(batch["dry"][row].numpy(), dry[start : start + SEGMENT])
            np.testing.assert_array_equal(batch["wet"][row].numpy(), wet[start : start + SEGMENT])


def test_validation_is_each_pairs_last_quarter_with_context(root):
    for item, batch in enumerate(open_pedal_stream(hp_of(root)).validation()):
        assert batch["item"].tolist() == [item]
        for name, column in (("dry", batch["dry"]), ("wet", batch["wet"])):
            whole = wave(root, f"{name}{item}")
            np.testing.assert_array_equal(column[0].numpy(), whole[len(whole) * 3 // 4 - WARMUP_SAMPLES :])
        assert batch["knobs"].tolist() == [pytest.approx([item, 0.1 * item])]


def test_a_test_stretch_is_judged_when_asked_for_and_never_trained_on(tmp_path):
    pairs = [DevicePair(*pedal_audio.write_pair(tmp_path, 2.0 + seed, seed=seed)) for seed in (0, 1)]
    options = PedalOptions(align="off", valid_fraction=0.25, test_fraction=0.25)
    build_pedal_corpus(pairs, tmp_path / "corpus", options)
    for side, first, end in (("valid", 0.5, 0.75), ("test", 0.75, 1.0)):
        stream = open_pedal_stream(hp_of(tmp_path), judged_side=side)
        for item, batch in enumerate(stream.validation()):
            whole = wave(tmp_path, f"wet{item}")
            stretch = whole[round(first * len(whole)) - WARMUP_SAMPLES : round(end * len(whole))]
            np.testing.assert_array_equal(batch["wet"][0].numpy(), stretch)
        assert [len(pair.dry) // RATE_HZ for pair in stream.pairs] == [2, 3]
        places = [stream.plan.place(draw) for draw in range(200)]
        assert all(start + SEGMENT <= len(stream.pairs[pair].dry) // 2 for pair, start in places)


def test_a_corpus_without_a_test_stretch_cannot_be_tested_on(root):
    with pytest.raises(CorpusError, match=r"has no test stretch\. Build it again with --test-seconds"):
        open_pedal_stream(hp_of(root), judged_side="test")


def test_ranks_share_draws_and_validation_without_overlap(root):
    one = open_pedal_stream(hp_of(root), batch_size=6).from_draw(12)
    two = [open_pedal_stream(hp_of(root), rank=rank, world_size=2, batch_size=3) for rank in (0, 1)]
    both = [stream.from_draw(12) for stream in two]
    for _ in range(3):
        whole, parts = next(one), [next(batches) for batches in both]
        for name, column in whole.items():
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), column, atol=0, rtol=0)
    items = [[batch["item"].item() for batch in stream.validation()] for stream in two]
    assert items == [[0, 2], [1, -1]]


def test_a_draw_does_not_depend_on_where_the_run_began(root):
    first = open_pedal_stream(hp_of(root)).from_draw(0)
    batches = [next(first) for _ in range(5)]
    again = open_pedal_stream(hp_of(root)).from_draw(16).next_batch(1.0)
    assert again is not None
    for name, column in again.items():
        torch.testing.assert_close(column, batches[4][name], atol=0, rtol=0)
    other = next(open_pedal_stream(hp_of(root, seed=4)).from_draw(0))
    assert not torch.equal(other["dry"], batches[0]["dry"])


@pytest.mark.parametrize("train_frames", [(1000,), (1999,), (5000,), (1000, 7777, 3001)])
def test_an_epoch_takes_segments_side_by_side_and_another_one_takes_others(train_frames):
    plan = SegmentPlan(seed=7, segment_frames=1000, train_frames=train_frames)
    epochs = []
    for epoch in range(40):
        places = [plan.place(epoch * plan.epoch_draws + position) for position in range(plan.epoch_draws)]
        for pair, frames in enumerate(train_frames):
            starts = sorted(start for number, start in places if number == pair)
            assert len(starts) == max(frames // 1000 - 1, 1)
            assert starts[0] >= 0 and starts[-1] + 1000 <= frames
            assert all(after - before == 1000 for before, after in itertools.pairwise(starts))
        epochs.append(places)
    assert all(first != second for first, second in itertools.pairwise(epochs)) or train_frames == (1000,)
    covered = {
        frame for places in epochs for pair, start in places if pair == 0 for frame in (start, start + 999)
    }
    # Both ends of a stretch come near in some epoch.
    assert min(covered) < 200 and max(covered) > train_frames[0] - 200


def test_a_pair_shorter_than_a_segment_is_an_error_at_open(root):
    with pytest.raises(
        CorpusError, match=r"dry0\.wav .* 1\.500 s to train on, shorter .* training_seconds=1\.6"
    ):
        open_pedal_stream(hp_of(root, training_seconds=1.6))
    with pytest.raises(CorpusError, match=r"task\.warmup_samples=30000"):
        open_pedal_stream(hp_of(root, task=SimpleNamespace(warmup_samples=30_000)))


def test_a_corpus_that_is_missing_or_of_another_kind_is_said(root, tmp_path):
    with pytest.raises(CorpusError, match=r"pair_dir is not set.* --dry IN.wav --wet OUT.wav"):
        open_pedal_stream(hp_of(root, pair_dir=None))
    with pytest.raises(CorpusError, match=r"does not exist.* pedal --dry IN.wav --wet OUT.wav"):
        open_pedal_stream(hp_of(root, pair_dir=tmp_path / "nowhere"))


def test_damage_is_found_at_open(root, tmp_path):
    pedal_pair = pedal_audio.write_pair(tmp_path, 2.0)
    build_pedal_corpus([DevicePair(*pedal_pair)], tmp_path / "corpus")
    tar = tmp_path / "corpus/pedal-000000.tar"
    with tarfile.open(tar) as opened:
        offset = opened.getmembers()[1].offset_data + 5000
    data = bytearray(tar.read_bytes())
    data[offset] ^= 4
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"00000000.target.wav.* crc32"):
        open_pedal_stream(hp_of(tmp_path))


def test_the_fingerprint_is_the_corpus_s_and_clipping_is_warned_of(tmp_path):
    dry = pedal_audio.guitar(2.0)
    pair = DevicePair(
        pedal_audio.write(tmp_path / "d.wav", dry),
        pedal_audio.write(tmp_path / "w.wav", np.clip(8 * dry, -1, 1), subtype="PCM_16"),
    )
    built = build_pedal_corpus([pair], tmp_path / "corpus")
    stream = open_pedal_stream(hp_of(tmp_path))
    assert stream.fingerprint == built.result.info.fingerprint
    assert len(stream.warnings) == 1 and "w.wav: " in stream.warnings[0]
    assert next(stream.from_draw(0))["knobs"].shape == (4, 0)
    assert stream.item_sources(0) == {"dry": "d.wav", "wet": "w.wav"}
