"""launch/evaluate.py on pairs of files and on the test stretch, against apply.py and scipy; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from scipy import signal

from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from enhancer.inference import load_run
from enhancer.tasks import TASKS
from launch.apply import main as apply
from launch.evaluate import evaluate, main
from tests.data_shards import pedal_audio
from tests.export.devices import recurrent
from tests.launch.test_export import make_run

RATE = 48_000
FORMATS = {"a-input.wav": "FLOAT", "a-target.wav": "PCM_24", "b_dry.flac": "PCM_16", "b_wet.wav": "DOUBLE"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", recurrent(), "task.hidden_size=16")


@pytest.fixture
def riffs(tmp_path: Path) -> Path:
    """Pairs `a` and `deep/b` through a device that the model knows nothing of."""
    for seed, (name, subtype) in enumerate(FORMATS.items()):
        dry = pedal_audio.guitar(1.0 + seed // 2, RATE, seed // 2)
        wave = dry if seed % 2 == 0 else 0.5 * pedal_audio.amp(dry, RATE)
        folder = "deep" if name.startswith("b") else ""
        pedal_audio.write(tmp_path / "riffs" / folder / name, wave, RATE, subtype)
    return tmp_path / "riffs"


def test_what_any_task_notices_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_run(run)
    kind = TASKS[trained.hp.task.name]
    told = type("Told", (kind,), {"notices": lambda self: ["noticed"]})
    monkeypatch.setitem(TASKS, trained.hp.task.name, told)
    stream = SimpleNamespace(constants=dict, validation=list, num_valid_items=0)
    assert evaluate(trained, stream) == []
    assert "note: noticed" in capsys.readouterr().out


def judge(run: Path, *arguments: str | Path) -> int:
    return main(["--run", str(run), "--device", "cpu", *map(str, arguments)])


def expected(run: Path, dry: Path, wet: Path, tmp_path: Path) -> dict[str, float]:
    """From the file that apply.py writes, by numpy and scipy."""
    played = tmp_path / "played.wav"
    as_float = pedal_audio.write(tmp_path / "dry.wav", sf.read(dry)[0], RATE)
    assert (
        apply(["--run", str(run), "--device", "cpu", "--input", str(as_float), "--output", str(played)]) == 0
    )
    estimate, target = sf.read(played)[0], sf.read(wet)[0]
    error = estimate - target
    frequency, powers = signal.welch(np.stack([estimate, target]), RATE, "hann", 2048, detrend=False)
    ratio_db = 10 * np.log10(powers[0] / powers[1])[frequency >= 10_000]
    lines = [
        np.abs(np.fft.rfft(wave))[np.fft.rfftfreq(len(wave), 1 / RATE) >= 10_000]
        for wave in (estimate, target)
    ]
    return {
        "esr": np.sum(error**2) / np.sum(target**2),
        "mse": np.mean(error**2),
        "mae": np.mean(np.abs(error)),
        "excess_above_10k_db": 10 * np.log10(np.sum(lines[0] ** 2) / np.sum(lines[1] ** 2)),
        "response_excess_above_10k_db": ratio_db.mean(),
        "peak_excess_above_10k_db": ratio_db.max(),
    }


def test_files_are_judged_as_apply_plays_them(run, riffs, tmp_path, capsys):
    report = tmp_path / "out.json"
    (riffs / "c-input.wav").write_bytes((riffs / "a-input.wav").read_bytes())
    (riffs / "notes.wav").write_bytes((riffs / "a-input.wav").read_bytes())
    assert judge(run, "--files", riffs, "--json", report) == 0
    told = capsys.readouterr()
    assert told.err.count("has no partner") == 2 and "c-input.wav has no partner" in told.err
    content = json.loads(report.read_text())
    assert content["without_partner"] == ["c-input.wav", "notes.wav"] and content["failed"] == {}
    assert [file["name"] for file in content["files"]] == ["a", "deep/b"]
    assert [file["seconds"] for file in content["files"]] == [1.0, 2.0]
    for file, (dry, wet) in zip(
        content["files"],
        [("a-input.wav", "a-target.wav"), ("deep/b_dry.flac", "deep/b_wet.wav")],
        strict=True,
    ):
        assert (file["dry"], file["wet"]) == (dry, wet)
        found = {name: file[name] for name in expected(run, riffs / dry, riffs / wet, tmp_path)}
        assert found == pytest.approx(expected(run, riffs / dry, riffs / wet, tmp_path), rel=1e-3, abs=1e-7)
        assert f"{file['name']}: ESR {file['esr']:.4f}, {file['grade']}" in told.out
    for name in ("esr", "mse", "response_excess_above_10k_db"):
        assert content["summary"][name]["mean"] == pytest.approx(
            np.mean([file[name] for file in content["files"]])
        )
    assert set(content["real_time_factors"]) == {"64", "512"}


def test_a_device_that_the_model_is_has_no_error_and_the_best_grade(run, riffs, tmp_path):
    wet = riffs / "a-target.wav"
    assert apply(["--run", str(run), "--input", str(riffs / "a-input.wav"), "--output", str(wet)]) == 0
    late = sf.read(wet)[0]
    pedal_audio.write(wet, pedal_audio.delayed(late, 37), RATE)
    pedal_audio.write(riffs / "deep" / "b_wet.wav", np.zeros(2 * RATE), RATE)
    report = tmp_path / "out.json"
    assert judge(run, "--files", riffs, "--align", "37", "--json", report) == 2
    content = json.loads(report.read_text())
    (file,) = content["files"]
    assert file["esr"] < 1e-9 and (file["grade"], file["lag_samples"]) == ("great", 37)
    assert file["seconds"] == pytest.approx(1 - 37 / RATE)
    assert "b_wet.wav is silent" in content["failed"]["deep/b"]


@pytest.mark.parametrize(
    ("name", "wave", "rate", "text"),
    [
        ("a-target.wav", np.ones(1000), RATE, "has 48000 frames and a-target.wav 1000"),
        ("a-target.wav", np.ones(44_100), 44_100, "at 44100 Hz and the model at 48000 Hz"),
        ("a-input.wav", np.ones((RATE, 2)), RATE, "has 2 channels"),
        ("a-input.wav", np.full(RATE, np.nan), RATE, "NaN or infinite sample at frame 0"),
    ],
    ids=["length", "rate", "stereo", "nan"],
)
def test_a_pair_that_does_not_fit_is_named_and_the_others_are_judged(
    run, riffs, capsys, name, wave, rate, text
):
    pedal_audio.write(riffs / name, wave, rate)
    assert judge(run, "--files", riffs) == 2
    told = capsys.readouterr()
    assert text in told.err and "1 of 2 pairs could not be judged" in told.err
    assert "deep/b: ESR" in told.out


def test_a_late_recording_is_hinted_at(run, tmp_path, capsys):
    dry = pedal_audio.guitar(3.0, RATE)
    pedal_audio.write(tmp_path / "riffs" / "a-dry.wav", dry, RATE)
    pedal_audio.write(tmp_path / "riffs" / "a-wet.wav", pedal_audio.delayed(pedal_audio.fuzz(dry), 200), RATE)
    assert judge(run, "--files", tmp_path / "riffs") == 0
    assert "a-wet.wav is 200 samples late; --align auto" in capsys.readouterr().err
    report = tmp_path / "out.json"
    assert judge(run, "--files", tmp_path / "riffs", "--align", "auto", "--json", report) == 0
    assert json.loads(report.read_text())["files"][0]["lag_samples"] == 200


def test_what_is_no_folder_of_pairs_is_refused(run, riffs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    (riffs / "a-target.wav").rename(tmp_path / "alone" / "a_target.wav")
    for arguments, text in (
        (["--files", tmp_path / "nowhere"], "is no folder"),
        (["--files", tmp_path / "empty"], "holds no pair NAME-input.wav"),
        (["--files", tmp_path / "alone"], "found a_target.wav"),
        (["--files", riffs, "--split", "test"], "--files and --split test are both given"),
        (["--files", riffs, "--pair-dir", "x"], "--files and --pair-dir are both given"),
        (["--files", riffs, "--knob", "drive=1"], "the model has the knobs none"),
        (["--knob", "drive=1"], "are for --files FOLDER"),
    ):
        assert judge(run, *arguments) == 2
        assert text in capsys.readouterr().err
    (riffs / "deep" / "b-dry.wav").write_bytes((riffs / "deep" / "b_dry.flac").read_bytes())
    assert judge(run, "--files", riffs) == 2
    assert "are both the dry of deep/b; keep one" in capsys.readouterr().err


def test_a_model_with_knobs_is_judged_at_a_setting(tmp_path, riffs, capsys):
    options = ["task.hidden_size=16", "task.knobs=[drive, tone]"]
    run = make_run(tmp_path / "run", recurrent(num_knobs=2), *options)
    assert judge(run, "--files", riffs) == 2
    assert "give --knob drive=0.5 --knob tone=0.5" in capsys.readouterr().err
    found = []
    for drive in (0.1, 0.9):
        report = tmp_path / "out.json"
        knobs = ["--knob", f"drive={drive}", "--knob", "tone=0.5"]
        assert judge(run, "--files", riffs, *knobs, "--json", report) == 0
        found.append(json.loads(report.read_text())["summary"]["esr"]["mean"])
    assert found[0] != found[1]


def test_a_model_of_another_task_is_refused(tmp_path, riffs, capsys):
    from tests.launch.test_apply import make_run as make_denoise_run
    from tests.models.test_denoiser import perturbed

    run = make_denoise_run(tmp_path / "run", perturbed())
    assert judge(run, "--files", riffs) == 2
    assert "the run is of the task denoise" in capsys.readouterr().err
    assert judge(run, "--split", "test") == 2
    assert "only corpora of devices have a test stretch" in capsys.readouterr().err


def test_the_test_stretch_of_a_corpus_is_judged(tmp_path, capsys):
    rate = pedal_audio.RATE_HZ
    dry, wet = pedal_audio.write_pair(tmp_path, 3.0)
    options = PedalOptions(align="off", valid_seconds=0.5, test_seconds=1)
    build_pedal_corpus([DevicePair(dry, wet)], tmp_path / "corpus", options)
    run = make_run(
        tmp_path / "run", recurrent(), "task.hidden_size=16", f"wav_rate={rate}", "task.hf_hinge_weight=0",
        f"pair_dir={tmp_path / 'corpus'}",
    )  # fmt: skip
    report, played = tmp_path / "out.json", tmp_path / "played.wav"
    assert judge(run, "--split", "test", "--json", report) == 0
    assert "on 1 test items" in capsys.readouterr().out
    assert apply(["--run", str(run), "--device", "cpu", "--input", str(dry), "--output", str(played)]) == 0
    estimate, target = sf.read(played)[0][-rate:], sf.read(wet)[0][-rate:]
    content = json.loads(report.read_text())
    # The stretch begins 1000 samples of warm-up after rest, the file two seconds after it.
    assert content["items"][0]["esr"] == pytest.approx(
        np.sum((estimate - target) ** 2) / np.sum(target**2), rel=1e-3
    )
    assert content["items"][0]["response_excess_above_10k_db"] is None and content["split"] == "test"
