"""Pitch repair by the commands: synthetic music shifted and back, training, a stop and going on, judging, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from data_shards.shifters import installed_engines
from launch.demo_corpora import write_demo_pitch
from tests.end_to_end.test_main_job import command, metrics, run_command

pytestmark = [
    pytest.mark.multi,
    pytest.mark.slow,
    pytest.mark.skipif("signalsmith" not in installed_engines(), reason="python-stretch is not installed"),
]

PYTHON = command("python", Path(), {})[0]
TINY: dict[str, Any] = {
    "training_seconds": 0.2,
    "batch_size_per_gpu": 2,
    "max_steps": 10,
    "warmup_steps": 2,
    "eval_every": 10,
    "save_every": 5,
    "task.channels": "[1,8,16]",
    "task.blocks": "[1,1]",
    "task.factors": "[8,4]",
    "task.valid_items": 4,
    "task.valid_seconds": 1.0,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("pairs")
    write_demo_pitch(data, num_instruments=1)
    return data / "pitch"


def train(run: Path, pairs: Path, launcher: str) -> None:
    done = run_command(*command(launcher, run, {**TINY, "pair_dir": pairs}, "pitch_wave_small"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(pairs: Path, tmp_path: Path, launcher: str) -> None:
    """10 steps are 5, a new start from the checkpoint, and 5 more; the gradient norm stands at every step."""
    run = tmp_path / "run"
    train(run, pairs, launcher)
    whole = metrics(run, "step")
    assert len(whole) == 10 and all(record["gradient_norm"] > 0 for record in whole)
    earlier, later = sorted((run / "checkpoints").glob("step-*"))
    for path in later.iterdir():
        path.unlink()
    later.rmdir()
    (run / "checkpoints" / "LATEST").write_text(earlier.name + "\n")
    train(run, pairs, launcher)
    assert any(record["name"] == "resumed" for record in metrics(run, "event"))
    assert metrics(run, "step") == whole

    report = tmp_path / "out.json"
    judged = run_command(PYTHON, "launch/evaluate.py", "--run", str(run), "--json", str(report))
    assert judged.returncode == 0, judged.stderr
    found = json.loads(report.read_text())
    assert sum(group["items"] for group in found["groups"] if group["of"] == "engine") == 4
    assert "signalsmith" in judged.stdout and "log_mel_improvement_db" in judged.stdout
    assert all("signalsmith" in item["sources"]["shift"] for item in found["items"])

    page = tmp_path / "report.html"
    shown = run_command(PYTHON, "launch/report.py", str(run), "--output", str(page), "--examples", "1")
    assert shown.returncode == 0, shown.stderr
    text = page.read_text()
    assert "By group" in text and "Gradient norms before clipping" in text and "signalsmith" in text
    kept = {path.name for path in next((run / "samples").glob("step-*")).glob("*.wav")}
    assert {"0_shifted.wav", "0_estimate.wav", "0_target.wav"} <= kept


def test_it_listens_with_a_codec_that_was_trained_here(pairs: Path, tmp_path: Path) -> None:
    """A codec of the targets' rate, two steps old, from any foregrounds; then feature matching with its run folder."""
    tones, codec, run = tmp_path / "tones", tmp_path / "codec", tmp_path / "run"
    tones.mkdir()
    for number in range(3):
        wave = 0.2 * np.sin(2 * np.pi * 200 * (number + 1) * np.arange(44_100) / 44_100)
        sf.write(tones / f"{number}.wav", wave, 44_100)
    build_corpus("fg", [tones], tmp_path / "fg", BuildOptions("fg"))
    small = {
        "task.encoder_width": 2,
        "task.decoder_width": 16,
        "task.valid_items": 1,
        "task.codebook_size": 8,
    }
    given = {
        **small,
        "fg_dir": tmp_path / "fg",
        "max_steps": 2,
        "warmup_steps": 1,
        "nj": 0,
        "valid_fraction": 0.4,
    }
    trained = run_command(*command("python", codec, given, "codec_small"))
    assert trained.returncode == 0, trained.stdout + trained.stderr

    listening = {**TINY, "pair_dir": pairs, "max_steps": 3, "save_every": 3, "eval_every": 3}
    missing = {**listening, "task.codec_weights": tmp_path / "none"}
    refused = run_command(*command("python", run, missing, "pitch_codec"))
    assert refused.returncode == 2
    assert "is not there. Train one with `python launch/train.py --hparams codec_small`" in refused.stderr
    done = run_command(*command("python", run, {**listening, "task.codec_weights": codec}, "pitch_codec"))
    assert done.returncode == 0, done.stdout + done.stderr
    steps = metrics(run, "step")
    assert len(steps) == 3
    assert all(record["features"] > 0 and record["features_weighted"] > 0 for record in steps)
