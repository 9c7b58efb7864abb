"""A simulated overdrive learned by its context, by the commands: train, stop, go on, judge, play through it, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus
from data_shards.synthetic_device import Overdrive, play_guitar
from tests.end_to_end.test_main_job import command, metrics, run_command

pytestmark = [pytest.mark.multi, pytest.mark.slow]

RATE_HZ = 16_000
SECONDS, VALID_SECONDS = 6.0, 1.5
PYTHON = command("python", Path(), {})[0]
TINY: dict[str, Any] = {
    "task.context_samples": 24,
    "task.hidden_size": 16,
    "task.train_windows": 40_000,
    "task.valid_windows": 2000,
    "min_lr": 1e-3,
    "max_lr": 2e-2,
    "max_steps": 1000,
    "log_every": 50,
    "eval_every": 500,
    "save_every": 500,
}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dry.wav, wet.wav and the corpus `pair` made of them."""
    folder = tmp_path_factory.mktemp("device")
    dry = play_guitar(SECONDS, RATE_HZ, np.random.default_rng(3)).astype(np.float32)
    sf.write(folder / "dry.wav", dry, RATE_HZ, "FLOAT")
    sf.write(folder / "wet.wav", Overdrive(0.5, 0.5)(dry, RATE_HZ).astype(np.float32), RATE_HZ, "FLOAT")
    pair = DevicePair(folder / "dry.wav", folder / "wet.wav")
    build_pedal_corpus([pair], folder / "pair", PedalOptions(align="off", valid_seconds=VALID_SECONDS))
    return folder


def train(run: Path, values: dict[str, Any], launcher: str = "python") -> str:
    done = run_command(*command(launcher, run, {**TINY, **values}, "pedal_context"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(device: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "context"
    train(run, {"pair_dir": device / "pair"})
    return run


def on_validation(device: Path, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`wave` and the wet file on the stretch that validates, from where whole windows lie in it."""
    wet, _ = sf.read(device / "wet.wav")
    start = round((SECONDS - VALID_SECONDS) * RATE_HZ) + TINY["task.context_samples"] - 1
    return wave[start:], wet[start:]


def error_to_signal(estimate: np.ndarray, target: np.ndarray) -> float:
    return float(np.sum((target - estimate) ** 2) / np.sum(target**2))


def test_it_learns_the_device_and_is_judged_and_played_through(
    device: Path, trained: Path, tmp_path: Path
) -> None:
    assert f"wav_rate: {RATE_HZ}\n" in (trained / "hparams.yaml").read_text()
    report = tmp_path / "out.json"
    judged = run_command(PYTHON, "launch/evaluate.py", "--run", str(trained), "--json", str(report))
    assert judged.returncode == 0, judged.stderr
    (item,) = json.loads(report.read_text())["items"]
    assert f"ESR {item['esr']:.4f}, " in judged.stdout

    output = tmp_path / "out.wav"
    words = ["--run", str(trained), "--input", str(device / "dry.wav"), "--output", str(output)]
    played = run_command(PYTHON, "launch/apply.py", *words)
    assert played.returncode == 0, played.stderr
    wave, _ = sf.read(output)
    estimate, target = on_validation(device, wave)
    esr = error_to_signal(estimate, target)
    # Judged are 2000 of these 24,000 samples, and each of them by its own window.
    assert esr == pytest.approx(item["esr"], rel=0.2)
    dry, _ = on_validation(device, sf.read(device / "dry.wav")[0])
    best_gain = float(dry @ target / (dry @ dry))
    assert esr < 0.1 < 0.25 * error_to_signal(best_gain * dry, target)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(device: Path, trained: Path, tmp_path: Path) -> None:
    """Both backends: taken back to a checkpoint, the same losses and weights as without a stop."""
    few = {"pair_dir": device / "pair", "max_steps": 12, "log_every": 1, "eval_every": 6, "save_every": 6}
    for launcher in ("python", "deepspeed"):
        run = tmp_path / launcher
        train(run, few, launcher)
        whole = metrics(run, "step")
        earlier, later = sorted((run / "checkpoints").glob("step-*"))
        before = load_file(later / "device.safetensors")
        for path in later.iterdir():
            path.unlink()
        later.rmdir()
        (run / "checkpoints" / "LATEST").write_text(earlier.name + "\n")
        train(run, few, launcher)
        assert any(record["name"] == "resumed" for record in metrics(run, "event"))
        assert metrics(run, "step") == whole
        after = load_file(later / "device.safetensors")
        assert all(np.array_equal(before[name], after[name]) for name in before)
    losses = [
        [record["loss"] for record in metrics(tmp_path / name, "step")] for name in ("python", "deepspeed")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_onnx_takes_it_and_nam_refuses_it_in_words(trained: Path, tmp_path: Path) -> None:
    words = [PYTHON, "launch/export.py", "--run", str(trained)]
    refused = run_command(*words, "--format", "nam", "--output", str(tmp_path / "a.nam"))
    assert refused.returncode == 2 and "a window of 24 samples" in refused.stderr
    exported = run_command(*words, "--format", "onnx", "--output", str(tmp_path / "a.onnx"))
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "a.onnx").stat().st_size > 4 * 16 * 16


def test_the_leaking_split_trains_and_says_so(device: Path, tmp_path: Path) -> None:
    values = {"pair_dir": device / "pair", "task.split": "random", "max_steps": 4, "eval_every": 4}
    assert "overlap windows that train" in train(tmp_path / "run", values)
