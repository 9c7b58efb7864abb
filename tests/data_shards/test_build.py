"""Builds as a whole: what other programs read, and builds that are repeated, changed, stopped or killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import shard_inputs as audio
import soundfile as sf

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.verify import verify_corpus

RATE_HZ = audio.RATE_HZ


# webdataset 1.0.2 leaves each shard to the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_stock_webdataset_reads_every_sample_and_the_same_pcm(tmp_path, codec):
    import io

    import webdataset

    source = audio.folder_of(tmp_path / "in", count=5)
    build_corpus("fg", [source], tmp_path / "out", audio.options(codec=codec, shard_mb=0.02))
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(shards) > 1
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    expected = [sf.read(path, dtype="int16")[0] for path in sorted(source.iterdir())]
    assert [sample["__key__"] for sample in found] == [f"{key:08d}" for key in range(5)]
    for sample, wave in zip(found, expected, strict=True):
        np.testing.assert_array_equal(sf.read(io.BytesIO(sample[codec]), dtype="int16")[0], wave)


# webdataset 1.0.2 leaves each shard to the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_stock_webdataset_keeps_the_two_sides_of_a_pair_together(tmp_path):
    import webdataset

    audio.folder_of(tmp_path / "noisy", count=3)
    audio.folder_of(tmp_path / "clean", count=3)
    build_corpus(
        "pair", [tmp_path / "noisy"], tmp_path / "out", audio.options("pair"), targets=[tmp_path / "clean"]
    )
    found = list(webdataset.WebDataset(str(tmp_path / "out" / "pair-000000.tar"), shardshuffle=False))
    assert [set(sample) & {"input.wav", "target.wav"} for sample in found] == [
        {"input.wav", "target.wav"}
    ] * 3


@pytest.mark.multi
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=6)
    audio.write(source / "silent.wav", np.zeros(RATE_HZ))
    for workers in (1, 3):
        build_corpus("fg", [source], tmp_path / str(workers), audio.options(workers=workers, shard_mb=0.02))
    one, three = (audio.file_bytes(tmp_path / name) for name in ("1", "3"))
    assert len(one) > 6
    assert one == three


@pytest.mark.multi
def test_a_build_killed_with_9_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=24, seconds=20.0)
    arguments = ["fg", "--input", str(source), "--rate", str(RATE_HZ), "--shard-mb", "0.4", "--workers", "2"]
    command = [sys.executable, "-m", "launch.build_shards", *arguments]
    out = tmp_path / "out"
    process = subprocess.Popen([*command, "--output", str(out)])
    while not list(out.glob("*.tar.json")):
        assert process.poll() is None
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Nothing but their own watch over the parent ends the workers now.
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert finished and not (out / "dataset.json").exists()
    (out / "fg-000023.tar.tmp-1").write_bytes(b"half")
    with pytest.raises(CorpusError, match=r"unfinished|did not finish"):
        Corpus.open(out, "fg")
    subprocess.run([*command, "--output", str(out)], check=True, capture_output=True)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert finished.items() <= kept.items()
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True, capture_output=True)
    assert audio.file_bytes(out) == audio.file_bytes(tmp_path / "whole")
    assert verify_corpus(out) == []


@pytest.mark.multi
def test_interrupting_several_workers_stops_soon_and_leaves_no_half_shard(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=12, seconds=60.0)
    arguments = ["fg", "--input", str(source), "--rate", "44100", "--shard-mb", "6", "--workers", "2"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "launch.build_shards", *arguments, "--output", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("*.tmp-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75, errors
    assert "run the same command to go on" in errors and "Traceback" not in errors
    assert not list(out.glob("*.tmp-*")) and not (out / "dataset.json").exists()


def test_a_finished_corpus_is_up_to_date_and_not_touched(tmp_path):
    source = audio.folder_of(tmp_path / "in")
    first = build_corpus("fg", [source], tmp_path / "out", audio.options())
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = build_corpus("fg", [source], tmp_path / "out", audio.options())
    assert (first.up_to_date, second.up_to_date, second.num_built) == (False, True, 0)
    assert second.info == first.info
    del times[".build.lock"]
    assert (
        times.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
    )


def test_only_the_shard_of_a_changed_file_is_built_again(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=4)
    shards = audio.options(shard_mb=0.01)
    build_corpus("fg", [source], tmp_path / "out", shards)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    audio.write(source / "take02.wav", audio.noise(0.5, seed=77), subtype="PCM_16")
    result = build_corpus("fg", [source], tmp_path / "out", shards)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert result.num_built == 1
    assert {name for name in before if before[name] != after[name]} == {"fg-000002.tar"}


def test_changed_options_rebuild_and_shards_no_longer_wanted_go_away(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=4)
    build_corpus("fg", [source], tmp_path / "out", audio.options(shard_mb=0.01))
    result = build_corpus("fg", [source], tmp_path / "out", audio.options(segment_seconds=5))
    assert not result.up_to_date
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar*")) == [
        "fg-000000.tar",
        "fg-000000.tar.json",
    ]
    build_corpus("fg", [source], tmp_path / "fresh", audio.options(segment_seconds=5))
    assert audio.file_bytes(tmp_path / "out") == audio.file_bytes(tmp_path / "fresh")


@pytest.mark.parametrize("lost", ["fg-000001.tar", "fg-000001.tar.json", "dataset.json", "rejects.jsonl"])
def test_a_lost_file_of_the_corpus_is_made_again(tmp_path, lost):
    source = audio.folder_of(tmp_path / "in", count=4)
    build_corpus("fg", [source], tmp_path / "out", audio.options(shard_mb=0.01))
    before = audio.file_bytes(tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    result = build_corpus("fg", [source], tmp_path / "out", audio.options(shard_mb=0.01))
    assert result.num_built == (1 if "tar" in lost else 0)
    assert audio.file_bytes(tmp_path / "out") == before


def test_too_many_rejects_are_an_error_that_lists_them_and_keeps_the_shards(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=4)
    audio.write(source / "silent.wav", np.zeros(RATE_HZ))
    with pytest.raises(CorpusError, match=r"1 of 5 files .* --max-reject 0.1(.|\n)*silent.wav: silent"):
        build_corpus("fg", [source], tmp_path / "out", audio.options(max_reject=0.1))
    assert not (tmp_path / "out/dataset.json").exists()
    assert build_corpus("fg", [source], tmp_path / "out", audio.options(max_reject=0.2)).num_built == 0
    with pytest.raises(CorpusError, match="max-reject"):
        build_corpus("fg", [source], tmp_path / "out", audio.options(max_reject=0.1))


def test_a_corpus_without_any_sample_is_an_error(tmp_path):
    audio.write(tmp_path / "in/silent.wav", np.zeros(RATE_HZ))
    with pytest.raises(CorpusError, match=r"would be empty:\n  silent.wav"):
        build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())


def test_a_second_build_into_the_same_folder_is_refused(tmp_path):
    import fcntl

    source = audio.folder_of(tmp_path / "in", count=1)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.build.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(CorpusError, match="Another build"):
            build_corpus("fg", [source], tmp_path / "out", audio.options())


def test_the_output_may_not_hold_other_things_or_another_kind(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=1)
    with pytest.raises(CorpusError, match=r"other things than a corpus, such as take00.wav"):
        build_corpus("fg", [source], source, audio.options())
    build_corpus("fg", [source], tmp_path / "out", audio.options())
    with pytest.raises(CorpusError, match="of kind fg, not bg"):
        build_corpus("bg", [source], tmp_path / "out", audio.options("bg"))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("codec", "mp3", "codec is 'mp3'; needed one of wav, flac, wav32f"),
        ("rate_hz", 0, "--rate is 0; needed a number from 4000 to 1000000"),
        ("segment_seconds", 0.1, "--segment-seconds is 0.1; needed a number from 1.0 to 600.0"),
        ("max_reject", 2, "--max-reject is 2; needed a number from 0.0 to 1.0"),
        ("workers", 0, "--workers is 0; needed a number from 1 to 4096"),
    ],
)
def test_impossible_options_are_named(name, value, text):
    with pytest.raises(CorpusError) as caught:
        audio.options(**{name: value})
    assert str(caught.value) == text


def test_a_moved_input_folder_gives_the_same_fingerprint(tmp_path):
    source = audio.folder_of(tmp_path / "in")
    first = build_corpus("fg", [source], tmp_path / "out1", audio.options())
    shutil.copytree(source, tmp_path / "copy")
    second = build_corpus("fg", [tmp_path / "copy"], tmp_path / "out2", audio.options())
    assert second.info.fingerprint == first.info.fingerprint
