"""Plucking a string by the command, judging one, and what is refused on the way."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from data_shards.synthetic_string import KarplusString
from enhancer.signal.decay import octave_levels, octave_t60
from enhancer.string_metrics import FAST, NEVER
from launch.apply import main
from launch.evaluate import main as evaluate
from launch.pluck import filled_history
from launch.string_rows import hardest, print_string_rows
from tests.report.run_folders import RATE_HZ, corpora_of, hparams_of, make_run

F0_HZ = 110.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pluck")
    return {
        task: make_run(root / task / "run", hparams_of(task, corpora_of(task, root / task)))
        for task in ("string", "pedal")
    }


@pytest.fixture
def pluck_file(tmp_path):
    def write(seconds, rate_hz=RATE_HZ, f0_hz=F0_HZ):
        path = tmp_path / "pluck.wav"
        soundfile.write(path, KarplusString(f0_hz, 1.5, rate_hz).render(seconds), rate_hz, subtype="FLOAT")
        return path

    return write


def command(run, *words):
    return main(["--run", str(run), "--device", "cpu", *map(str, words)])


def test_a_string_rings_on_from_its_excitation(runs, pluck_file, tmp_path):
    pluck, output = pluck_file(0.1), tmp_path / "out" / "a2.wav"
    words = ["--excite", pluck, "--f0", F0_HZ, "--seconds", 1.5, "--t60", 1.0, "--output", output]
    assert command(runs["string"], *words) == 0
    wave, rate_hz = soundfile.read(output)
    assert rate_hz == RATE_HZ and len(wave) == 1.5 * RATE_HZ and soundfile.info(output).subtype == "FLOAT"
    np.testing.assert_array_equal(wave[:4410], soundfile.read(pluck)[0])
    early, late = (np.mean(wave[at : at + 4410] ** 2) for at in (6000, 60_000))
    assert 0 < late < early


def test_one_period_fills_the_string_and_other_rates_are_resampled(runs, pluck_file, tmp_path):
    pluck = pluck_file(1.2 / F0_HZ, 48_000)
    words = [
        "--excite",
        pluck,
        "--f0",
        F0_HZ,
        "--seconds",
        0.5,
        "--t60",
        1.0,
        "--output",
        tmp_path / "a2.flac",
    ]
    assert command(runs["string"], *words) == 0
    assert soundfile.info(tmp_path / "a2.flac").frames == RATE_HZ // 2


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.5, "T60 of the excitation as a whole: "),
        (0.9, "T60 foretold from 0.6 s behind the attack: "),
        (1.6, "T60 from what lies behind 0.6 s of the excitation: "),
    ],
)
def test_a_long_excitation_says_how_long_it_rings(runs, pluck_file, tmp_path, capsys, seconds, says):
    """A tone whose bands fall by 60 dB in 1.5 s goes on so."""
    words = ["--excite", pluck_file(seconds), "--f0", F0_HZ, "--output", tmp_path / "a2.wav"]
    assert command(runs["string"], *words, "--seconds", seconds + 1) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(says))
    assert 1.2 < float(re.search(r"([\d.]+) s at 125 Hz", line).group(1)) < 1.8
    wave, _ = soundfile.read(tmp_path / "a2.wav")
    made = torch.from_numpy(wave[round(seconds * RATE_HZ) :])[None]
    assert octave_t60(octave_levels(made, RATE_HZ))[0].t60_seconds[0, 1].item() == pytest.approx(1.5, rel=0.2)


@pytest.mark.parametrize(("f0_hz", "is_told"), [(F0_HZ, False), (F0_HZ * 2 ** (-9 / 1200), True)])
def test_a_pitch_that_is_not_that_of_the_excitation_is_told(
    runs, pluck_file, tmp_path, capsys, f0_hz, is_told
):
    words = ["--excite", pluck_file(0.8), "--f0", f0_hz, "--output", tmp_path / "a2.wav", "--t60", 1]
    assert command(runs["string"], *words, "--seconds", 1.2) == 0
    said = "note: the excitation sounds at 110.00 Hz, +9.0 cents from --f0" in capsys.readouterr().out
    assert said == is_told


def test_what_is_given_counts_before_what_is_heard(runs, pluck_file, tmp_path, capsys):
    words = ["--excite", pluck_file(1.3), "--f0", F0_HZ, "--output", tmp_path / "a2.wav", "--t60", 3]
    assert command(runs["string"], *words, "--seconds", 2) == 0
    assert "T60 is 3 s, as given" in capsys.readouterr().out


def test_what_lies_before_a_short_excitation_is_its_period_again():
    period = 100.4
    wave = torch.sin(2 * torch.pi * torch.arange(150) / period)
    history = filled_history(wave, period, 300)
    expected = torch.sin(2 * torch.pi * torch.arange(-150, 150) / period)
    torch.testing.assert_close(history[:-150], expected[:-150], atol=2e-2, rtol=0)
    assert torch.equal(history[-150:], wave)
    assert torch.equal(filled_history(expected, period, 250), expected[-250:])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--f0", "110"], "give --input IN.wav; or for a string --excite PLUCK.wav --f0 HZ"),
        (["--excite", "PLUCK"], "give --input IN.wav; or for a string --excite PLUCK.wav --f0 HZ"),
        (["--excite", "PLUCK", "--f0", "110", "--input", "PLUCK"], "--excite belongs to strings"),
        (
            ["--excite", "PLUCK", "--f0", "50"],
            "shorter than one period of 50 Hz (20.0 ms), so it does not fill",
        ),
        (
            ["--excite", "PLUCK", "--f0", "6000"],
            "--f0 6000 Hz lies above an eighth of the model's rate, 5512.5 Hz",
        ),
        (["--excite", "PLUCK", "--f0", "-3"], "--f0 is -3; needed a number above 0"),
        (
            ["--excite", "PLUCK", "--f0", "110", "--velocity", "3"],
            "--velocity is 3; needed a number from 0 to 1",
        ),
        (
            ["--excite", "PLUCK", "--f0", "110", "--seconds", "0.01"],
            "--seconds 0.01 is no longer than the excitation",
        ),
        (["--excite", "PLUCK", "--f0", "110"], "give --t60 SECONDS"),
        (["--excite", "GONE", "--f0", "110"], "does not exist; give a sound file with the start of a pluck"),
        (["--excite", "PLUCK", "--f0", "110", "--knob", "drive=1"], "--knob belongs to models of devices"),
    ],
)
def test_what_cannot_be_plucked_is_told(runs, pluck_file, tmp_path, capsys, words, text):
    names = {"PLUCK": str(pluck_file(0.015)), "GONE": str(tmp_path / "gone.wav")}
    given = [names.get(word, word) for word in words]
    assert command(runs["string"], *given, "--output", tmp_path / "out.wav") == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_models_of_other_tasks_say_which_options_are_theirs(runs, pluck_file, tmp_path, capsys):
    pluck, output = pluck_file(0.1), tmp_path / "out.wav"
    assert command(runs["pedal"], "--excite", pluck, "--f0", 110, "--output", output) == 2
    assert "holds a pedal model, which is run over audio: give --input IN.wav" in capsys.readouterr().err
    assert command(runs["string"], "--input", pluck, "--output", output) == 2
    assert "holds a string, which is plucked: give --excite PLUCK.wav --f0 HZ" in capsys.readouterr().err


def test_a_string_is_judged_with_its_failures_and_hardest_notes(runs, tmp_path, capsys):
    assert (
        evaluate(["--run", str(runs["string"]), "--device", "cpu", "--json", str(tmp_path / "out.json")]) == 0
    )
    output = capsys.readouterr().out
    assert "no failure on 3 notes" in output or "failure: " in output
    assert "from the least to the most, quartiles and 95 %" in output
    for whose in ("the model", "the plain linear filter"):
        assert f"of 3 notes by {whose}\n" in output
        assert f"of 3 notes by {whose}, T60 foretold" in output
    record = json.loads((tmp_path / "out.json").read_text())
    assert {item["sources"]["note"] for item in record["items"]} == {"a2_f.wav", "e3_f.wav", "c4_f.wav"}
    assert all(isinstance(item["failures"], list) for item in record["items"])
    assert "t60_error" in record["summary"]


def test_notes_with_failures_are_the_hardest_and_unknown_errors_too(capsys):
    rows = [
        {"error": 0.1, "never_decays": 0.0, "decays_too_fast": 0.0},
        {"error": 0.3, "never_decays": 0.0, "decays_too_fast": 0.0},
        {"error": 0.2, "never_decays": 1.0, "decays_too_fast": 0.0},
        {"error": float("nan"), "never_decays": 0.0, "decays_too_fast": 1.0},
    ]
    names = ["fine", "worse", "endless", "gone"]
    assert [name for _, name in hardest(rows, names, "error")] == ["gone", "endless", "worse", "fine"]
    print_string_rows(rows, names, "error")
    output = capsys.readouterr().out
    assert f"failure: {NEVER}: 1 of 4 notes: endless" in output
    assert f"failure: {FAST}: 1 of 4 notes: gone" in output
    assert "error from the least to the most, quartiles and 95 %: 0.1, 0.15, 0.2, 0.25, 0.29, 0.3" in output


def test_notes_with_all_bands_within_the_limit_are_counted_beside_the_plain_filters(capsys):
    rows = [
        {
            "error": 0.1,
            "t60_worst_error": own,
            "num_failures": 0.0,
            "linear_t60_worst_error": plain,
            "linear_num_failures": 0.0,
        }
        for own, plain in ((0.19, 0.1), (0.21, 0.2), (0.05, float("nan")), (0.0, 0.3))
    ]
    rows[3]["num_failures"] = 1.0
    print_string_rows(rows, ["a", "b", "c", "d"], "error")
    output = capsys.readouterr().out
    assert "within 20 %, no failure: 2 of 4 notes by the model" in output
    assert "within 20 %, no failure: 2 of 4 notes by the plain linear filter" in output
    foretold = [row | {"foretold_t60_worst_error": float("nan"), "foretold_num_failures": 0} for row in rows]
    print_string_rows(foretold, ["a", "b", "c", "d"], "error")
    assert "foretold" not in capsys.readouterr().out
    foretold[0]["foretold_t60_worst_error"] = 0.1
    print_string_rows(foretold, ["a", "b", "c", "d"], "error")
    assert "1 of 4 notes by the model, T60 foretold" in capsys.readouterr().out
