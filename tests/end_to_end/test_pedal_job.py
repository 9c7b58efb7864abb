"""A device as a user captures it: import, train, stop, go on, judge, play through it, export; all by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from data_shards.synthetic_notes import Instrument, play
from tests.end_to_end.test_main_job import command, metrics, run_command

pytestmark = [pytest.mark.multi, pytest.mark.slow]

RATE_HZ = 24_000
PYTHON = command("python", Path(), {})[0]
TINY: dict[str, Any] = {
    "training_seconds": 0.25,
    "batch_size_per_gpu": 4,
    "max_steps": 12,
    "warmup_steps": 2,
    "max_lr": 1e-2,
    "log_every": 1,
    "eval_every": 6,
    "save_every": 6,
}
PRESETS = {"pedal_lstm": {"task.hidden_size": 6}, "pedal_wavenet": {}}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dry.wav, wet.wav (a clipper that is 37 samples late) and the corpus `pair` made of them."""
    folder = tmp_path_factory.mktemp("device")
    instrument = Instrument("plucked", 110.0, (250.0, 700.0, 1500.0, 3000.0), 4.0, 0.8)
    dry = 0.5 * play(instrument, 4.0, RATE_HZ, np.random.default_rng(0))
    dry += 1e-4 * np.random.default_rng(1).standard_normal(len(dry))
    wet = np.concatenate([np.zeros(37), 0.8 * np.tanh(6 * dry + 0.2)[:-37]])
    sf.write(folder / "dry.wav", dry, RATE_HZ, "FLOAT")
    sf.write(folder / "wet.wav", wet, RATE_HZ, "PCM_24")
    done = run_command(
        PYTHON, "launch/build_shards.py", "pedal", "--dry", str(folder / "dry.wav"), "--wet", str(folder / "wet.wav"),
        "--output", str(folder / "pair"), "--valid-seconds", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lag 37 samples" in done.stdout
    return folder


def train(preset: str, run: Path, values: dict[str, Any], launcher: str = "python") -> None:
    done = run_command(*command(launcher, run, {**TINY, **PRESETS[preset], **values}, preset))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module", params=sorted(PRESETS))
def trained(device: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / request.param
    train(request.param, run, {"pair_dir": device / "pair"})
    return run


def test_a_run_takes_the_rate_of_its_corpus_and_reports_esr(trained: Path) -> None:
    assert f"wav_rate: {RATE_HZ}\n" in (trained / "hparams.yaml").read_text()
    assert json.loads((trained / "status.json").read_text())["state"] == "finished"
    first, *_, last = metrics(trained, "step")
    assert last["esr"] < first["esr"] < 3
    assert all(0 < record["summary"]["esr"]["mean"] < 2 for record in metrics(trained, "evaluation"))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(device: Path, trained: Path, tmp_path: Path) -> None:
    """Under DeepSpeed, taken back to its first checkpoint: the same losses as without a stop."""
    run = tmp_path / "run"
    values = {"pair_dir": device / "pair"}
    train(trained.name, run, values, "deepspeed")
    whole = metrics(run, "step")
    later = sorted((run / "checkpoints").glob("step-*"))[-1]
    earlier = sorted((run / "checkpoints").glob("step-*"))[0]
    assert earlier != later
    for path in later.iterdir():
        path.unlink()
    later.rmdir()
    (run / "checkpoints" / "LATEST").write_text(earlier.name + "\n")
    train(trained.name, run, values, "deepspeed")
    assert any(record["name"] == "resumed" for record in metrics(run, "event"))
    assert metrics(run, "step") == whole


def test_it_is_judged_played_through_and_exported(device: Path, trained: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    judged = run_command(PYTHON, "launch/evaluate.py", "--run", str(trained), "--json", str(report))
    assert judged.returncode == 0, judged.stderr
    (item,) = json.loads(report.read_text())["items"]
    assert f"ESR {item['esr']:.4f}, " in judged.stdout

    output = tmp_path / "out.wav"
    words = ["--run", str(trained), "--input", str(device / "dry.wav"), "--output", str(output)]
    played = run_command(PYTHON, "launch/apply.py", *words)
    assert played.returncode == 0, played.stderr
    estimate, _ = sf.read(output)
    wet, _ = sf.read(device / "wet.wav")
    # The same error as on the validation stretch, the last second, from the files alone; the lag is taken out.
    late, stretch = 37, RATE_HZ - 37
    target, found = wet[-stretch:], estimate[-stretch - late : -late]
    esr = np.sum((target - found) ** 2) / np.sum(target**2)
    assert esr == pytest.approx(item["esr"], rel=0.1)

    refused = run_command(PYTHON, "launch/apply.py", *words, "--knob", "drive=0.5")
    assert refused.returncode == 2 and "knobs none" in refused.stderr

    plugin = tmp_path / "device.nam"
    exported = run_command(
        PYTHON, "launch/export.py", "--run", str(trained), "--format", "nam", "--output", str(plugin)
    )
    assert exported.returncode == 0, exported.stderr
    assert json.loads(plugin.read_text())["sample_rate"] == RATE_HZ


def test_a_corpus_of_another_rate_is_refused_in_words(device: Path, tmp_path: Path) -> None:
    values = {**TINY, "pair_dir": device / "pair", "wav_rate": 48_000}
    done = run_command(*command("python", tmp_path / "run", values, "pedal_lstm"))
    assert done.returncode == 2
    assert f"recorded at {RATE_HZ} Hz" in done.stderr and "wav_rate is 48000" in done.stderr
