"""Crops are the bytes that were built, and damage is named with its place."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import soundfile

from data_shards.corpus import Corpus
from data_shards.crops import MOST_REDRAWS, audible_crop, is_quiet, looped_crop, padded_crop
from data_shards.errors import DataError
from data_shards.format import WAV_HEADER_BYTES
from data_shards.reader import Reader
from tests.data_shards import mix_corpora


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    mix_corpora.build_all(folder / "wav")
    mix_corpora.build_all(folder / "flac", codec="flac")
    return folder


@pytest.fixture
def fg(root, tmp_path):
    """A copy of the foreground corpus that a test may damage."""
    shutil.copytree(root / "wav/fg", tmp_path / "fg")
    return Corpus.open(tmp_path / "fg", "fg", mix_corpora.RATE_HZ)


def original(root, corpus: Corpus, row: int, folder: str) -> np.ndarray:
    """What soundfile reads from the recording that a sample was built from."""
    return soundfile.read(root / "wav/audio" / folder / corpus.sources[corpus.source[row]], dtype="int16")[0]


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_crops_are_the_samples_of_the_recording(root, codec):
    corpus = Corpus.open(root / codec / "fg", "fg", mix_corpora.RATE_HZ)
    reader = Reader(corpus)
    rng = np.random.default_rng(0)
    for row in range(len(corpus)):
        expected = original(root, corpus, row, "fg")
        start = int(rng.integers(len(expected) - 200))
        np.testing.assert_array_equal(reader.crop(row, start, 200), expected[start : start + 200])
        np.testing.assert_array_equal(reader.whole(row), expected)
    reader.close()


def test_both_sides_of_a_pair_are_read_from_the_same_place(root):
    corpus = Corpus.open(root / "wav/pair", "pair", mix_corpora.RATE_HZ)
    reader = Reader(corpus)
    for row in range(len(corpus)):
        clean, noisy = reader.crop(row, 100, 500, "target"), reader.crop(row, 100, 500, "input")
        np.testing.assert_array_equal(clean, original(root, corpus, row, "target")[100:600])
        assert 500 < np.std(noisy.astype(float) - clean) < 1300
    reader.close()


def test_few_files_stay_open_and_a_pickled_reader_reads_the_same(root):
    corpus = Corpus.open(root / "wav/fg", "fg")
    assert len(corpus.shards) > 3
    reader = Reader(corpus, max_open_files=2)
    first = [reader.crop(row, 3, 400) for row in range(len(corpus))]
    assert len(reader._files) == 2
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._files
    for row, wave in enumerate(first):
        np.testing.assert_array_equal(copy.crop(row, 3, 400), wave)
    reader.close()
    copy.close()


def damage(corpus: Corpus, row: int, at: int, value: bytes | None = None) -> None:
    """Change one byte of the member of `row`, or cut the shard there."""
    path = corpus.shards[corpus.shard[row]]
    place = int(corpus.members["wav"].offset[row]) + at
    with path.open("r+b") as file:
        if value is None:
            file.truncate(place)
        else:
            file.seek(place)
            file.write(value)


def test_a_cut_shard_is_named_with_member_and_byte(fg):
    row = len(fg) - 1
    damage(fg, row, WAV_HEADER_BYTES + 800)
    with pytest.raises(DataError, match="cut short") as caught:
        Reader(fg).crop(row, 200, 1000)
    error = caught.value
    assert error.shard == str(fg.shards[fg.shard[row]])
    assert error.member == f"{fg.key[row]:08d}.wav"
    assert error.offset == fg.members["wav"].offset[row] + WAV_HEADER_BYTES + 400
    assert str(error.offset) in str(error) and error.member in str(error)


@pytest.mark.parametrize("at", [0, 9, 24, 41])
def test_a_damaged_header_is_seen_at_the_first_crop_of_a_member(fg, at):
    damage(fg, 4, at, b"\x55")
    with pytest.raises(DataError, match=r"header") as caught:
        Reader(fg).crop(4, 500, 100)
    assert caught.value.offset == fg.members["wav"].offset[4]


def test_a_flipped_sample_is_seen_by_whole_reads_and_verifying_readers(fg):
    at = WAV_HEADER_BYTES + 2 * 1000
    place = int(fg.members["wav"].offset[4]) + at
    byte = fg.shards[fg.shard[4]].read_bytes()[place]
    damage(fg, 4, at, bytes([byte ^ 1]))
    with pytest.raises(DataError, match="crc32"):
        Reader(fg).whole(4)
    with pytest.raises(DataError, match="crc32"):
        Reader(fg, verify=True).crop(4, 0, 10)
    # Stated limit: a partial read of training cannot see it.
    assert len(Reader(fg).crop(4, 0, 10)) == 10


def test_a_damaged_flac_is_seen_at_any_crop(root, tmp_path):
    shutil.copytree(root / "flac/fg", tmp_path / "fg")
    corpus = Corpus.open(tmp_path / "fg", "fg")
    place = int(corpus.members["flac"].offset[2] + corpus.members["flac"].size[2] // 2)
    path = corpus.shards[corpus.shard[2]]
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataError, match="crc32"):
        Reader(corpus).crop(2, 0, 10)


def test_a_missing_shard_is_named(fg):
    fg.shards[0].unlink()
    with pytest.raises(DataError, match="No such file") as caught:
        Reader(fg).crop(0, 0, 10)
    assert caught.value.shard == str(fg.shards[0])


def test_short_samples_are_padded_or_looped(root):
    corpus = Corpus.open(root / "wav/fg", "fg")
    reader = Reader(corpus)
    row = int(np.argmin(corpus.frames))
    whole = reader.whole(row)
    for place in (0.0, 0.37, 0.999):
        padded = padded_crop(reader, row, 2000, place)
        start = int(np.flatnonzero(padded)[0])
        inside = padded[start - np.flatnonzero(whole)[0] :][: len(whole)]
        np.testing.assert_array_equal(inside, whole)
        assert np.abs(padded.astype(int)).sum() == np.abs(whole.astype(int)).sum()
        looped = looped_crop(reader, row, 2000, place)
        np.testing.assert_array_equal(looped[len(whole) :], looped[: -len(whole)])
        np.testing.assert_array_equal(np.sort(looped[: len(whole)]), np.sort(whole))
    reader.close()


def test_quiet_means_below_minus_60_dbfs_rms():
    sine = np.sin(2 * np.pi * np.arange(4000) / 40)
    for level_db, quiet in ((-62, True), (-60.5, True), (-59.5, False), (-20, False)):
        wave = np.rint(32768 * 2**0.5 * 10 ** (level_db / 20) * sine).astype(np.int16)
        assert is_quiet(wave) == quiet, level_db
    assert is_quiet(np.zeros(10, np.int16))


def test_quiet_crops_are_drawn_again_first_nearby_then_elsewhere():
    seen: list[int] = []

    def crop_at(reader, row, frames, place):
        seen.append(row)
        return np.full(frames, 3000 if row == 7 else 0, np.int16)

    rng = np.random.default_rng(0)
    crop = audible_crop(None, 0, np.array([7]), 50, rng, crop_at)
    assert seen == [0, 0, 0, 0, 7] and crop.row == 7 and crop.wave[0] == 3000
    seen.clear()
    assert not audible_crop(None, 0, np.array([0]), 50, rng, crop_at).wave.any()
    assert len(seen) == 1 + MOST_REDRAWS
