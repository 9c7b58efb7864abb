"""Pairs of shifted recordings: what is drawn, the band limit, the alignment, and what a build says no to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from data_shards.build import build_corpus
from data_shards.corpus import Corpus
from data_shards.envelope_lag import CAP_SECONDS, envelope_lag
from data_shards.errors import CorpusError
from data_shards.ingest import cut_with_margin
from data_shards.reader import Reader
from data_shards.shift_pairs import (
    DrawnShift,
    PairFailed,
    drawn_shift,
    low_passed,
    margin_frames,
    round_trip,
    shifted_pair,
)
from data_shards.shifters import SHIFTERS, installed_engines, require_engine
from data_shards.shifts import ShiftOptions, cutoff_of, semitone_range
from hparams.errors import UserError
from launch.build_shards import main
from tests.data_shards.shift_audio import RATE_HZ, melody, write_melodies

NEEDS_STRETCH = pytest.mark.skipif(
    "signalsmith" not in installed_engines(),
    reason="python-stretch is not installed: pip install wavewright[pitch]",
)


def options(kind: str = "pitch", **values):
    from data_shards.options import BuildOptions

    return BuildOptions(kind, rate_hz=RATE_HZ, workers=1, max_reject=1.0, **values)


def power_above(wave: np.ndarray, edge_hz: float) -> float:
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    return float(power[np.fft.rfftfreq(len(wave), 1 / RATE_HZ) >= edge_hz].sum() / power.sum())


def test_the_cutoffs_are_those_of_the_table() -> None:
    """At 44.1 kHz, Hz: what is left of 22,050 after going up by so many semitones."""
    table = {1: 20812, 2: 19644, 4: 17501, 7: 14717, 12: 11025}
    assert {s: round(cutoff_of(s, 44_100)) for s in table} == table
    assert cutoff_of(-7, 44_100) == 22_050


@pytest.mark.parametrize("semitones", [1, 5, 12, 24])
def test_the_low_pass_ends_at_the_cutoff_and_is_flat_below(semitones: int) -> None:
    cutoff_hz = cutoff_of(semitones, RATE_HZ)
    impulse = np.zeros(16_384, np.float32)
    impulse[8000] = 1
    response = np.abs(np.fft.rfft(low_passed(impulse, cutoff_hz, RATE_HZ)))
    hz = np.fft.rfftfreq(len(impulse), 1 / RATE_HZ)
    assert 20 * np.log10(response[hz >= cutoff_hz].max()) < -78
    assert np.abs(20 * np.log10(response[hz <= 0.97 * cutoff_hz])).max() < 0.01
    assert np.argmax(np.abs(low_passed(impulse, cutoff_hz, RATE_HZ))) == 8000


@pytest.mark.parametrize("semitones", [-7, 3, 12])
def test_speed_there_and_back_is_the_band_limit_and_nothing_else(semitones: int) -> None:
    """The control engine has no artefacts: the pair is then one wave, in time to the sample."""
    wave = melody(3.0)
    pair = shifted_pair(wave, DrawnShift(semitones, "varispeed", 0), RATE_HZ)
    assert pair.take.lag_samples == 0 and pair.take.confidence > 0.99
    # Each resampling begins to fall at 0.91 of the lower Nyquist frequency.
    heard, wanted = (
        low_passed(side, 0.85 * pair.take.cutoff_hz, RATE_HZ) for side in (pair.input, pair.target)
    )
    assert 10 * np.log10(np.mean((heard - wanted) ** 2) / np.mean(wanted**2)) < -55
    assert pair.take.direction == ("up-down" if semitones > 0 else "down-up")
    if semitones > 0:
        assert power_above(pair.target, pair.take.cutoff_hz) < 1e-8


@pytest.mark.parametrize("engine", [name for name in SHIFTERS if name != "varispeed"])
@pytest.mark.parametrize("semitones", [7, -5])
def test_an_engine_moves_the_pitch_by_the_semitones(engine: str, semitones: int) -> None:
    if engine not in installed_engines():
        pytest.skip(f"{SHIFTERS[engine].package} is not installed")
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    wave = sum(0.2 / k * np.sin(2 * np.pi * 220 * k * time) for k in range(1, 6)).astype(np.float32)
    shifted = SHIFTERS[engine].shift(wave, RATE_HZ, semitones, 0)[RATE_HZ // 2 : RATE_HZ]
    spectrum = np.abs(np.fft.rfft(shifted * np.hanning(len(shifted)), 1 << 18))
    hz = np.fft.rfftfreq(1 << 18, 1 / RATE_HZ)
    near = (hz > 100) & (hz < 450)
    heard = hz[near][np.argmax(spectrum[near])]
    assert 1200 * np.log2(heard / (220 * 2 ** (semitones / 12))) == pytest.approx(0, abs=8)


@NEEDS_STRETCH
@pytest.mark.parametrize("semitones", [4, -9])
def test_a_pair_is_in_time_and_a_function_of_its_draw(semitones: int) -> None:
    drawn = DrawnShift(semitones, "signalsmith", 5)
    wave = melody(4.0)
    pair = shifted_pair(wave, drawn, RATE_HZ)
    again = shifted_pair(wave, drawn, RATE_HZ)
    assert np.array_equal(pair.input, again.input) and pair.take == again.take
    assert abs(envelope_lag(pair.target, pair.input, RATE_HZ).lag_samples) <= 0.0005 * RATE_HZ
    assert np.abs(pair.input - pair.target).max() > 0.01, "the shifter left no trace"


@pytest.mark.parametrize("engine", ["varispeed", "phase_vocoder"])
@pytest.mark.parametrize("semitones", [5, -5])
@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_both_sides_of_a_pair_are_as_loud(
    monkeypatch: pytest.MonkeyPatch, engine: str, semitones: int, gain: float
) -> None:
    """Whatever level a shifter loses: what a volume knob mends is none of its artefacts."""
    own = SHIFTERS[engine]

    def quieter(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
        return gain * own.shift(wave, rate_hz, semitones, seed)

    monkeypatch.setitem(SHIFTERS, engine, own.__class__(quieter, own.module, own.package, own.window_seconds))
    pair = shifted_pair(melody(3.0).copy(), DrawnShift(semitones, engine, 0), RATE_HZ)
    levels = []
    for side in (pair.input, pair.target):
        power = np.abs(np.fft.rfft(side)) ** 2
        hz = np.fft.rfftfreq(len(side), 1 / RATE_HZ)
        levels.append(10 * np.log10(power[hz < 0.82 * pair.take.cutoff_hz].sum()))
    assert levels[0] == pytest.approx(levels[1], abs=0.02)
    assert max(np.abs(pair.input).max(), np.abs(pair.target).max()) <= 1


@pytest.mark.parametrize("late", [-400, -37, 0, 150, 420])
def test_the_lag_of_a_wave_moved_by_hand_is_found(late: int) -> None:
    wave = melody(3.0)
    moved = np.roll(wave + 0.003 * np.random.default_rng(0).standard_normal(len(wave)), late)
    found = envelope_lag(wave, moved.astype(np.float32), RATE_HZ)
    assert found.problem is None and found.lag_samples == pytest.approx(late, abs=0.0003 * RATE_HZ)


def test_a_pair_that_does_not_fit_is_not_aligned() -> None:
    noise = (0.1 * np.random.default_rng(1).standard_normal(2 * RATE_HZ)).astype(np.float32)
    other = (0.1 * np.random.default_rng(2).standard_normal(2 * RATE_HZ)).astype(np.float32)
    assert "fit at no lag" in (envelope_lag(noise, other, RATE_HZ).problem or "")
    far = np.roll(melody(3.0), round(1.2 * CAP_SECONDS * RATE_HZ))
    assert envelope_lag(melody(3.0), far, RATE_HZ).problem is not None


@pytest.mark.parametrize(("loudest", "num_files", "num_parts"), [(0.32, 1, 0), (0.6, 0, 2)])
def test_pairs_whose_alignment_fails_are_rejected_and_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loudest: float,
    num_files: int,
    num_parts: int,
) -> None:
    """An engine that gives another sound for what is loud: all of one of three files, or two stretches of it."""

    def broken(wave: np.ndarray, rate_hz: int, semitones: float, seed: int) -> np.ndarray:
        if np.abs(wave).max() > loudest:
            return (0.1 * np.random.default_rng(0).standard_normal(len(wave))).astype(np.float32)
        return wave

    monkeypatch.setitem(SHIFTERS, "varispeed", SHIFTERS["varispeed"].__class__(broken, None, "x", 0.01))
    write_melodies(tmp_path / "in", levels=(0.3, 0.3, 0.9))
    arguments = [
        "--engines",
        "varispeed",
        "--semitones",
        "-3..3",
        "--max-reject",
        "0.5",
        "--segment-seconds",
        "1",
    ]
    code = main(
        [
            "pitch",
            "--input",
            str(tmp_path / "in"),
            "--output",
            str(tmp_path / "out"),
            "--rate",
            str(RATE_HZ),
            *arguments,
            "--workers",
            "1",
        ]
    )
    assert code == 0
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {reject["source"] for reject in rejects} == {"melody-2.wav"}
    assert sum(reject["piece"] is None for reject in rejects) == num_files
    assert len(rejects) == num_files + num_parts
    assert all("not aligned: its envelopes fit at no lag" in reject["reason"] for reject in rejects)
    told = "1 file and 0 parts" if num_files else "0 files and 2 parts"
    assert f"{told} of other files rejected" in capsys.readouterr().out


def test_a_corpus_says_how_each_pair_was_made_and_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_melodies(tmp_path / "in", levels=(0.3, 0.4))
    shift = ShiftOptions((-4, 7), ("varispeed", "phase_vocoder"), copies=3)
    build = options(segment_seconds=1.0, shift=shift)
    first = build_corpus("pitch", [tmp_path / "in"], tmp_path / "a", build)
    second = build_corpus("pitch", [tmp_path / "in"], tmp_path / "b", options(
        segment_seconds=1.0, shift=shift, shard_mb=0.5))  # fmt: skip
    assert first.info.num_samples == 2 * 3 * 3 and len(second.info.shards) > 1
    corpora = [Corpus.open(tmp_path / name, "pitch", RATE_HZ) for name in "ab"]
    assert corpora[0].shifts == corpora[1].shifts
    assert {take.engine for take in corpora[0].shifts} == set(shift.engines)
    assert all(take.semitones in shift.choices for take in corpora[0].shifts)
    assert len({take.semitones for take in corpora[0].shifts}) > 5
    for row, take in enumerate(corpora[0].shifts):
        assert take.cutoff_hz == pytest.approx(RATE_HZ / 2 / 2 ** (max(take.semitones, 0) / 12), abs=0.01)
        for member in ("input", "target"):
            waves = [Reader(corpus).whole(row, member) for corpus in corpora]
            assert np.array_equal(*waves)
    assert build_corpus("pitch", [tmp_path / "in"], tmp_path / "a", build).up_to_date
    other = options(segment_seconds=1.0, shift=ShiftOptions((-4, 7), shift.engines, copies=3, seed=1))
    assert not build_corpus("pitch", [tmp_path / "in"], tmp_path / "a", other).up_to_date
    monkeypatch.setattr("data_shards.shifts.LEVELS", "as the shifter left them")
    assert not build_corpus("pitch", [tmp_path / "in"], tmp_path / "a", other).up_to_date


def test_a_target_is_the_recording_itself_where_it_went_down_first(tmp_path: Path) -> None:
    write_melodies(tmp_path / "in", levels=(0.3, 0.4))
    build_corpus(
        "pitch", [tmp_path / "in"], tmp_path / "out",
        options(segment_seconds=1.0, shift=ShiftOptions((-6, -6), ("varispeed",))),
    )  # fmt: skip
    corpus = Corpus.open(tmp_path / "out", "pitch")
    reader = Reader(corpus)
    for name in corpus.sources:
        rows = np.flatnonzero(corpus.source == corpus.sources.index(name))
        joined = np.concatenate([reader.whole(int(row), "target") for row in rows])
        recorded, _ = sf.read(tmp_path / "in" / name, dtype="int16")
        assert np.array_equal(joined, recorded)


@pytest.mark.parametrize("sizes", [[100], [7, 50, 3, 90], [1] * 30])
def test_parts_with_margins_are_pieces_of_the_padded_recording(sizes: list[int]) -> None:
    wave = np.arange(1, sum(sizes) + 1, dtype=np.float32)
    blocks = np.split(wave, np.cumsum(sizes)[:-1])
    lengths, margin = [len(wave) // 3, len(wave) // 3, len(wave) - 2 * (len(wave) // 3)], 11
    padded = np.concatenate([np.zeros(margin), wave, np.zeros(margin)])
    found = list(cut_with_margin(iter(blocks), lengths, margin))
    assert [start for start, _ in found] == [0, lengths[0], lengths[0] + lengths[1]]
    for (start, part), length in zip(found, lengths, strict=True):
        assert np.array_equal(part, padded[start : start + length + 2 * margin])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--semitones", "0"], "shifts nothing"),
        (["--semitones", "0..0"], "shifts nothing"),
        (["--semitones", "-30..12"], "from -24 to 24"),
        (["--semitones", "25"], "from -24 to 24"),
        (["--semitones", "4..-4"], "needed a range"),
        (["--semitones", "few"], "whole numbers"),
        (["--engines", "melodyne"], "needed one or more of signalsmith"),
        (["--copies", "0"], "--copies is 0"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    write_melodies(tmp_path / "in", levels=(0.3,))
    code = main(["pitch", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *arguments])
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_installed_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = SHIFTERS["rubberband"]
    monkeypatch.setitem(
        SHIFTERS, "rubberband", engine.__class__(engine.shift, "not_there_at_all", "pylibrb", 0.1)
    )
    with pytest.raises(UserError, match="pip install pylibrb"):
        require_engine("rubberband")
    write_melodies(tmp_path / "in", levels=(0.3,))
    code = main(
        [
            "pitch",
            "--input",
            str(tmp_path / "in"),
            "--output",
            str(tmp_path / "out"),
            "--engines",
            "rubberband",
        ]
    )
    assert code == 2
    assert "rubberband needs pylibrb, and that is not installed" in capsys.readouterr().err


def test_a_file_shorter_than_the_window_of_a_shifter_is_rejected(tmp_path: Path) -> None:
    write_melodies(tmp_path / "in", levels=(0.3, 0.3))
    sf.write(tmp_path / "in" / "short.wav", 0.1 * np.ones(round(0.08 * RATE_HZ)), RATE_HZ)
    shift = ShiftOptions(engines=("varispeed", "signalsmith"))
    if "signalsmith" not in installed_engines():
        pytest.skip("python-stretch is not installed")
    build_corpus("pitch", [tmp_path / "in"], tmp_path / "out", options(shift=shift))
    (reject,) = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert reject["source"] == "short.wav" and reject["piece"] is None
    assert reject["reason"] == "too short: 0.080 s, shorter than the window of signalsmith, 0.12 s"


def test_a_sound_without_a_voice_gives_no_pair_of_a_voice_shifter() -> None:
    if "parselmouth" not in installed_engines():
        pytest.skip("praat-parselmouth is not installed")
    wave = np.zeros(2 * RATE_HZ, np.float32)
    wave[RATE_HZ] = 0.5
    with pytest.raises(PairFailed, match="no voice"):
        round_trip(wave, DrawnShift(3, "parselmouth", 0), RATE_HZ)


def test_draws_depend_on_the_stretch_and_cover_the_range_evenly() -> None:
    shift = ShiftOptions((-12, 12), ("varispeed", "phase_vocoder"))
    drawn = [drawn_shift(shift, "song.wav", start, 0) for start in range(2400)]
    assert drawn == [drawn_shift(shift, "song.wav", start, 0) for start in range(2400)]
    counts = [sum(each.semitones == s for each in drawn) for s in range(-12, 13)]
    assert counts[12] == 0 and min(counts[:12] + counts[13:]) > 60 and max(counts) < 145
    assert 0.45 < np.mean([each.engine == "varispeed" for each in drawn]) < 0.55
    assert drawn_shift(shift, "a", 1, 0) != drawn_shift(shift, "a", 1, 1)


def test_semitones_read_as_one_writes_them() -> None:
    assert semitone_range("-12..12") == (-12, 12) and semitone_range("5") == (5, 5)
    with pytest.raises(CorpusError):
        semitone_range("1.5..2")


def test_the_margin_holds_what_reaches_over_the_edge() -> None:
    assert margin_frames(RATE_HZ) > CAP_SECONDS * RATE_HZ + 0.12 * RATE_HZ
