"""Importing notes: what the corpus then holds, and each way in which a file can hold no single clear note."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile

from data_shards.corpus import Corpus
from data_shards.errors import CorpusError
from data_shards.note_analysis import fade_samples
from data_shards.note_options import StringOptions, read_note_list
from data_shards.reader import Reader
from data_shards.string_notes import build_string_corpus
from data_shards.synthetic_string import KarplusString
from data_shards.verify import verify_corpus
from launch.build_shards import main

RATE_HZ = 44_100
E2_HZ, A3_HZ = 82.4069, 220.0


def tone(f0_hz=A3_HZ, t60=1.5, seconds=1.5, rate_hz=RATE_HZ, **more):
    return KarplusString(f0_hz, t60, rate_hz, damping=0.01, **more).render(seconds)


def write(path, wave, rate_hz=RATE_HZ, subtype="FLOAT"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype=subtype)


def build(folder, **options):
    return build_string_corpus([folder / "notes"], folder / "corpus", StringOptions(**options))


def rejected(folder, **options):
    """The reason for which the only file of a folder is rejected."""
    with pytest.raises(CorpusError, match="so the corpus would be empty") as caught:
        build(folder, **options)
    return str(caught.value)


def test_notes_come_in_with_their_pitch_decay_and_audio(tmp_path):
    waves = {"a3_f": tone(A3_HZ, 1.2), "e2_p": tone(E2_HZ, 2.0)}
    for name, wave in waves.items():
        write(tmp_path / "notes" / f"{name}.wav", wave)
    built = build(tmp_path)
    corpus = Corpus.open(tmp_path / "corpus", "string")
    assert (corpus.codec, corpus.rate_hz, len(corpus)) == ("wav32f", RATE_HZ, 2)
    assert verify_corpus(tmp_path / "corpus") == []
    reader = Reader(corpus)
    for row, note in enumerate(corpus.notes):
        assert note == built.notes[row].take
        name = corpus.sources[row].removesuffix(".wav")
        wave = waves[name].astype(np.float32)
        np.testing.assert_array_equal(reader.whole(row), wave[note.start : note.start + note.frames])
        assert note.attack_frames == 0 and note.start == note.attack_end >= 0.02 * RATE_HZ
    first, second = corpus.notes
    assert first.f0_hz == pytest.approx(A3_HZ, rel=1e-4) and second.f0_hz == pytest.approx(E2_HZ, rel=1e-4)
    assert first.t60_seconds["250"] == pytest.approx(1.2, rel=0.02)
    assert second.t60_seconds["62.5"] == pytest.approx(2.0, rel=0.02)
    assert (first.velocity, second.velocity, first.position) == (0.8, 0.3, None)
    assert first.end == "file" and first.f0_from == "name"


def test_a_kept_attack_is_there_and_its_end_is_known(tmp_path):
    wave = np.concatenate([np.zeros(1000), tone()])
    write(tmp_path / "notes" / "a3.wav", wave)
    note = build(tmp_path, attack="keep").notes[0].take
    assert 1000 <= note.onset < 1100 and note.start == note.onset
    assert note.attack_frames == note.attack_end - note.onset >= 0.02 * RATE_HZ


def test_the_decay_ends_where_it_meets_the_noise(tmp_path):
    random = np.random.default_rng(0)
    wave = tone(A3_HZ, 1.0, 3.0, velocity=1.0)
    write(tmp_path / "notes" / "a3.wav", wave + 1e-3 * random.standard_normal(len(wave)))
    note = build(tmp_path).notes[0].take
    assert note.end == "noise"
    total_db = 10 * math.log10(sum(10 ** (level / 10) for level in note.noise_db.values()))
    assert total_db == pytest.approx(-60, abs=1.5)
    # A tone of about -20 dBFS RMS falls by 60 dB a second to 6 dB above -60 dBFS.
    assert 0.4 < note.frames / RATE_HZ < 1.0


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0])
def test_a_fade_out_is_cut_off_and_a_decay_is_none(seconds):
    wave = tone(A3_HZ, 6.0, 4.0)
    assert fade_samples(wave, RATE_HZ) == 0
    faded = wave.copy()
    faded[-round(seconds * RATE_HZ) :] *= np.linspace(1, 0, round(seconds * RATE_HZ))
    assert seconds <= fade_samples(faded, RATE_HZ) / RATE_HZ < 1.2 * seconds + 0.06


def test_other_rates_and_channels_are_brought_to_one(tmp_path):
    wave = tone(rate_hz=48_000)
    write(tmp_path / "notes" / "a3.wav", np.stack([wave, wave], 1), 48_000, "PCM_24")
    note = build(tmp_path).notes[0].take
    assert note.f0_hz == pytest.approx(A3_HZ, rel=1e-4)
    assert note.t60_seconds["250"] == pytest.approx(1.5, rel=0.02)


def test_what_a_list_says_counts_before_the_name(tmp_path):
    write(tmp_path / "notes" / "sub" / "c7.wav", tone())
    (tmp_path / "list.csv").write_text("file,f0_hz,position,velocity\nsub/c7.wav,220,0.25,\n")
    note = build(tmp_path, known=read_note_list(tmp_path / "list.csv")).notes[0].take
    assert (note.f0_from, note.given_hz, note.position, note.velocity) == ("given", 220, 0.25, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name,f0_hz\na.wav,1\n", r"has the columns \['name', 'f0_hz'\]; needed file and any of"),
        ("file,f0_hz\na3.wav,loud\n", "row 2: f0_hz is 'loud'; needed a number of Hz above 0, or nothing"),
        ("file,position\na3.wav,12\n", "row 2: position is '12'; needed a number from 0 to 1, or nothing"),
        ("file,f0_hz\nb.wav,220\n", "names b.wav, which is not below --input. .* such as a3.wav"),
    ],
)
def test_a_bad_list_is_told_with_its_row(tmp_path, text, problem):
    write(tmp_path / "notes" / "a3.wav", tone())
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(CorpusError, match=problem):
        build(tmp_path, known=read_note_list(tmp_path / "list.csv"))


def test_an_octave_in_the_names_is_heard_or_given(tmp_path):
    write(tmp_path / "notes" / "a4.wav", tone())
    note = build(tmp_path).notes[0].take
    assert (round(note.f0_hz), note.given_hz) == (220, 220)
    assert build(tmp_path, octave=-1).notes[0].take.given_hz == 220
    assert "its name says 440.0 Hz, but it sounds at 220.0 Hz, -1200 cents" in rejected(tmp_path, octave=0)


def test_the_pitch_may_be_given_or_estimated_without_a_name(tmp_path):
    write(tmp_path / "notes" / "pluck.wav", tone())
    assert build(tmp_path, f0=221.0).notes[0].take.f0_hz == pytest.approx(220, rel=1e-4)
    assert build(tmp_path, f0="estimate").notes[0].take.f0_hz == pytest.approx(220, rel=1e-4)
    assert "its name says no note; name it such as e2_f.wav, or give --f0 estimate" in rejected(tmp_path)


def test_a_note_without_a_clear_pitch_is_rejected(tmp_path):
    random = np.random.default_rng(0)
    write(tmp_path / "notes" / "a3.wav", 0.1 * random.standard_normal(RATE_HZ * 2))
    for f0 in ("from-name", "estimate"):
        text = rejected(tmp_path, f0=f0)
        assert "no clear pitch: its periods are alike to" in text and "give single plucked notes" in text


@pytest.mark.parametrize("second_hz", [A3_HZ, 277.2])
def test_two_notes_in_a_file_are_rejected(tmp_path, second_hz):
    first, second = tone(t60=1.0), tone(second_hz, 1.0, seed=2)
    write(tmp_path / "notes" / "a3.wav", np.concatenate([first[:RATE_HZ], second]))
    text = rejected(tmp_path)
    assert "two notes in a file: a second one begins at 0.99 s" in text and "one note each" in text


def test_a_softer_second_note_is_told_by_its_pitch(tmp_path):
    first, second = tone(t60=6.0, seconds=2.0), tone(277.2, 6.0, 2.0)
    fade = np.linspace(0, 1, RATE_HZ // 10)
    joined = np.concatenate([first[:RATE_HZ], 0.15 * second])
    joined[RATE_HZ : RATE_HZ + len(fade)] = (
        0.15 * second[: len(fade)] * fade + first[RATE_HZ:][: len(fade)] * fade[::-1]
    )
    write(tmp_path / "notes" / "a3.wav", joined)
    assert "it begins at 220.0 Hz and ends at 277.2 Hz" in rejected(tmp_path)


def test_a_note_shorter_than_ten_periods_is_rejected(tmp_path):
    write(tmp_path / "notes" / "e2.wav", tone(E2_HZ)[: round(11 * RATE_HZ / E2_HZ)])
    text = rejected(tmp_path)
    assert "9 periods" in text or "8 periods" in text
    assert "needed 10 periods and 0.37 s. Let the note ring longer" in text


def test_a_note_that_drowns_in_noise_is_rejected(tmp_path):
    random = np.random.default_rng(0)
    wave = tone(t60=0.2)
    write(tmp_path / "notes" / "a3.wav", wave + 0.003 * random.standard_normal(len(wave)))
    assert "before it ends or meets the noise" in rejected(tmp_path)


def test_a_pitch_above_an_eighth_of_the_rate_is_rejected(tmp_path):
    write(tmp_path / "notes" / "a3.wav", tone(1108.7, rate_hz=16_000), 16_000)
    text = rejected(tmp_path, f0=1108.7, rate_hz=8000)
    assert "its f0 of 1109 Hz lies above an eighth of the rate, 1000 Hz" in text and "higher --rate" in text


def test_a_clipped_attack_is_cut_off_with_a_warning_and_not_kept(tmp_path):
    wave = tone(velocity=1.0)
    wave[100:300] = np.where(np.arange(200) % 20 < 10, 1.0, -1.0)
    write(tmp_path / "notes" / "a3.wav", wave, subtype="PCM_16")
    built = build(tmp_path)
    assert built.notes[0].take.clipped_share == pytest.approx(200 / len(wave), rel=0.05)
    assert "its attack is clipped at full scale" in built.notes[0].warnings[0]
    assert "cut the attack off with --attack cut, or record at a lower level" in rejected(
        tmp_path, attack="keep"
    )


def test_a_clipped_decay_is_rejected(tmp_path):
    wave = np.clip(8 * tone(velocity=1.0), -1, 1)
    write(tmp_path / "notes" / "a3.wav", wave, subtype="PCM_16")
    assert "are clipped at full scale; record at a lower level" in rejected(tmp_path)


def test_silence_is_rejected(tmp_path):
    write(tmp_path / "notes" / "a3.wav", np.zeros(RATE_HZ))
    assert "silent: no sample above -80 dBFS" in rejected(tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"f0": "guess"}, "--f0 is 'guess'; needed from-name, estimate or a number"),
        ({"f0": -1.0}, "--f0 is -1.0 Hz"),
        ({"octave": "up"}, "--octave is 'up'; needed auto or a whole number"),
        ({"attack": "soft"}, "--attack is 'soft'; needed cut or keep"),
    ],
)
def test_wrong_options_are_told(options, problem):
    with pytest.raises(CorpusError, match=problem):
        StringOptions(**options)


def test_the_command_prints_a_table_and_names_what_it_rejects(tmp_path, capsys):
    write(tmp_path / "notes" / "a4_ff.wav", tone())
    write(tmp_path / "notes" / "e2.wav", tone(E2_HZ))
    write(tmp_path / "notes" / "noname.wav", tone())
    arguments = ["string", "--input", str(tmp_path / "notes"), "--output", str(tmp_path / "corpus")]
    assert main([*arguments, "--max-reject", "0.1"]) == 2
    assert "1 of 3 files cannot be used" in capsys.readouterr().err
    assert main([*arguments, "--max-reject", "0.5"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].split()[:4] == ["file", "f0", "said", "measured"]
    assert lines[1].split()[:4] == ["a4_ff.wav", "220.00", "220.00", "+0.0"]
    assert lines[1].endswith("(1 octave below its name)") and "250:1.5" in lines[1]
    assert "rejected: noname.wav: its name says no note" in output.err
    assert "2 of 3 files" in output.out


def test_the_recorded_strings_come_in_whole(tmp_path, shared_audio):
    built = build_string_corpus([shared_audio / "string"], tmp_path / "corpus")
    assert not built.rejects and len(built.notes) == 22
    notes = {note.source.split(".")[0]: note.take for note in built.notes}
    for name, note in notes.items():
        # Two of the instruments are named an octave above their sound.
        assert (note.f0_hz < 0.6 * note_named(name)) == name.startswith(("blackbaritone", "growlybass")), name
        assert note.clarity > 0.5 and note.frames > 2.8 * RATE_HZ and len(note.t60_seconds) >= 4
    # All of them are faded out, over 0.2 to 1 s, and only a5 has died away before.
    assert {note.end for name, note in notes.items() if name != "emilyguitar-a5_f"} == {"fade"}


def note_named(name):
    from data_shards.note_names import read_name

    return read_name(name).f0_hz
