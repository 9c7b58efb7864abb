"""Opening corpora: the arrays, every way to be refused, and the split."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import shard_inputs as audio
from hypothesis import given
from hypothesis import strategies as st

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.options import BuildOptions
from data_shards.sidecar import MemberEntry, SampleEntry, Sidecar, columns_of, parse_sidecar, sidecar_bytes
from data_shards.split import group_hash, split_groups
from data_shards.verify import verify_corpus


def build(source: Path, out: Path, kind: str = "fg", **values) -> Path:
    options = BuildOptions(kind, **{"rate_hz": audio.RATE_HZ, "workers": 1, **values})
    return build_corpus(kind, [source], out, options).folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards of two samples."""
    return build(audio.folder_of(tmp_path / "in", count=4, seconds=0.4), tmp_path / "out", shard_mb=0.02)


def test_arrays_lead_to_the_samples_in_the_tars(folder):
    corpus = Corpus.open(folder, "fg", audio.RATE_HZ)
    expected = audio.read_samples(folder)
    assert len(corpus) == len(expected) == 4
    table = corpus.members["wav"]
    for row, (name, wave) in enumerate(expected.items()):
        assert f"{corpus.key[row]:08d}.wav" == name
        data = corpus.shards[corpus.shard[row]].read_bytes()
        start = table.offset[row] + 44
        np.testing.assert_array_equal(np.frombuffer(data, "<i2", corpus.frames[row], start), wave)
        assert table.peak[row] == pytest.approx(np.abs(wave / 32768).max())
        assert table.rms[row] == pytest.approx(np.sqrt(np.mean((wave / 32768) ** 2)))
    assert corpus.seconds == pytest.approx(1.6)


def test_a_corpus_can_be_sent_to_loader_workers(folder):
    corpus = Corpus.open(folder, "fg")
    copy = pickle.loads(pickle.dumps(corpus))
    np.testing.assert_array_equal(copy.members["wav"].offset, corpus.members["wav"].offset)
    assert (copy.fingerprint, copy.shards) == (corpus.fingerprint, corpus.shards)


def refused(folder: Path, *texts: str, kind: str = "fg", rate_hz: int = audio.RATE_HZ) -> None:
    with pytest.raises(CorpusError) as caught:
        Corpus.open(folder, kind, rate_hz)
    for text in texts:
        assert text in str(caught.value)


def test_a_missing_or_empty_folder_says_how_to_build_one(tmp_path):
    command = f"python launch/build_shards.py bg --input DIR --output {tmp_path / 'bg'}"
    refused(tmp_path / "bg", "does not exist", command, kind="bg")
    (tmp_path / "bg").mkdir()
    refused(tmp_path / "bg", "is empty", command, kind="bg")


def test_a_url_is_refused_as_one(tmp_path):
    refused(Path("s3://bucket/fg"), "The fg corpus s3://bucket/fg is a URL", "mount it")


def test_a_folder_of_plain_audio_gives_the_very_command(tmp_path):
    source = audio.folder_of(tmp_path / "speech/deep", count=1).parent
    refused(source, "plain audio", f"python launch/build_shards.py fg --input {source} --output data/fg")


def test_a_folder_of_anything_else_or_a_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path, "is no corpus", "dataset.json")
    refused(tmp_path / "notes.txt", "is a file")


def test_another_kind_and_another_rate_are_refused(folder):
    refused(folder, "of kind fg", "kind bg is needed", kind="bg")
    refused(folder, "at 8000 Hz", "44100 Hz is needed", "--rate 44100", "wav_rate to 8000", rate_hz=44_100)


def test_an_unfinished_build_is_refused(folder):
    (folder / "dataset.json").unlink()
    refused(folder, "did not finish", "Run the same build command again")


@pytest.mark.parametrize("lost", ["fg-000001.tar", "fg-000001.tar.json"])
def test_a_missing_file_is_named(folder, lost):
    (folder / lost).unlink()
    refused(folder, str(folder / lost), "is missing")


def test_a_cut_and_a_lengthened_shard_are_refused_by_their_size(folder):
    shard = folder / "fg-000001.tar"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    refused(folder, "fg-000001.tar is cut short", f"{size - 1} bytes, needed {size}")
    os.truncate(shard, size + 1)
    refused(folder, "fg-000001.tar is too long")


def test_the_sidecar_of_another_file_and_an_edited_one_are_refused(folder):
    path = folder / "fg-000001.tar.json"
    before = path.read_text()
    path.write_bytes((folder / "fg-000000.tar.json").read_bytes())
    refused(folder, "fg-000001.tar.json is the sidecar of another file: fg-000000.tar")
    path.write_text(before.replace("take02.wav", "take03.wav"))
    refused(folder, "was changed after the build")
    path.write_text("{")
    refused(folder, "fg-000001.tar.json is no valid JSON")


def test_the_fingerprint_is_the_documented_one(folder):
    lines = ["wavewright-corpus", "fg", "8000"]
    for path in sorted(folder.glob("*.tar")):
        groups = json.loads((folder / f"{path.name}.json").read_text())["group"]
        named = "".join(f"{len(name.encode())}:{name}" for name in groups)
        lines.append(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()} {hashlib.sha256(named.encode()).hexdigest()}"
        )
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert Corpus.open(folder, "fg").fingerprint == expected


def rows(names: list[str]) -> np.ndarray:
    return np.arange(len(names))


names_lists = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30, unique=True)


@given(names_lists, st.floats(0.01, 0.99))
def test_a_split_covers_every_row_once_and_leaves_neither_side_empty(names, fraction):
    split = split_groups("fg", names, rows(names), fraction, "here")
    assert sorted([*split.train, *split.valid]) == list(range(len(names)))
    assert len(split.train) and len(split.valid) and split.warning is None


@given(names_lists, st.floats(0.2, 0.8))
def test_the_side_of_a_group_is_its_own_hash_save_where_a_side_would_be_empty(names, fraction):
    split = split_groups("fg", names, rows(names), fraction, "here")
    valid = {name for name in names if group_hash(name) < fraction}
    if 0 < len(valid) < len(names):
        assert {names[row] for row in split.valid} == valid


def test_group_hash_is_the_documented_one():
    expected = int(hashlib.blake2b(b"p225/take 1", digest_size=8).hexdigest(), 16) / 2**64
    assert group_hash("p225/take 1") == expected


def test_the_share_of_groups_kept_back_is_near_the_fraction():
    names = [f"speaker{number}" for number in range(2000)]
    split = split_groups("fg", names, rows(names), 0.1, "here")
    # Three standard deviations of a binomial of 2000 draws.
    assert abs(len(split.valid) - 200) < 3 * np.sqrt(2000 * 0.1 * 0.9)


def test_segments_of_a_recording_stay_on_one_side(tmp_path):
    for number in range(6):
        audio.write(tmp_path / f"in/{number}.wav", audio.noise(3.0, seed=number))
    corpus = Corpus.open(build(tmp_path / "in", tmp_path / "out", segment_seconds=1.0), "fg")
    split = corpus.split(0.4)
    assert len(corpus) == 18
    assert not {*corpus.group[split.train]} & {*corpus.group[split.valid]}


def test_adding_files_and_inputs_moves_no_recording_to_the_other_side(tmp_path):
    def sides(folder: Path) -> dict[str, bool]:
        corpus = Corpus.open(folder, "fg")
        split = corpus.split(0.5)
        valid = {corpus.groups[row] for row in corpus.group[split.valid]}
        return {name: name in valid for name in corpus.groups}

    audio.folder_of(tmp_path / "in", count=8, seconds=0.1)
    before = sides(build(tmp_path / "in", tmp_path / "out"))
    audio.write(tmp_path / "in/a first.wav", audio.noise(0.1))
    audio.write(tmp_path / "in/zz last.wav", audio.noise(0.1))
    audio.write(tmp_path / "more/other.wav", audio.noise(0.1))
    options = BuildOptions("fg", rate_hz=audio.RATE_HZ, workers=1)
    build_corpus("fg", [tmp_path / "in", tmp_path / "more"], tmp_path / "out", options)
    after = sides(tmp_path / "out")
    assert len(after) == 11 and before.items() <= after.items()


@pytest.mark.parametrize("kind", ["rir", "bg"])
def test_one_room_or_noise_is_shared_by_both_sides_with_a_warning(kind):
    split = split_groups(kind, ["hall"], np.zeros(3, int), 0.1, "data/rir")
    assert split.train.tolist() == split.valid.tolist() == [0, 1, 2]
    assert split.warning is not None and "data/rir has one group only" in split.warning


@pytest.mark.parametrize("kind", ["fg", "pair"])
def test_one_voice_alone_cannot_be_split(kind):
    with pytest.raises(CorpusError, match="one group only"):
        split_groups(kind, ["anna"], np.zeros(3, int), 0.1, "data/fg")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_an_impossible_fraction_is_an_error(fraction):
    with pytest.raises(ValueError, match="valid_fraction"):
        split_groups("fg", ["a", "b"], np.arange(2), fraction, "here")


def test_a_sidecar_of_a_hundred_thousand_samples_is_read_within_seconds():
    count = 100_000
    entry = [MemberEntry(512 + 1024 * at, 64, at, 0.5, 0.25) for at in range(count)]
    samples = [
        SampleEntry(at, f"{at}.wav", f"{at}", 0, 10, 44_100, 1, {"wav": entry[at]}) for at in range(count)
    ]
    sidecar = Sidecar(
        "fg", 44_100, "wav", "fg-000000.tar", 1024 * count + 1024, "a" * 64, "b" * 64, "c" * 64, count, 0, (),
        **columns_of(samples, ("wav",)),
    )  # fmt: skip
    data = sidecar_bytes(sidecar)
    started = time.process_time()
    assert len(parse_sidecar(data, "here")) == count
    # About 0.2 s of CPU on one core; the bound only catches a slower kind of growth.
    assert time.process_time() - started < 3


@pytest.mark.parametrize("name", ["dataset.json", "fg-000001.tar", "fg-000001.tar.json"])
def test_a_file_that_is_a_link_out_of_the_corpus_is_refused_and_one_within_is_not(folder, tmp_path, name):
    within = folder / "kept" / name
    within.parent.mkdir()
    (folder / name).rename(within)
    (folder / name).symlink_to(within)
    Corpus.open(folder, "fg")
    assert not verify_corpus(folder)
    within.rename(tmp_path / name)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, str(folder / name), "outside of the corpus")
    (tmp_path / "link").symlink_to(folder)  # The folder itself may be one: the user named it.
    refused(tmp_path / "link", "outside of the corpus")


def change(path: Path, **values) -> bytes:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps(content))
    return path.read_bytes()


@pytest.mark.parametrize(
    "name", ["../fg-000000.tar", "/etc/fg-000000.tar", "fg-000000.tar/../x", "fg-000000.tar\0", "fg-000000.tar\n"]
)  # fmt: skip
def test_a_shard_of_an_index_cannot_lie_elsewhere(folder, name):
    shards = json.loads((folder / "dataset.json").read_text())["shards"]
    change(folder / "dataset.json", shards=[{**shards[0], "tar": name}, *shards[1:]])
    refused(folder, "needed a shard's name such as fg-000000.tar")
    change(folder / "dataset.json", shards=shards)
    change(folder / "fg-000000.tar.json", tar=name)
    refused(folder, "needed a shard's name such as fg-000000.tar")


def test_a_sidecar_that_promises_another_size_is_refused_before_anything_is_read(folder):
    data = change(folder / "fg-000000.tar.json", bytes=2**60)
    shards = json.loads((folder / "dataset.json").read_text())["shards"]
    shards[0]["sidecar_sha256"] = hashlib.sha256(data).hexdigest()
    change(folder / "dataset.json", shards=shards)
    refused(folder, "is the sidecar of another file")
    shards[0]["bytes"] = 2**60
    change(folder / "dataset.json", shards=shards)
    refused(folder, "is cut short", f"needed {2**60}")
    assert "the file ends here" in str(verify_corpus(folder)[0])  # without setting so much memory aside
