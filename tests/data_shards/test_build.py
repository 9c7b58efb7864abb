"""Building corpora: what goes in against what comes out, and builds that are repeated, changed or killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import shard_inputs as audio
import soundfile as sf
import soxr
from scipy.signal import resample_poly

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.options import BuildOptions
from data_shards.pieces import direct_path_first
from data_shards.verify import verify_corpus

RATE_HZ = audio.RATE_HZ


def options(kind: str = "fg", **values) -> BuildOptions:
    return BuildOptions(kind, **{"rate_hz": RATE_HZ, "workers": 1, "max_reject": 1.0, **values})


def rejects_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def joined(folder: Path) -> np.ndarray:
    return np.concatenate([wave for _, wave in sorted(audio.read_samples(folder).items())])


# webdataset 1.0.2 leaves each shard to the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_stock_webdataset_reads_every_sample_and_the_same_pcm(tmp_path, codec):
    import io

    import webdataset

    source = audio.folder_of(tmp_path / "in", count=5)
    build_corpus("fg", [source], tmp_path / "out", options(codec=codec, shard_mb=0.02))
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
        "pair", [tmp_path / "noisy"], tmp_path / "out", options("pair"), targets=[tmp_path / "clean"]
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
        build_corpus("fg", [source], tmp_path / str(workers), options(workers=workers, shard_mb=0.02))
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
    first = build_corpus("fg", [source], tmp_path / "out", options())
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = build_corpus("fg", [source], tmp_path / "out", options())
    assert (first.up_to_date, second.up_to_date, second.num_built) == (False, True, 0)
    assert second.info == first.info
    del times[".build.lock"]
    assert (
        times.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
    )


def test_only_the_shard_of_a_changed_file_is_built_again(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=4)
    shards = options(shard_mb=0.01)
    build_corpus("fg", [source], tmp_path / "out", shards)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    audio.write(source / "take02.wav", audio.noise(0.5, seed=77), subtype="PCM_16")
    result = build_corpus("fg", [source], tmp_path / "out", shards)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert result.num_built == 1
    assert {name for name in before if before[name] != after[name]} == {"fg-000002.tar"}


def test_changed_options_rebuild_and_shards_no_longer_wanted_go_away(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=4)
    build_corpus("fg", [source], tmp_path / "out", options(shard_mb=0.01))
    result = build_corpus("fg", [source], tmp_path / "out", options(segment_seconds=5))
    assert not result.up_to_date
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar*")) == [
        "fg-000000.tar",
        "fg-000000.tar.json",
    ]
    build_corpus("fg", [source], tmp_path / "fresh", options(segment_seconds=5))
    assert audio.file_bytes(tmp_path / "out") == audio.file_bytes(tmp_path / "fresh")


@pytest.mark.parametrize("lost", ["fg-000001.tar", "fg-000001.tar.json", "dataset.json", "rejects.jsonl"])
def test_a_lost_file_of_the_corpus_is_made_again(tmp_path, lost):
    source = audio.folder_of(tmp_path / "in", count=4)
    build_corpus("fg", [source], tmp_path / "out", options(shard_mb=0.01))
    before = audio.file_bytes(tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    result = build_corpus("fg", [source], tmp_path / "out", options(shard_mb=0.01))
    assert result.num_built == (1 if "tar" in lost else 0)
    assert audio.file_bytes(tmp_path / "out") == before


def test_nested_names_with_dots_unicode_and_equal_stems_stay_apart(tmp_path):
    names = [
        "a/b/c/take 1.5dB.wav",
        "a/b/c/take 1.7dB.wav",
        "Ünï/声.wav",
        "x/take.wav",
        "y/take.wav",
        "y/take.flac",
    ]
    for seed, name in enumerate(names):
        audio.write(tmp_path / "in" / name, audio.noise(0.2, seed=seed), subtype="PCM_16")
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())
    corpus = Corpus.open(tmp_path / "out", "fg")
    sources = [corpus.sources[row] for row in corpus.source]
    assert sources == sorted(names)
    assert corpus.groups[corpus.group[sources.index("a/b/c/take 1.5dB.wav")]] == "a/b/c/take 1.5dB"
    for (_, wave), source in zip(sorted(audio.read_samples(tmp_path / "out").items()), sources, strict=True):
        np.testing.assert_array_equal(wave, sf.read(tmp_path / "in" / source, dtype="int16")[0])


def test_a_name_that_is_no_utf8_is_kept_readable(tmp_path):
    (tmp_path / "in").mkdir()
    path = audio.write(tmp_path / "plain.wav", audio.noise(0.2))
    os.rename(path, os.fsencode(tmp_path / "in") + b"/caf\xe9.wav")
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())
    assert Corpus.open(tmp_path / "out", "fg").sources == ("caf\\xe9.wav",)


def test_links_are_followed_once_and_hidden_files_passed_over(tmp_path):
    source = audio.folder_of(tmp_path / "elsewhere", count=2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(source)
    (source / "loop").symlink_to(tmp_path / "in")
    (source / "._take00.wav").write_bytes(b"resource fork")
    (tmp_path / "in" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())
    assert Corpus.open(tmp_path / "out", "fg").sources == ("linked/take00.wav", "linked/take01.wav")
    assert [(line["source"], line["reason"].split(",")[0]) for line in rejects_of(tmp_path / "out")] == [
        ("gone.wav", "broken link")
    ]


@pytest.mark.parametrize(
    ("name", "fmt", "subtype"),
    [
        ("a.wav", "WAV", "PCM_24"),
        ("a.wav", "WAV", "FLOAT"),
        ("a.flac", "FLAC", "PCM_24"),
        ("a.ogg", "OGG", "VORBIS"),
        ("a.mp3", "MP3", "MPEG_LAYER_III"),
        ("a.AIFF", "AIFF", "PCM_16"),
    ],
)
def test_every_format_is_decoded_at_any_rate_and_mixed_down(tmp_path, name, fmt, subtype):
    seconds = np.arange(44_100) / 44_100
    left, right = 0.5 * np.sin(2 * np.pi * 440 * seconds), 0.1 * np.sin(2 * np.pi * 440 * seconds)
    audio.write(tmp_path / "in" / name, np.stack([left, right], 1), 44_100, subtype, fmt)
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options(rate_hz=16_000))
    wave = joined(tmp_path / "out") / 32768
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(len(wave)) / 16_000)
    assert abs(len(wave) - 16_000) <= (500 if fmt == "MP3" else 0)
    inner = slice(2000, 14_000)
    # Lossy codecs change and delay the wave; the correlation with a sine of any phase does not care.
    phasor = np.exp(2j * np.pi * 440 * np.arange(len(wave)) / 16_000)
    assert 2 * abs(np.mean((wave * phasor)[inner])) == pytest.approx(0.3, rel=0.03)
    if fmt in ("WAV", "FLAC", "AIFF"):
        np.testing.assert_allclose(wave[inner], expected[inner], atol=2e-4)


def test_segments_of_a_long_file_join_to_the_file_resampled_at_once(tmp_path):
    wave = audio.noise(7.3, 44_100)
    audio.write(tmp_path / "in/long.wav", wave, 44_100, subtype="FLOAT")
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options(rate_hz=16_000, segment_seconds=1.0))
    corpus = Corpus.open(tmp_path / "out", "fg")
    assert len(corpus) == 8 and corpus.groups == ("long",)
    assert corpus.frames.max() <= 16_000 and corpus.frames.max() - corpus.frames.min() <= 1
    found = joined(tmp_path / "out")
    at_once = np.rint(soxr.resample(wave, 44_100, 16_000, quality="HQ") * 32768)
    np.testing.assert_array_equal(found, at_once.astype(np.int16))
    # scipy's filter is another one, so only the pass band is compared.
    independent = resample_poly(wave, 160, 441)
    spectra = [np.fft.rfft(part[8000:72_000])[100:20_000] for part in (found / 32768, independent)]
    assert np.linalg.norm(spectra[0] - spectra[1]) / np.linalg.norm(spectra[1]) < 0.01


def test_sixteen_bit_mono_input_at_the_corpus_rate_is_kept_bit_for_bit(tmp_path):
    wave = np.arange(-32768, 32768, dtype=np.int16)
    audio.write(tmp_path / "in/ramp.wav", wave, subtype="PCM_16")
    result = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())
    np.testing.assert_array_equal(joined(tmp_path / "out"), wave)
    assert result.info.clipped == 0


def test_values_beyond_full_scale_are_clipped_and_counted(tmp_path):
    wave = audio.noise(0.5)
    wave[[10, 20, 30]] = [1.5, -1.5, 1.0]
    audio.write(tmp_path / "in/loud.wav", wave, subtype="FLOAT")
    result = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())
    assert joined(tmp_path / "out")[[10, 20, 30]].tolist() == [32767, -32768, 32767]
    assert result.info.clipped == 2


def unusable_inputs(folder: Path) -> dict[str, str]:
    """Files that cannot be used, with the start of the reason."""
    good = audio.noise(2.0)
    nan = good.copy()
    nan[1234] = np.nan
    audio.write(folder / "nan.wav", nan, subtype="FLOAT")
    audio.write(folder / "inf.wav", np.where(np.arange(len(good)) == 9, np.inf, good), subtype="FLOAT")
    audio.write(folder / "silent.wav", np.zeros(RATE_HZ))
    audio.write(folder / "hiss.wav", np.full(RATE_HZ, 5e-5), subtype="FLOAT")
    audio.write(folder / "short.wav", good[:100])
    audio.write(folder / "zero.wav", good[:0])
    (folder / "nothing.wav").write_bytes(b"")
    (folder / "text.mp3").write_text("not audio at all")
    for name in ("cut.wav", "cut.flac", "cut.aiff", "cut.mp3"):
        path = audio.write(folder / name, np.tile(good, 4), RATE_HZ)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {
        "nan.wav": "NaN or infinite sample at frame 1234",
        "inf.wav": "NaN or infinite sample at frame 9",
        "silent.wav": "silent",
        "hiss.wav": "silent",
        "short.wav": "too short: 0.013 s",
        "zero.wav": "zero length",
        "nothing.wav": "empty file",
        "text.mp3": "cannot be decoded",
        "cut.wav": "cut off",
        "cut.flac": "cannot be decoded",
        "cut.aiff": "cut off",
        "cut.mp3": "cut off",
    }


def test_unusable_files_are_rejected_with_the_reason_and_leave_no_sample(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=2)
    expected = unusable_inputs(source)
    result = build_corpus("fg", [source], tmp_path / "out", options(segment_seconds=1.0))
    reasons = {
        line["source"]: line["reason"] for line in rejects_of(tmp_path / "out") if line["piece"] is None
    }
    assert reasons.keys() == expected.keys()
    for name, start in expected.items():
        assert reasons[name].startswith(start), (name, reasons[name])
    assert result.info.num_rejected_files == len(expected)
    assert Corpus.open(tmp_path / "out", "fg").sources == ("take00.wav", "take01.wav")
    assert verify_corpus(tmp_path / "out") == []


def test_a_silent_stretch_of_a_long_file_is_left_out_and_named(tmp_path):
    wave = audio.noise(3.0)
    wave[RATE_HZ : 2 * RATE_HZ] = 0
    audio.write(tmp_path / "in/a.wav", wave, subtype="PCM_16")
    result = build_corpus(
        "fg", [tmp_path / "in"], tmp_path / "out", options(segment_seconds=1.0, max_reject=0)
    )
    assert result.info.num_samples == 2 and result.info.num_rejected_files == 0
    assert [line["piece"] for line in rejects_of(tmp_path / "out")] == ["1.00-2.00 s"]
    assert result.info.frames == 2 * RATE_HZ


def test_too_many_rejects_are_an_error_that_lists_them_and_keeps_the_shards(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=4)
    audio.write(source / "silent.wav", np.zeros(RATE_HZ))
    with pytest.raises(CorpusError, match=r"1 of 5 files .* --max-reject 0.1(.|\n)*silent.wav: silent"):
        build_corpus("fg", [source], tmp_path / "out", options(max_reject=0.1))
    assert not (tmp_path / "out/dataset.json").exists()
    assert build_corpus("fg", [source], tmp_path / "out", options(max_reject=0.2)).num_built == 0
    with pytest.raises(CorpusError, match="max-reject"):
        build_corpus("fg", [source], tmp_path / "out", options(max_reject=0.1))


def test_a_corpus_without_any_sample_is_an_error(tmp_path):
    audio.write(tmp_path / "in/silent.wav", np.zeros(RATE_HZ))
    with pytest.raises(CorpusError, match=r"would be empty:\n  silent.wav"):
        build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())


def test_several_inputs_are_told_apart_by_the_shortest_ends_of_their_paths(tmp_path):
    for speaker in ("anna", "bert"):
        audio.folder_of(tmp_path / speaker / "wavs", count=1)
    inputs = [tmp_path / "anna/wavs", tmp_path / "bert/wavs"]
    build_corpus("fg", inputs, tmp_path / "out", options())
    corpus = Corpus.open(tmp_path / "out", "fg")
    assert corpus.sources == ("anna/wavs/take00.wav", "bert/wavs/take00.wav")
    with pytest.raises(CorpusError, match="given twice"):
        build_corpus("fg", [inputs[0], inputs[0]], tmp_path / "out", options())
    with pytest.raises(CorpusError, match="lies inside"):
        build_corpus("fg", [inputs[0], tmp_path], tmp_path / "out", options())


def test_grouping_by_folder_keeps_a_speaker_together_and_changes_the_fingerprint(tmp_path):
    for name in ("p1/a", "p1/b", "p2/deep/c", "d"):
        audio.write(tmp_path / "in" / f"{name}.wav", audio.noise(0.2))
    by_file = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options())
    by_folder = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", options(group_by="folder"))
    corpus = Corpus.open(tmp_path / "out", "fg")
    assert [corpus.groups[row] for row in corpus.group] == [".", "p1", "p1", "p2/deep"]
    assert by_folder.info.shards[0].sha256 == by_file.info.shards[0].sha256
    assert by_folder.info.fingerprint != by_file.info.fingerprint


def test_a_response_starts_at_its_direct_path_upright_and_at_full_scale(tmp_path):
    response = np.zeros((3 * RATE_HZ, 2))
    response[400:, 0] = -0.2 * np.exp(-np.arange(3 * RATE_HZ - 400) / 4000)
    response[[100, 900], 1] = [0.05, 0.1]
    audio.write(tmp_path / "in/hall.wav", response, subtype="FLOAT")
    build_corpus("rir", [tmp_path / "in"], tmp_path / "out", options("rir"))
    corpus = Corpus.open(tmp_path / "out", "rir")
    assert corpus.groups == ("hall",) and corpus.frames.tolist() == [RATE_HZ, RATE_HZ]
    left, right = (wave.astype(float) for _, wave in sorted(audio.read_samples(tmp_path / "out").items()))
    assert left[0] == right[0] == 32767 and right[1:].max() == 0
    flat = slice(0, RATE_HZ - 80)
    np.testing.assert_allclose(left[flat], 32767 * np.exp(-np.arange(RATE_HZ) / 4000)[flat], atol=1)
    assert abs(left[-1]) <= 1


@pytest.mark.parametrize("frames", [1, 2, 3, 50])
def test_a_response_of_few_samples_keeps_its_direct_path(frames):
    start, samples = direct_path_first(np.array([0.0, *[0.5] * frames], np.float32), RATE_HZ)
    assert (start, samples[0], len(samples)) == (1, 32767, frames)


def test_a_silent_channel_of_a_response_is_left_out(tmp_path):
    audio.write(tmp_path / "in/a.wav", np.stack([audio.noise(0.1), np.zeros(800)], 1), subtype="FLOAT")
    result = build_corpus("rir", [tmp_path / "in"], tmp_path / "out", options("rir"))
    assert result.info.num_samples == 1
    assert [line["piece"] for line in rejects_of(tmp_path / "out")] == ["channel 1"]


def test_pairs_are_cut_alike_and_the_unmatched_are_rejected(tmp_path):
    noisy, clean = tmp_path / "noisy", tmp_path / "clean"
    heard, wanted = audio.noise(2.5, seed=1), audio.noise(2.5, seed=2)
    audio.write(noisy / "s/a.wav", heard, subtype="PCM_16")
    audio.write(clean / "s/a.flac", wanted, subtype="PCM_16")
    audio.write(noisy / "alone.wav", heard)
    audio.write(clean / "other.wav", heard)
    audio.write(noisy / "longer.wav", heard)
    audio.write(clean / "longer.wav", heard[:-5])
    audio.write(noisy / "mute.wav", heard)
    audio.write(clean / "mute.wav", np.zeros_like(heard))
    for name in ("twice.wav", "twice.flac"):
        audio.write(noisy / name, heard)
    audio.write(clean / "twice.wav", heard)
    build_corpus("pair", [noisy], tmp_path / "out", options("pair", segment_seconds=1.0), targets=[clean])
    samples = audio.read_samples(tmp_path / "out")
    for member, path in (("input", noisy / "s/a.wav"), ("target", clean / "s/a.flac")):
        found = np.concatenate([value for name, value in sorted(samples.items()) if member in name])
        np.testing.assert_array_equal(found, sf.read(path, dtype="int16")[0])
    reasons = {
        line["source"]: line["reason"] for line in rejects_of(tmp_path / "out") if line["piece"] is None
    }
    assert reasons.keys() == {"alone.wav", "other.wav", "longer.wav", "mute.wav", "twice.wav", "twice.flac"}
    assert "20000 frames" in reasons["longer.wav"] and "19995" in reasons["longer.wav"]
    assert "no target" in reasons["alone.wav"] and "is silent" in reasons["mute.wav"]


def test_pairs_at_different_rates_are_trimmed_to_the_frame_they_share(tmp_path):
    audio.write(tmp_path / "noisy/a.wav", audio.noise(0.50001, 48_000), 48_000)
    audio.write(tmp_path / "clean/a.wav", audio.noise(0.5, 44_100), 44_100)
    build_corpus(
        "pair",
        [tmp_path / "noisy"],
        tmp_path / "out",
        options("pair", rate_hz=96_000),
        targets=[tmp_path / "clean"],
    )
    assert {len(wave) for wave in audio.read_samples(tmp_path / "out").values()} == {48_000}


def test_a_second_build_into_the_same_folder_is_refused(tmp_path):
    import fcntl

    source = audio.folder_of(tmp_path / "in", count=1)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.build.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(CorpusError, match="Another build"):
            build_corpus("fg", [source], tmp_path / "out", options())


def test_the_output_may_not_hold_other_things_or_another_kind(tmp_path):
    source = audio.folder_of(tmp_path / "in", count=1)
    with pytest.raises(CorpusError, match=r"other things than a corpus, such as take00.wav"):
        build_corpus("fg", [source], source, options())
    build_corpus("fg", [source], tmp_path / "out", options())
    with pytest.raises(CorpusError, match="of kind fg, not bg"):
        build_corpus("bg", [source], tmp_path / "out", options("bg"))


@pytest.mark.parametrize(
    "values", [{"codec": "mp3"}, {"rate_hz": 0}, {"segment_seconds": 0.1}, {"max_reject": 2}, {"workers": 0}]
)
def test_impossible_options_are_named(values):
    with pytest.raises(CorpusError, match=f"{next(iter(values))} is"):
        options(**values)


def test_a_moved_input_folder_gives_the_same_fingerprint(tmp_path):
    source = audio.folder_of(tmp_path / "in")
    first = build_corpus("fg", [source], tmp_path / "out1", options())
    shutil.copytree(source, tmp_path / "copy")
    second = build_corpus("fg", [tmp_path / "copy"], tmp_path / "out2", options())
    assert second.info.fingerprint == first.info.fingerprint
