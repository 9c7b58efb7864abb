"""What becomes of input files: formats, rates, names, segments, responses, pairs, and the unusable ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import shard_inputs as audio
import soundfile as sf
import soxr
from scipy.signal import resample_poly

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.ingest import RejectedInput, probe, read_blocks
from data_shards.pieces import direct_path_first
from data_shards.scan import find_audio
from data_shards.verify import verify_corpus

RATE_HZ = audio.RATE_HZ


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
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())
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
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())
    assert Corpus.open(tmp_path / "out", "fg").sources == ("caf\\xe9.wav",)


def test_links_are_followed_once_and_hidden_files_passed_over(tmp_path):
    source = audio.folder_of(tmp_path / "elsewhere", count=2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(source)
    (source / "loop").symlink_to(tmp_path / "in")
    (source / "._take00.wav").write_bytes(b"resource fork")
    (tmp_path / "in" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())
    assert Corpus.open(tmp_path / "out", "fg").sources == ("linked/take00.wav", "linked/take01.wav")
    assert [
        (line["source"], line["reason"].split(",")[0]) for line in audio.rejects_of(tmp_path / "out")
    ] == [("gone.wav", "broken link")]


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
    build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options(rate_hz=16_000))
    wave = audio.joined(tmp_path / "out") / 32768
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
    build_corpus(
        "fg", [tmp_path / "in"], tmp_path / "out", audio.options(rate_hz=16_000, segment_seconds=1.0)
    )
    corpus = Corpus.open(tmp_path / "out", "fg")
    assert len(corpus) == 8 and corpus.groups == ("long",)
    assert corpus.frames.max() <= 16_000 and corpus.frames.max() - corpus.frames.min() <= 1
    found = audio.joined(tmp_path / "out")
    at_once = np.rint(soxr.resample(wave, 44_100, 16_000, quality="HQ") * 32768)
    np.testing.assert_array_equal(found, at_once.astype(np.int16))
    # scipy's filter is another one, so only the pass band is compared.
    independent = resample_poly(wave, 160, 441)
    spectra = [np.fft.rfft(part[8000:72_000])[100:20_000] for part in (found / 32768, independent)]
    assert np.linalg.norm(spectra[0] - spectra[1]) / np.linalg.norm(spectra[1]) < 0.01


def test_sixteen_bit_mono_input_at_the_corpus_rate_is_kept_bit_for_bit(tmp_path):
    wave = np.arange(-32768, 32768, dtype=np.int16)
    audio.write(tmp_path / "in/ramp.wav", wave, subtype="PCM_16")
    result = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())
    np.testing.assert_array_equal(audio.joined(tmp_path / "out"), wave)
    assert result.info.clipped == 0


def test_values_beyond_full_scale_are_clipped_and_counted(tmp_path):
    wave = audio.noise(0.5)
    wave[[10, 20, 30]] = [1.5, -1.5, 1.0]
    audio.write(tmp_path / "in/loud.wav", wave, subtype="FLOAT")
    result = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())
    assert audio.joined(tmp_path / "out")[[10, 20, 30]].tolist() == [32767, -32768, 32767]
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
    result = build_corpus("fg", [source], tmp_path / "out", audio.options(segment_seconds=1.0))
    reasons = {
        line["source"]: line["reason"] for line in audio.rejects_of(tmp_path / "out") if line["piece"] is None
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
        "fg", [tmp_path / "in"], tmp_path / "out", audio.options(segment_seconds=1.0, max_reject=0)
    )
    assert result.info.num_samples == 2 and result.info.num_rejected_files == 0
    assert [line["piece"] for line in audio.rejects_of(tmp_path / "out")] == ["1.00-2.00 s"]
    assert result.info.frames == 2 * RATE_HZ


def test_several_inputs_are_told_apart_by_the_shortest_ends_of_their_paths(tmp_path):
    for speaker in ("anna", "bert"):
        audio.folder_of(tmp_path / speaker / "wavs", count=1)
    inputs = [tmp_path / "anna/wavs", tmp_path / "bert/wavs"]
    build_corpus("fg", inputs, tmp_path / "out", audio.options())
    corpus = Corpus.open(tmp_path / "out", "fg")
    assert corpus.sources == ("anna/wavs/take00.wav", "bert/wavs/take00.wav")
    with pytest.raises(CorpusError, match="given twice"):
        build_corpus("fg", [inputs[0], inputs[0]], tmp_path / "out", audio.options())
    with pytest.raises(CorpusError, match="lies inside"):
        build_corpus("fg", [inputs[0], tmp_path], tmp_path / "out", audio.options())


def test_grouping_by_folder_keeps_a_speaker_together_and_changes_the_fingerprint(tmp_path):
    for name in ("p1/a", "p1/b", "p2/deep/c", "d"):
        audio.write(tmp_path / "in" / f"{name}.wav", audio.noise(0.2))
    by_file = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options())
    by_folder = build_corpus("fg", [tmp_path / "in"], tmp_path / "out", audio.options(group_by="folder"))
    corpus = Corpus.open(tmp_path / "out", "fg")
    assert [corpus.groups[row] for row in corpus.group] == [".", "p1", "p1", "p2/deep"]
    assert by_folder.info.shards[0].sha256 == by_file.info.shards[0].sha256
    assert by_folder.info.fingerprint != by_file.info.fingerprint


def test_a_response_starts_at_its_direct_path_upright_and_at_full_scale(tmp_path):
    response = np.zeros((3 * RATE_HZ, 2))
    response[400:, 0] = -0.2 * np.exp(-np.arange(3 * RATE_HZ - 400) / 4000)
    response[[100, 900], 1] = [0.05, 0.1]
    audio.write(tmp_path / "in/hall.wav", response, subtype="FLOAT")
    build_corpus("rir", [tmp_path / "in"], tmp_path / "out", audio.options("rir"))
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
    result = build_corpus("rir", [tmp_path / "in"], tmp_path / "out", audio.options("rir"))
    assert result.info.num_samples == 1
    assert [line["piece"] for line in audio.rejects_of(tmp_path / "out")] == ["channel 1"]


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
    build_corpus(
        "pair", [noisy], tmp_path / "out", audio.options("pair", segment_seconds=1.0), targets=[clean]
    )
    samples = audio.read_samples(tmp_path / "out")
    for member, path in (("input", noisy / "s/a.wav"), ("target", clean / "s/a.flac")):
        found = np.concatenate([value for name, value in sorted(samples.items()) if member in name])
        np.testing.assert_array_equal(found, sf.read(path, dtype="int16")[0])
    reasons = {
        line["source"]: line["reason"] for line in audio.rejects_of(tmp_path / "out") if line["piece"] is None
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
        audio.options("pair", rate_hz=96_000),
        targets=[tmp_path / "clean"],
    )
    assert {len(wave) for wave in audio.read_samples(tmp_path / "out").values()} == {48_000}


def test_a_header_that_promises_more_than_the_file_can_hold_is_rejected(tmp_path):
    """FLAC's count of samples, 36 bits in STREAMINFO: no memory is set aside by it."""
    path = audio.write(tmp_path / "a.flac", audio.noise(0.3), subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(RejectedInput, match=r"68719476735 frames, which .* bytes cannot hold"):
        probe(find_audio(tmp_path)[0])


def test_an_hour_of_silence_in_few_bytes_is_read(tmp_path):
    wave = np.zeros(3600 * 8000, np.int16)
    wave[-100:] = 9000
    path = audio.write(tmp_path / "a.flac", wave, subtype="PCM_16")
    assert path.stat().st_size < 200_000
    assert probe(find_audio(tmp_path)[0]).frames == len(wave)


def test_a_sample_far_beyond_full_scale_is_rejected_with_its_place(tmp_path):
    """A corpus of float samples could not say such a peak."""
    wave = audio.noise(0.3)
    wave[700] = -2e6
    path = audio.write(tmp_path / "a.wav", wave, subtype="FLOAT")
    header = probe(find_audio(tmp_path)[0])
    with pytest.raises(RejectedInput, match="absurdly large sample at frame 700"):
        list(read_blocks(str(path), header))
