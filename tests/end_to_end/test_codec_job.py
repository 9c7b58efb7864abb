"""A codec by the commands: training on foregrounds alone, a stop and going on, two ranks, judging, use on a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from tests.end_to_end.test_main_job import command, metrics, run_command

pytestmark = [pytest.mark.multi, pytest.mark.slow]

RATE_HZ = 44_100
PYTHON = command("python", Path(), {})[0]
TINY: dict[str, Any] = {
    "task.encoder_width": 2,
    "task.decoder_width": 16,
    "task.strides": "[4,8]",
    "task.num_codebooks": 2,
    "task.codebook_size": 16,
    "task.is_balanced": "true",
    "task.valid_items": 3,
    "task.valid_seconds": 0.2,
    "valid_fraction": 0.4,
    "training_seconds": 0.1,
    "batch_size_per_gpu": 2,
    "max_steps": 8,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 8,
    "save_every": 4,
    "ema_decay": 0.0,
    "nj": 1,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of six tones in noise."""
    root = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(7)
    at = np.arange(RATE_HZ) / RATE_HZ
    (root / "audio").mkdir()
    for number in range(6):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at) + 0.01 * rng.standard_normal(RATE_HZ)
        sf.write(root / f"audio/{number}.wav", tone, RATE_HZ)
    build_corpus("fg", [root / "audio"], root / "fg", BuildOptions("fg"))
    return root


def train(run: Path, corpus: Path, launcher: str, **values: Any) -> None:
    given = {**TINY, "fg_dir": corpus / "fg", **values}
    done = run_command(*command(launcher, run, given, "codec_small"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each backend, neither stopped."""
    folder = tmp_path_factory.mktemp("runs")
    for launcher in ("python", "deepspeed"):
        train(folder / launcher, corpus, launcher)
    return {launcher: folder / launcher for launcher in ("python", "deepspeed")}


@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    runs: dict[str, Path], corpus: Path, launcher: str
) -> None:
    """Taken back to a checkpoint: the same losses, shares of the balancer and weights as without a stop."""
    run = runs[launcher]
    whole = metrics(run, "step")
    earlier, later = sorted((run / "checkpoints").glob("step-*"))
    before = load_file(later / "codec.safetensors")
    assert (earlier / "task.state").is_file()
    for path in later.iterdir():
        path.unlink()
    later.rmdir()
    for pointer in ("LATEST", "BEST"):
        (run / "checkpoints" / pointer).write_text(earlier.name + "\n")
    train(run, corpus, launcher)
    assert any(record["name"] == "resumed" for record in metrics(run, "event"))
    assert metrics(run, "step") == whole
    after = load_file(later / "codec.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_both_backends_see_the_same_losses(runs: dict[str, Path]) -> None:
    names = ("loss", "mel", "mel_weighted", "stft_weighted", "commitment", "gradient_norm")
    columns = [[[record[name] for name in names] for record in metrics(runs[key], "step")] for key in runs]
    assert len(columns[0]) == 8
    np.testing.assert_allclose(columns[1], columns[0], rtol=1e-3)


def test_two_ranks_agree_on_the_balance_that_one_sees(corpus: Path, tmp_path: Path) -> None:
    """Without the mel loss: the slope of a logarithm of near-silent bands hangs on how a convolution rounds, and a
    convolution of one row rounds otherwise than one of two (by 3e-6, which the norm of that gradient makes 0.4 %)."""
    terms = {
        "task.mel_weight": 0.0,
        "task.l1_weight": 3.0,
        "task.stft_weight": 1.0,
        "max_steps": 4,
        "save_every": 4,
    }
    train(tmp_path / "one", corpus, "python", **terms, eval_every=4)
    train(tmp_path / "two", corpus, "torchrun 2", **terms, eval_every=4, batch_size_per_gpu=1)
    names = ("l1", "l1_weighted", "stft", "stft_weighted", "commitment", "gradient_norm")
    columns = [
        [[record[name] for name in names] for record in metrics(tmp_path / run, "step")]
        for run in ("one", "two")
    ]
    assert len(columns[0]) == 4
    np.testing.assert_allclose(columns[1], columns[0], rtol=2e-3)


def test_it_is_judged_applied_and_shown(runs: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    run = runs["python"]
    report = tmp_path / "out.json"
    judged = run_command(PYTHON, "launch/evaluate.py", "--run", str(run), "--json", str(report))
    assert judged.returncode == 0, judged.stderr
    summary = json.loads(report.read_text())["summary"]
    assert {"mel_distance", "mel_distance_improvement", "si_sdr_db", "mel_distance_at_1"} < summary.keys()

    # A length that neither the stride nor the chunks divide, at another rate and in two channels.
    source, output = tmp_path / "in.wav", tmp_path / "out.wav"
    wave = 0.1 * np.random.default_rng(1).standard_normal((50_001, 2))
    sf.write(source, wave, 48_000)
    words = ["--run", str(run), "--input", str(source), "--output", str(output), "--chunk-seconds", "0.3"]
    applied = run_command(PYTHON, "launch/apply.py", *words)
    assert applied.returncode == 0, applied.stderr
    assert sf.info(output).frames == 50_001 and sf.info(output).channels == 2

    page = tmp_path / "report.html"
    shown = run_command(PYTHON, "launch/report.py", str(run), "--output", str(page))
    assert shown.returncode == 0, shown.stderr
    text = page.read_text()
    assert "Mel distance improvement" in text and "SI-SDR at 1 (dB)" in text and "recording" in text
