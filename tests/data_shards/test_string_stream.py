"""The stream of a string run: pure in (seed, draw), even over levels, and held-out notes that stay held out."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from data_shards.errors import CorpusError
from data_shards.note_options import StringOptions
from data_shards.string_notes import build_string_corpus
from data_shards.string_stream import open_string_stream, split_notes
from data_shards.synthetic_string import KarplusString
from enhancer.signal.decay import OCTAVE_CENTRES_HZ, octave_levels, octave_t60
from hparams.load import load
from launch.common import open_data

RATE_HZ = 16_000
NAMES = ("a2", "c3_f", "c3_p", "eb3", "gb3", "a3", "c4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strings")
    for number, name in enumerate(NAMES):
        f0_hz = 110.0 * 2 ** ([0, 3, 3, 6, 9, 12, 15][number] / 12)
        # Two stages: it begins to fall six times as fast as it ends.
        fast, slow = (
            KarplusString(f0_hz, t60, RATE_HZ, damping=0.01, seed=number).render(3.0) for t60 in (0.5, 3.0)
        )
        (folder / "notes").mkdir(exist_ok=True)
        soundfile.write(folder / "notes" / f"{name}.wav", 0.9 * fast + 0.1 * slow, RATE_HZ, subtype="FLOAT")
    build_string_corpus([folder / "notes"], folder / "corpus", StringOptions(rate_hz=RATE_HZ))
    return folder


def hparams(folder, *more):
    own = [
        f"note_dir={folder / 'corpus'}",
        f"wav_rate={RATE_HZ}",
        "task.stft_weight=0",
        "training_seconds=0.3",
    ]
    return load("string_real", [*own, "batch_size_per_gpu=4", "task.folds=3", *more])


def test_a_batch_is_a_function_of_seed_and_draw_however_it_is_shared(folder):
    hp = hparams(folder)
    whole = next(open_string_stream(hp, batch_size=8).from_draw(16))
    parts = [
        next(open_string_stream(hp, rank=rank, world_size=2, batch_size=4).from_draw(16)) for rank in (0, 1)
    ]
    assert whole["draw"].tolist() == list(range(16, 24))
    for name, column in whole.items():
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(column, joined, rtol=0, atol=0, equal_nan=True)
    other = next(open_string_stream(hparams(folder, "seed=1"), batch_size=8).from_draw(16))
    assert not torch.equal(whole["note"], other["note"])


def test_rows_are_windows_of_notes_with_what_is_known_of_them(folder):
    stream = open_string_stream(hparams(folder))
    batch = stream.training_batch(range(32))
    assert batch["note"].shape == (32, round(0.3 * RATE_HZ)) and batch["t60"].shape == (32, 9)
    for row in range(32):
        number, start = stream.place(row)
        note = stream.train[number]
        assert torch.equal(batch["note"][row], torch.from_numpy(note.wave[start : start + 4800]))
        assert batch["f0_hz"][row].item() == pytest.approx(note.take.f0_hz)
        assert batch["time"][row].item() == pytest.approx(start / RATE_HZ)
        history = [np.sqrt(np.mean(note.wave[at : at + 800].astype(float) ** 2)) for at in (start, 0)]
        expected = 20 * np.log10(history[0] / history[1])
        assert batch["decay_db"][row].item() == pytest.approx(expected, abs=1e-3)
        assert np.isnan(batch["velocity"][row].item()) == (note.take.velocity is None)
    assert batch["position"].isnan().all()


def test_windows_are_drawn_evenly_over_levels_and_not_over_time(folder):
    shares = {}
    for balanced in (True, False):
        stream = open_string_stream(hparams(folder, f"task.is_level_balanced={str(balanced).lower()}"))
        note = stream.train[0]
        last = len(note.wave) - stream.window_frames
        uniform = (np.arange(4000) + 0.5) / 4000
        starts = np.array([note.start_at(value, last, balanced) for value in uniform])
        assert starts.min() >= 0 and starts.max() <= last
        levels = note.level_db[: last // note.hop + 1]
        counts, _ = np.histogram(note.level_db[starts // note.hop], bins=8, range=(levels[-1], levels[0]))
        shares[balanced] = counts / 4000
    assert shares[True] == pytest.approx(np.full(8, 1 / 8), abs=0.04)
    # In time, the loud and fast start of the decay would be heard least.
    assert shares[False][-1] < 0.05


def test_notes_of_one_pitch_stay_together_and_every_note_is_somewhere(folder):
    seen = set()
    for fold in range(3):
        stream = open_string_stream(hparams(folder, f"task.held_out_fold={fold}"))
        valid, train = ({note.source for note in side} for side in (stream.valid, stream.train))
        assert not valid & train and len(valid | train) == len(NAMES)
        assert ("c3_f.wav" in valid) == ("c3_p.wav" in valid)
        assert not seen & valid
        seen |= valid
    assert len(seen) == len(NAMES)


def test_validation_is_the_note_from_its_attack_on_shared_by_the_ranks(folder):
    hp = hparams(folder, "task.valid_seconds=1.0")
    streams = [open_string_stream(hp, rank=rank, world_size=2) for rank in (0, 1)]
    batches = [list(stream.validation()) for stream in streams]
    assert len(batches[0]) == len(batches[1])
    items = sorted(batch["item"].item() for part in batches for batch in part)
    count = streams[0].num_valid_items
    assert [item for item in items if item >= 0] == list(range(count))
    first = batches[0][0]
    note = streams[0].valid[0]
    assert first["note"].shape == (1, round(1.05 * RATE_HZ)) and first["noise_db"].shape == (1, 9)
    assert torch.equal(first["note"][0], torch.from_numpy(note.wave[: first["note"].shape[1]]))
    assert first["time"].item() == first["decay_db"].item() == 0
    assert streams[0].item_sources(0) == {"note": note.source}


def test_the_t60_of_a_row_is_that_of_the_stretch_that_is_judged(folder):
    """Two stages: over its first second a note falls faster than over all of it."""
    stream = open_string_stream(hparams(folder, "task.valid_seconds=1.0"))
    row = stream.validation_row(0)
    levels = octave_levels(row["note"][:, 800:], RATE_HZ)
    found = octave_t60(levels, row["noise_db"])[0].t60_seconds.float()
    known = ~row["t60"].isnan()
    assert int(known.sum()) >= 3
    torch.testing.assert_close(row["t60"][known], found[known])
    whole = stream.valid[0].take.t60_seconds
    assert any(
        row["t60"][0, band] < 0.9 * whole[f"{centre:g}"]
        for band, centre in enumerate(OCTAVE_CENTRES_HZ)
        if f"{centre:g}" in whole and known[0, band]
    )
    assert bool((row["t60_range_db"][known] >= 10).all()) and bool((row["t60_range_db"][known] <= 60).all())
    assert row["t60_range_db"][~known].isnan().all()


def test_an_outlook_learns_from_notes_that_train_and_no_others(folder):
    stream = open_string_stream(hparams(folder, "task.valid_seconds=2"))
    constants = stream.constants()
    trained = [note.take.f0_hz for note in stream.train]
    assert constants["outlook_f0_hz"].tolist() == pytest.approx(trained)
    for row, note in enumerate(stream.train):
        levels = octave_levels(torch.from_numpy(note.wave[None, : stream.valid_frames]), RATE_HZ).band_db[0]
        found = constants["outlook_level_db"][row]
        torch.testing.assert_close(found[:, : levels.shape[1]], levels)
        assert found[:, levels.shape[1] :].isnan().all()
        noise = note.take.noise_db[f"{OCTAVE_CENTRES_HZ[4]:g}"]
        assert constants["outlook_stop_db"][row, 4].item() == pytest.approx(noise + 10, abs=1e-3)


def test_a_stretch_too_short_to_be_measured_has_the_t60_of_the_whole_note(folder):
    stream = open_string_stream(hparams(folder, "task.valid_seconds=0.2"))
    row, take = stream.validation_row(0), stream.valid[0].take
    for band, centre in enumerate(OCTAVE_CENTRES_HZ):
        if f"{centre:g}" in take.t60_seconds:
            assert row["t60"][0, band].item() == pytest.approx(take.t60_seconds[f"{centre:g}"])
    assert row["t60_range_db"].isnan().all()


def test_a_share_of_the_windows_begins_with_the_note(folder):
    for share, low, high in ((0.0, 0, 20), (0.5, 160, 240), (1.0, 400, 400)):
        stream = open_string_stream(hparams(folder, f"task.start_share={share}"))
        starts = [stream.place(draw)[1] for draw in range(400)]
        assert low <= starts.count(0) <= high, share


def test_numbers_are_split_into_folds_by_sorted_name():
    train, valid = split_notes(("b", "a", "d", "c"), 2, 1, "here")
    assert (train, valid) == ({1, 3}, {0, 2})
    with pytest.raises(CorpusError, match="here has 2 different notes, too few to hold one in 5 out"):
        split_notes(("a", "b"), 5, 3, "here")


def test_notes_too_short_are_left_out_and_told(folder):
    stream = open_string_stream(hparams(folder, "training_seconds=0.3"))
    assert stream.warnings == ()
    with pytest.raises(CorpusError, match=r"no note to train of 30.00 s or more.*lower training_seconds"):
        open_string_stream(hparams(folder, "training_seconds=30"))


def test_missing_and_foreign_corpora_are_told_with_the_command(folder, tmp_path):
    with pytest.raises(CorpusError, match=r"note_dir is not set.*build_shards.py string --input notes/"):
        open_data(hparams(folder, "note_dir=null"))
    with pytest.raises(
        CorpusError, match=r"does not exist. Build it: python launch/build_shards.py string --input"
    ):
        open_data(hparams(folder, f"note_dir={tmp_path / 'none'}"))
    with pytest.raises(CorpusError, match="is at 16000 Hz, but 22050 Hz is needed"):
        open_data(hparams(folder, "wav_rate=22050"))
    with pytest.raises(CorpusError, match="--split test: notes have no test stretch"):
        open_data(hparams(folder), judged_side="test")
