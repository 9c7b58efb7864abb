"""Importing dry/wet pairs: every format, what the corpus then holds, and each way in which a pair can be wrong."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.io import wavfile

from data_shards.clipping import clipped_share
from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus, read_pairs
from data_shards.reader import Reader
from data_shards.verify import verify_corpus
from launch.build_shards import main
from tests.data_shards import pedal_audio
from tests.data_shards.pedal_audio import RATE_HZ


def stored(folder: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Every member as scipy reads it: name to (rate, float32 [frames])."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = wavfile.read(io.BytesIO(stream.read()))
    return found


def run(folder: Path, *arguments: str | Path) -> int:
    return main(["pedal", "--output", str(folder), *map(str, arguments)])


def refuses(capsys, folder: Path, arguments: list[str | Path], *texts: str) -> None:
    assert run(folder, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    for text in texts:
        assert text in error
    assert not (folder / "dataset.json").exists()


def test_a_late_pair_is_stored_aligned_and_split_in_time(tmp_path, capsys):
    dry, wet = pedal_audio.write_pair(tmp_path, 3.0, delay=150)
    out = tmp_path / "out"
    assert run(out, "--dry", dry, "--wet", wet, "--knob", "drive=0.5", "--valid-seconds", "0.5") == 0
    told = capsys.readouterr().out
    assert "lag 150 samples (9.38 ms) taken out" in told and "upright" in told and "drive 0.5" in told
    heard, given = soundfile.read(dry, dtype="float32")[0], soundfile.read(wet, dtype="float32")[0]
    members = stored(out)
    assert list(members) == [f"{key:08d}.{side}.wav" for key in (0, 1) for side in ("input", "target")]
    assert {rate for rate, _ in members.values()} == {RATE_HZ}
    inputs = [members[f"{key:08d}.input.wav"][1] for key in (0, 1)]
    targets = [members[f"{key:08d}.target.wav"][1] for key in (0, 1)]
    assert (
        [len(part) for part in inputs]
        == [len(part) for part in targets]
        == [2.5 * RATE_HZ - 150, 0.5 * RATE_HZ]
    )
    np.testing.assert_array_equal(np.concatenate(inputs), heard[:-150])
    np.testing.assert_array_equal(np.concatenate(targets), given[150:])
    corpus = Corpus.open(out, "pedal", RATE_HZ)
    split = corpus.split(0.1)
    assert (split.train.tolist(), split.valid.tolist(), corpus.groups) == ([0], [1], ("train", "valid"))
    take = corpus.takes[0]
    assert (take.lag_samples, take.polarity, take.knobs, take.wet) == (150, 1, {"drive": 0.5}, wet.name)
    assert verify_corpus(out) == []
    assert run(out, "--dry", dry, "--wet", wet, "--knob", "drive=0.5", "--valid-seconds", "0.5") == 0
    assert "up to date" in capsys.readouterr().out


def test_a_test_stretch_is_the_very_end_and_neither_trains_nor_validates(tmp_path, capsys):
    pairs = [pedal_audio.write_pair(tmp_path, 2.0 + seed, seed=seed) for seed in (0, 1)]
    arguments = [part for dry, wet in pairs for part in ("--dry", dry, "--wet", wet)]
    out = tmp_path / "out"
    assert run(out, *arguments, "--align", "off", "--valid-seconds", "0.5", "--test-fraction", "0.25") == 0
    told = capsys.readouterr().out
    assert "1.00 s train, the next 0.50 s validate, the last 0.50 s are kept for a test" in told
    members = stored(out)
    for number, (paths, whole) in enumerate(zip(pairs, (2.0, 3.0), strict=True)):
        lengths = [round(RATE_HZ * seconds) for seconds in (0.75 * whole - 0.5, 0.5, 0.25 * whole)]
        for side, path in zip(("input", "target"), paths, strict=True):
            parts = [members[f"{3 * number + part:08d}.{side}.wav"][1] for part in range(3)]
            assert [len(part) for part in parts] == lengths
            np.testing.assert_array_equal(np.concatenate(parts), soundfile.read(path, dtype="float32")[0])
    corpus = Corpus.open(out, "pedal")
    split = corpus.split(0.1)
    assert (split.train.tolist(), split.valid.tolist()) == ([0, 3], [1, 4])
    assert verify_corpus(out) == []


def test_a_test_stretch_of_seconds_and_what_cannot_be(tmp_path, capsys):
    dry, wet = pedal_audio.write_pair(tmp_path, 3.0)
    arguments = ["--dry", dry, "--wet", wet]
    refuses(capsys, tmp_path / "out", [*arguments, "--test-seconds", "0"], "--test-seconds is 0.0")
    refuses(capsys, tmp_path / "out", [*arguments, "--test-fraction", "1"], "--test-fraction is 1.0")
    refuses(
        capsys, tmp_path / "out", [*arguments, "--test-seconds", "3"], "s are left to train", "--test-seconds"
    )
    assert run(tmp_path / "out", *arguments, "--valid-seconds", "0.5", "--test-seconds", "1") == 0
    assert [len(wave) for _, wave in stored(tmp_path / "out").values()][::2] == [24_000, 8_000, 16_000]


def test_a_corpus_without_a_test_stretch_says_nothing_of_it(tmp_path):
    dry, wet = pedal_audio.write_pair(tmp_path)
    build_pedal_corpus([DevicePair(dry, wet)], tmp_path / "out")
    assert "test_frames" not in (tmp_path / "out/pedal-000000.tar.json").read_text()


def test_other_knobs_or_another_split_are_another_corpus(tmp_path):
    dry, wet = pedal_audio.write_pair(tmp_path)
    found = set()
    for knobs, valid in (
        ({"drive": 0.5}, 0.15),
        ({"drive": 0.6}, 0.15),
        ({"gain": 0.5}, 0.15),
        ({"drive": 0.5}, 0.2),
    ):
        options = PedalOptions(valid_fraction=valid)
        built = build_pedal_corpus([DevicePair(dry, wet, knobs)], tmp_path / "out", options)
        assert not built.result.up_to_date
        found.add(built.result.info.fingerprint)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("subtype", "name", "step"),
    [
        ("PCM_U8", "a.wav", 2**-7),
        ("PCM_16", "a.wav", 2**-15),
        ("PCM_24", "a.wav", 2**-23),
        ("PCM_32", "a.wav", 2**-23),
        ("FLOAT", "a.wav", 0.0),
        ("DOUBLE", "a.wav", 0.0),
        ("PCM_16", "a.flac", 2**-15),
        ("PCM_24", "a.flac", 2**-23),
    ],
)
def test_any_depth_comes_in_as_precisely_as_it_was(tmp_path, subtype, name, step):
    dry = pedal_audio.guitar(2.0)
    wet = pedal_audio.fuzz(dry)
    paths = [
        pedal_audio.write(tmp_path / side / name, wave, subtype=subtype)
        for side, wave in (("d", dry), ("w", wet))
    ]
    build_pedal_corpus([DevicePair(*paths)], tmp_path / "out", PedalOptions(align="off"))
    members = stored(tmp_path / "out")
    for side, wave in (("input", dry), ("target", wet)):
        kept = np.concatenate([members[f"{key:08d}.{side}.wav"][1] for key in (0, 1)])
        assert kept.dtype == np.float32
        np.testing.assert_allclose(kept, wave.astype(np.float32), rtol=0, atol=step)


def test_24_bits_and_peaks_above_full_scale_are_kept_exactly(tmp_path):
    dry = pedal_audio.guitar(2.0)
    loud = (3.7 * pedal_audio.fuzz(dry)).astype(np.float32)
    quiet = np.rint(1e-3 * dry * 2**23).astype(np.int32)
    wet_path = pedal_audio.write(tmp_path / "wet.wav", loud)
    dry_path = tmp_path / "dry.wav"
    soundfile.write(dry_path, quiet << 8, RATE_HZ, subtype="PCM_24")
    built = build_pedal_corpus([DevicePair(dry_path, wet_path)], tmp_path / "out")
    assert built.pairs[0].take.lag_samples == 0 and built.pairs[0].warnings == ()
    corpus = Corpus.open(tmp_path / "out", "pedal")
    reader = Reader(corpus)
    target = np.concatenate([reader.whole(row, "target") for row in (0, 1)])
    heard = np.concatenate([reader.whole(row, "input") for row in (0, 1)])
    np.testing.assert_array_equal(target, loud)
    np.testing.assert_array_equal(heard.astype(np.float64) * 2**23, quiet)
    np.testing.assert_array_equal(reader.crop(0, 100, 50, "target"), loud[100:150])
    assert corpus.members["target.wav"].peak.max() == np.abs(loud).max() > 1


def test_an_inverted_wet_file_is_told_and_turned_over_on_request_only(tmp_path, capsys):
    dry = pedal_audio.guitar(3.0)
    paths = ["--dry", pedal_audio.write(tmp_path / "d.wav", dry)]
    paths += ["--wet", pedal_audio.write(tmp_path / "w.wav", -pedal_audio.fuzz(dry))]
    upright = pedal_audio.fuzz(dry).astype(np.float32)
    assert run(tmp_path / "kept", *paths) == 0
    assert "inverted, kept as recorded" in capsys.readouterr().out
    assert run(tmp_path / "fixed", *paths, "--fix-polarity") == 0
    assert "inverted, turned over" in capsys.readouterr().out
    for name, sign in (("kept", -1), ("fixed", 1)):
        members = stored(tmp_path / name)
        wet = np.concatenate([members[f"{key:08d}.target.wav"][1] for key in (0, 1)])
        np.testing.assert_array_equal(wet, sign * upright)


@pytest.mark.parametrize("align", ["30", "-30", "off"])
def test_a_given_lag_is_taken_out_and_a_doubtful_one_is_told(tmp_path, capsys, align):
    dry, wet = pedal_audio.write_pair(tmp_path, delay=12)
    assert run(tmp_path / "out", "--dry", dry, "--wet", wet, f"--align={align}") == 0
    lag = 0 if align == "off" else int(align)
    assert f"the lag measured is 12 samples, taken out are {lag}" in capsys.readouterr().err
    heard, given = soundfile.read(dry, dtype="float32")[0], soundfile.read(wet, dtype="float32")[0]
    members = stored(tmp_path / "out")
    for side, wave, first in (("input", heard, max(-lag, 0)), ("target", given, max(lag, 0))):
        kept = np.concatenate([members[f"{key:08d}.{side}.wav"][1] for key in (0, 1)])
        np.testing.assert_array_equal(kept, wave[first : first + len(wave) - abs(lag)])


def test_several_pairs_with_knobs_by_flags_and_by_list(tmp_path):
    pairs = [pedal_audio.write_pair(tmp_path, seed=seed) for seed in (0, 1)]
    flags: list[str | Path] = []
    for (dry, wet), drive in zip(pairs, (0.2, 0.9), strict=True):
        flags += ["--dry", dry, "--wet", wet, "--knob", f"tone={1 - drive:g}", "--knob", f"drive={drive}"]
    assert run(tmp_path / "flags", *flags) == 0
    rows = [
        "dry,wet,tone,drive",
        f"{pairs[0][0].name},{pairs[0][1].name},0.8,0.2",
        "dry1.wav, wet1.wav,0.1,.9",
    ]
    (tmp_path / "pairs.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    assert run(tmp_path / "list", "--pairs", tmp_path / "pairs.csv") == 0
    corpora = [Corpus.open(tmp_path / name, "pedal") for name in ("flags", "list")]
    assert corpora[0].fingerprint == corpora[1].fingerprint
    assert [list(take.knobs.items()) for take in corpora[0].takes[::2]] == [
        [("drive", 0.2), ("tone", 0.8)],
        [("drive", 0.9), ("tone", 0.1)],
    ]


def test_rates_and_lengths_must_be_equal(tmp_path, capsys):
    dry, wet = pedal_audio.write_pair(tmp_path)
    wave, _ = soundfile.read(wet)
    other = pedal_audio.write(tmp_path / "other.wav", wave, 22_050)
    refuses(
        capsys,
        tmp_path / "out",
        ["--dry", dry, "--wet", other],
        "16000 Hz and wet at 22050 Hz",
        "Export both",
    )
    short = pedal_audio.write(tmp_path / "short.wav", wave[:-800])
    refuses(
        capsys,
        tmp_path / "out",
        ["--dry", dry, "--wet", short],
        "48000 frames and wet 47200",
        "0.050 s",
        "Cut both",
    )
    more = pedal_audio.write_pair(tmp_path, rate_hz=22_050, seed=2)
    arguments = ["--dry", dry, "--wet", wet, "--dry", more[0], "--wet", more[1]]
    refuses(capsys, tmp_path / "out", arguments, "different rates", "at 16000 Hz", "at 22050 Hz")


def test_an_unrelated_wet_file_is_refused_and_can_be_forced(tmp_path, capsys):
    dry, _ = pedal_audio.write_pair(tmp_path, seed=0)
    _, wet = pedal_audio.write_pair(tmp_path, seed=1)
    refuses(capsys, tmp_path / "out", ["--dry", dry, "--wet", wet], "--align off")
    refuses(
        capsys, tmp_path / "out", ["--dry", dry, "--wet", wet, "--align", "0", "--fix-polarity"], "polarity"
    )
    assert run(tmp_path / "out", "--dry", dry, "--wet", wet, "--align", "off") == 0
    told = capsys.readouterr()
    assert "warning: " in told.err and "polarity unknown, confidence 0.00" in told.out


def test_lost_samples_are_refused(tmp_path, capsys):
    dry = np.concatenate([pedal_audio.guitar(3.0, seed=seed) for seed in (0, 1, 2)])
    wet = pedal_audio.fuzz(dry)
    wet = np.concatenate([wet[:72_000], wet[72_100:], np.zeros(100)])
    paths = [
        "--dry",
        pedal_audio.write(tmp_path / "d.wav", dry),
        "--wet",
        pedal_audio.write(tmp_path / "w.wav", wet),
    ]
    refuses(capsys, tmp_path / "out", paths, "windows disagree", "samples were lost")


def test_silent_files_are_refused(tmp_path, capsys):
    dry, wet = pedal_audio.write_pair(tmp_path)
    silent = pedal_audio.write(tmp_path / "s.wav", np.zeros(48_000))
    faint = pedal_audio.write(tmp_path / "f.wav", 1e-5 * pedal_audio.guitar(3.0))
    refuses(capsys, tmp_path / "out", ["--dry", dry, "--wet", silent], "the wet file is silent", "all zeros")
    refuses(capsys, tmp_path / "out", ["--dry", dry, "--wet", faint], "is silent", "dBFS, needed -80 dBFS")
    refuses(capsys, tmp_path / "out", ["--dry", silent, "--wet", wet], "the dry file is silent")
    wave, _ = soundfile.read(wet)
    wave[-9000:] = 0
    ends = pedal_audio.write(tmp_path / "e.wav", wave)
    arguments = ["--dry", dry, "--wet", ends, "--valid-seconds", "0.5"]
    refuses(capsys, tmp_path / "out", arguments, "to valid", "is silent", "--valid-seconds")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_clipped_wet_is_warned_of_with_its_share(tmp_path, capsys, subtype):
    dry = pedal_audio.guitar(3.0)
    wet = np.clip(8 * dry, -1, 1)
    runs = [(flat, len(list(run))) for flat, run in itertools.groupby(np.abs(wet) == 1)]
    share = sum(length for flat, length in runs if flat and length > 1) / len(wet)
    assert 0.005 < share < 0.6
    paths = ["--dry", pedal_audio.write(tmp_path / "d.wav", dry)]
    paths += ["--wet", pedal_audio.write(tmp_path / "w.wav", wet, subtype=subtype)]
    assert run(tmp_path / "out", *paths) == 0
    take = Corpus.open(tmp_path / "out", "pedal").takes[0]
    # Other samples round to full scale in 16 bits.
    assert take.clipped_share == pytest.approx(share, rel=0.005)
    told = f"w.wav: {100 * take.clipped_share:.2g} % of the wet samples are clipped at full scale"
    assert told in capsys.readouterr().err


def test_what_counts_as_clipped():
    flat = np.array([0.1, 1.0, 1.0, 0.2, -1.0, -1.0, -1.0, 0.3, 1.0, 0.0])
    assert clipped_share(flat, None) == 0.5
    assert clipped_share(0.9 * flat, None) == clipped_share(2 * flat, None) == 0
    assert clipped_share(np.array([127, 127, -128, 0]) / 128, 8) == 0.75
    assert clipped_share(np.array([126, 126, -126, 0]) / 128, 8) == 0


def test_stereo_is_refused_and_a_channel_can_be_chosen(tmp_path, capsys):
    dry = pedal_audio.guitar(3.0)
    wet = pedal_audio.fuzz(dry)
    hiss = 0.1 * np.random.default_rng(0).standard_normal(len(dry))
    both = pedal_audio.write(tmp_path / "both.wav", np.stack([hiss, dry], axis=1))
    mono = pedal_audio.write(tmp_path / "wet.wav", wet)
    paths = ["--dry", both, "--wet", mono]
    refuses(capsys, tmp_path / "out", paths, "has 2 channels", "--channel 0", "--channel 1")
    refuses(capsys, tmp_path / "out", [*paths, "--channel", "2"], "the last is --channel 1")
    refuses(capsys, tmp_path / "out", [*paths, "--channel", "-1"], "--channel is -1")
    assert run(tmp_path / "out", *paths, "--channel", "1") == 0
    kept = np.concatenate([stored(tmp_path / "out")[f"{key:08d}.input.wav"][1] for key in (0, 1)])
    np.testing.assert_array_equal(kept, dry.astype(np.float32))


def test_a_knob_missing_in_one_pair_is_named(tmp_path, capsys):
    pairs = [pedal_audio.write_pair(tmp_path, seed=seed) for seed in (0, 1)]
    arguments = ["--dry", pairs[0][0], "--wet", pairs[0][1], "--knob", "drive=0.5"]
    arguments += ["--dry", pairs[1][0], "--wet", pairs[1][1]]
    refuses(capsys, tmp_path / "out", arguments, "dry1.wav -> wet1.wav has no value for the knob drive")
    (tmp_path / "pairs.csv").write_text("dry,wet,drive\ndry0.wav,wet0.wav,1\ndry1.wav,wet1.wav,\n")
    refuses(capsys, tmp_path / "out", ["--pairs", tmp_path / "pairs.csv"], "row 3", "no value for drive")


def test_a_pair_too_short_to_split_is_refused(tmp_path, capsys):
    dry, wet = pedal_audio.write_pair(tmp_path, 3.0)
    arguments = ["--dry", dry, "--wet", wet]
    refuses(capsys, tmp_path / "out", [*arguments, "--valid-seconds", "3"], "0.000 s of 3.000 s", "to train")
    refuses(capsys, tmp_path / "out", [*arguments, "--valid-fraction", "0.01"], "0.030 s", "to valid")
    refuses(capsys, tmp_path / "out", [*arguments, "--valid-fraction", "1"], "--valid-fraction is 1.0")
    refuses(capsys, tmp_path / "out", [*arguments, "--valid-seconds", "0"], "--valid-seconds is 0.0")
    refuses(capsys, tmp_path / "out", [*arguments, "--align", "48000"], "--align is 48000 samples")


def test_wrong_arguments_are_named(tmp_path, capsys):
    dry, wet = pedal_audio.write_pair(tmp_path, 1.0)
    out = tmp_path / "out"
    refuses(capsys, out, [], "No pair given", "--dry IN.wav --wet OUT.wav")
    refuses(capsys, out, ["--dry", dry], "has no --wet")
    refuses(capsys, out, ["--wet", wet, "--dry", dry], "stands before any --dry")
    refuses(capsys, out, ["--dry", dry, "--wet", wet, "--wet", wet], "second one for --dry")
    refuses(capsys, out, ["--dry", dry, "--wet", dry], "is both --dry and --wet")
    refuses(capsys, out, ["--dry", dry, "--wet", tmp_path / "no.wav"], "--wet file", "does not exist")
    refuses(capsys, out, ["--dry", tmp_path, "--wet", wet], "is a folder; give an audio file")
    refuses(capsys, out, ["--dry", dry, "--wet", wet, "--align", "maybe"], "auto, off or a number")
    for knob, text in (
        ("drive", "'' ; needed".replace(" ;", ";")),
        ("drive=high", "'high'"),
        ("2x=1", "no name"),
    ):
        refuses(capsys, out, ["--dry", dry, "--wet", wet, "--knob", knob], text)
    twice = ["--dry", dry, "--wet", wet, "--knob", "a=1", "--knob", "a=2"]
    refuses(capsys, out, twice, "--knob a is given twice")
    refuses(capsys, out, [*twice[:4], *twice[:4]], "the --wet file of two pairs")
    (tmp_path / "text.wav").write_text("no audio")
    refuses(capsys, out, ["--dry", dry, "--wet", tmp_path / "text.wav"], "text.wav: cannot be decoded")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dry,drive\na,1\n", "needed dry, wet"),
        ("dry,wet,drive,drive\na,b,1,1\n", "each knob once"),
        ("dry,wet\na\n", "row 2 has not 2 cells"),
        ("dry,wet\na,b,c\n", "row 2 has not 2 cells"),
        ("dry,wet,drive\na,b,loud\n", "row 2: knob drive is 'loud'"),
        ("", "needed dry, wet"),
    ],
)
def test_a_list_that_is_not_whole_is_refused(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_pairs(tmp_path / "pairs.csv")


def test_a_list_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        read_pairs(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_bytes(b"dry,wet\n\xff\xfe,b\n")
    with pytest.raises(CorpusError, match="UTF-8"):
        read_pairs(tmp_path / "pairs.csv")


def test_a_take_that_was_changed_by_hand_is_seen(tmp_path):
    dry, wet = pedal_audio.write_pair(tmp_path)
    build_pedal_corpus([DevicePair(dry, wet, {"drive": 0.5})], tmp_path / "out")
    sidecar = tmp_path / "out/pedal-000000.tar.json"
    text = sidecar.read_text()
    sidecar.write_text(text.replace('"drive":0.5', '"drive":0.6'))
    with pytest.raises(CorpusError, match="was changed after the build"):
        Corpus.open(tmp_path / "out", "pedal")
    for wrong in ('"drive":"x"', '"drive":NaN', '"gain":0.5},"more":{"a":1'):
        sidecar.write_text(text.replace('"drive":0.5', wrong))
        with pytest.raises(CorpusError):
            Corpus.open(tmp_path / "out", "pedal")
