"""Windows are what the files hold, views of one recording, and share nothing across the split in time."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from data_shards import context_stream
from data_shards.context_stream import ContextStream, open_context_stream, spread_windows
from data_shards.errors import CorpusError
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from hparams.load import load
from hparams.schema import HParams
from launch.train import load_for_corpus
from tests.data_shards import pedal_audio
from tests.data_shards.pedal_audio import RATE_HZ

CONTEXT = 100
NUM_PAIRS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A corpus of three pairs of 2, 3 and 4 s with a knob; the last quarter of each validates."""
    root = tmp_path_factory.mktemp("context")
    pairs = [
        DevicePair(*pedal_audio.write_pair(root, 2.0 + seed, seed=seed), {"drive": float(seed)})
        for seed in range(NUM_PAIRS)
    ]
    build_pedal_corpus(pairs, root / "corpus", PedalOptions(valid_fraction=0.25))
    return root


def hp_of(root, *overrides: str) -> HParams:
    values = [
        f"pair_dir={root / 'corpus'}",
        f"task.context_samples={CONTEXT}",
        "task.train_windows=600",
        "task.valid_windows=200",
        "batch_size_per_gpu=8",
    ]
    return load("pedal_context", [*values, *overrides])


def wave(root, name: str) -> np.ndarray:
    return soundfile.read(root / f"{name}.wav", dtype="float32")[0]


def covered(windows, item: int, frames: int) -> np.ndarray:
    """Which samples of pair `item` the windows hold, bool [frames]."""
    hit = np.zeros(frames, bool)
    for first in windows.first[windows.pair == item]:
        hit[first : first + CONTEXT] = True
    return hit


def test_a_row_is_a_window_of_the_dry_file_and_the_wet_sample_at_its_end(root):
    stream = open_context_stream(hp_of(root))
    assert (stream.rate_hz, stream.knob_names, stream.num_valid_items) == (RATE_HZ, ("drive",), NUM_PAIRS)
    seen = set()
    batches = stream.from_draw(0)
    for _ in range(20):
        batch = next(batches)
        assert batch["dry"].shape == (8, CONTEXT) and batch["wet"].shape == batch["knobs"].shape == (8, 1)
        for dry_row, wet_row, knob in zip(batch["dry"], batch["wet"], batch["knobs"], strict=True):
            pair = int(knob)
            dry, wet = wave(root, f"dry{pair}"), wave(root, f"wet{pair}")
            # The dry guitar has a hiss, so 20 samples of it are found at one place only.
            starts = np.lib.stride_tricks.sliding_window_view(dry, 20)
            (start,) = np.flatnonzero((starts == dry_row[:20].numpy()).all(1)).tolist()
            np.testing.assert_array_equal(dry_row.numpy(), dry[start : start + CONTEXT])
            assert wet_row.item() == wet[start + CONTEXT - 1]
            assert start + CONTEXT <= len(dry) * 3 // 4
            seen.add(pair)
    assert seen == set(range(NUM_PAIRS))


def test_an_epoch_has_every_window_once_in_an_order_of_its_own(root):
    stream = open_context_stream(hp_of(root))
    epochs = []
    for epoch in range(2):
        rows = stream.training_batch(range(600 * epoch, 600 * (epoch + 1)))
        epochs.append([row.numpy().tobytes() for row in rows["dry"]])
        assert len(set(epochs[-1])) == 600
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]


@pytest.mark.parametrize("count", [200, 10**6])
def test_no_sample_is_on_both_sides_of_the_split_in_time(root, count):
    """Be the windows few or all there are: then each side is covered up to the border and no further."""
    stream = open_context_stream(hp_of(root, f"task.train_windows={count}", f"task.valid_windows={count}"))
    for item in range(NUM_PAIRS):
        frames = len(wave(root, f"dry{item}"))
        train = covered(stream.split.train, item, frames)
        valid = covered(stream.split.valid, item, frames)
        assert train.any() and valid.any()
        assert not train[frames * 3 // 4 :].any() and not valid[: frames * 3 // 4].any()
        if count > frames:
            assert train[: frames * 3 // 4].all() and valid[frames * 3 // 4 :].all()


def test_the_random_split_shares_samples_but_no_window_and_says_so(root):
    many = ("task.split=random", "task.train_windows=6000", "task.valid_windows=2000")
    stream = open_context_stream(hp_of(root, *many))
    sides = [set(zip(part.pair.tolist(), part.first.tolist(), strict=True))
             for part in (stream.split.train, stream.split.valid)]  # fmt: skip
    assert [len(side) for side in sides] == [6000, 2000] and not sides[0] & sides[1]
    frames = len(wave(root, "dry2"))
    shared = covered(stream.split.train, 2, frames) & covered(stream.split.valid, 2, frames)
    assert shared.mean() > 0.5
    assert any("overlap windows that train" in text for text in stream.warnings)
    assert not any("overlap" in text for text in open_context_stream(hp_of(root)).warnings)
    # Which windows validate depends on valid_seed alone: runs of other seeds are judged on the same ones.
    again = open_context_stream(hp_of(root, *many, "seed=77"))
    other = open_context_stream(hp_of(root, *many, "valid_seed=77"))
    assert np.array_equal(again.split.valid.first, stream.split.valid.first)
    assert not np.array_equal(other.split.valid.first, stream.split.valid.first)


@pytest.mark.parametrize("split", ["time", "random"])
def test_validation_rows_hold_the_stretch_and_where_its_windows_begin(root, split):
    stream = open_context_stream(hp_of(root, f"task.split={split}"))
    count = 0
    for item, batch in enumerate(stream.validation()):
        assert batch["item"].tolist() == [item] and batch["knobs"].tolist() == [[item]]
        dry, wet = wave(root, f"dry{item}"), wave(root, f"wet{item}")
        start = len(dry) * 3 // 4 if split == "time" else 0
        np.testing.assert_array_equal(batch["dry"][0].numpy(), dry[start:])
        np.testing.assert_array_equal(batch["wet"][0].numpy(), wet[start:])
        first = batch["first"][0]
        assert first.min() >= 0 and first.max() + CONTEXT <= batch["dry"].shape[1]
        count += len(first)
    assert count == 200


def test_windows_are_views_of_the_recording_and_no_table_of_them_is_made(root):
    stream = open_context_stream(hp_of(root))
    for pair, view in zip(stream.pairs, stream.views, strict=True):
        assert view.shape == (len(pair.dry) - CONTEXT + 1, CONTEXT)
        assert np.shares_memory(view, pair.dry) and view.strides == (4, 4)
    held = [value for value in vars(stream).values() if isinstance(value, (np.ndarray, torch.Tensor))]
    assert held == []


@pytest.mark.parametrize("context_samples", [2, 7, 100])
def test_windows_lie_inside_their_stretches_at_even_distances(context_samples):
    stretches = [(0, 500), (1000, 1100), (3, 2003)]
    windows = spread_windows(stretches, context_samples, 50)
    everything = spread_windows(stretches, context_samples, 10**6)
    possible = [
        (pair, first)
        for pair, (start, stop) in enumerate(stretches)
        for first in range(start, stop - context_samples + 1)
    ]
    assert list(zip(everything.pair.tolist(), everything.first.tolist(), strict=True)) == possible
    places = [possible.index(key) for key in zip(windows.pair.tolist(), windows.first.tolist(), strict=True)]
    assert len(places) == 50 and places[0] == 0
    assert {int(step) for step in np.diff([*places, len(possible)])} <= {
        len(possible) // 50,
        len(possible) // 50 + 1,
    }


@pytest.mark.parametrize(("rate_hz", "expected"), [(16_000, 160), (24_000, 240)])
def test_a_context_in_milliseconds_follows_the_rate_of_the_corpus(tmp_path, rate_hz, expected):
    pair = DevicePair(*pedal_audio.write_pair(tmp_path, 1.0, rate_hz=rate_hz))
    build_pedal_corpus([pair], tmp_path / "corpus", PedalOptions(align="off"))
    words = [f"pair_dir={tmp_path / 'corpus'}", "task.context_samples=null", "task.context_ms=10"]
    hp = load_for_corpus("pedal_context", words)
    stream = open_context_stream(hp)
    assert (hp.wav_rate, stream.context_samples) == (rate_hz, expected)
    assert next(stream.from_draw(0))["dry"].shape == (64, expected)
    assert hp.example_seconds == pytest.approx(0.01)


def test_ranks_share_draws_and_a_draw_does_not_depend_on_where_the_run_began(root):
    one = open_context_stream(hp_of(root), batch_size=6).from_draw(12)
    two = [open_context_stream(hp_of(root), rank=rank, world_size=2, batch_size=3) for rank in (0, 1)]
    both = [stream.from_draw(12) for stream in two]
    for _ in range(3):
        whole, parts = next(one), [next(batches) for batches in both]
        for name, column in whole.items():
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), column, atol=0, rtol=0)
    assert [[batch["item"].item() for batch in stream.validation()] for stream in two] == [[0, 2], [1, -1]]


def test_more_windows_than_there_are_is_said_and_all_are_taken(root):
    stream = open_context_stream(hp_of(root, "task.valid_windows=1000000"))
    possible = sum(len(wave(root, f"dry{item}")) // 4 - CONTEXT + 1 for item in range(NUM_PAIRS))
    assert len(stream.split.valid) == possible
    assert any(f"valid_windows is 1000000, but the recordings have no more than {possible}" in text
               for text in stream.warnings)  # fmt: skip


def test_what_cannot_be_cut_into_windows_is_refused_in_words(root):
    with pytest.raises(CorpusError, match=r"dry0\.wav has 8000 samples \(0\.500 s\) to validate on.* 9000\. Lower "
                       r"task\.context_samples"):  # fmt: skip
        open_context_stream(hp_of(root, "task.context_samples=9000"))
    with pytest.raises(CorpusError, match=r"none of the 1 windows that validate lies in dry1\.wav; raise"):
        open_context_stream(hp_of(root, "task.valid_windows=1"))


def test_the_stream_is_what_its_kind_promises(root):
    stream = open_context_stream(hp_of(root))
    assert isinstance(stream, ContextStream) and stream.constants() == {}
    assert stream.item_sources(1) == {"dry": "dry1.wav", "wet": "wet1.wav"}
    assert context_stream.strided_windows(np.arange(5.0), 3).tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
