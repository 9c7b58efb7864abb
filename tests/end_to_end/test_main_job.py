"""The main job as a user runs it, on corpora of a few seconds: train, stop, go on, judge, use, by their commands."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from data_shards.build import build_corpus
from data_shards.options import BuildOptions

pytestmark = [pytest.mark.multi, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
RATE_HZ = 44_100
TINY = {
    "task.width": 1,
    "task.valid_items": 4,
    "task.valid_seconds": 0.5,
    "training_seconds": 0.25,
    "batch_size_per_gpu": 8,
    "max_steps": 10,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 10,
    "save_every": 5,
    "nj": 1,
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """fg, bg, rir and pair corpora of noisy tones, as values for `--set`."""
    root = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(7)
    at = np.arange(RATE_HZ) / RATE_HZ

    def write(name: str, wave: np.ndarray) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(root / name, wave.clip(-1, 1), RATE_HZ)

    for number in range(6):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at)
        write(f"audio/fg/{number}.wav", tone)
        write(f"audio/bg/{number}.wav", 0.1 * rng.standard_normal(RATE_HZ))
        write(
            f"audio/rir/{number}.wav",
            np.exp(-at[:8000] * 20) * rng.standard_normal(8000) * 0.1 + (at[:8000] == 0),
        )
        write(f"audio/target/{number}.wav", tone)
        write(f"audio/input/{number}.wav", tone + 0.05 * rng.standard_normal(RATE_HZ))
    for kind in ("fg", "bg", "rir"):
        build_corpus(kind, [root / "audio" / kind], root / kind, BuildOptions(kind))
    build_corpus(
        "pair", [root / "audio/input"], root / "pair", BuildOptions("pair"), targets=[root / "audio/target"]
    )
    return {f"{kind}_dir": root / kind for kind in ("fg", "bg", "rir")} | {"valid_fraction": 0.4}


def command(launcher: str, run: Path, values: dict[str, Any], preset: str = "base_small") -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    start = {
        "python": [sys.executable],
        "deepspeed": [str(SCRIPTS / "deepspeed"), "--num_gpus", "1", "--master_port", port],
        "deepspeed 2": [str(SCRIPTS / "deepspeed"), "--num_gpus", "2", "--master_port", port],
        "torchrun 2": [str(SCRIPTS / "torchrun"), "--nproc_per_node", "2", "--master_port", port],
        "accelerate": [str(SCRIPTS / "accelerate"), "launch", "--cpu", "--num_processes", "1"],
    }[launcher]
    settings = [f"{key}={value}" for key, value in values.items()]
    return [*start, "launch/train.py", "--hparams", preset, "--run-dir", str(run), "--set", *settings]


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def train(launcher: str, run: Path, values: dict[str, Any]) -> None:
    done = run_command(*command(launcher, run, values))
    assert done.returncode == 0, done.stdout + done.stderr


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind without what the clock decides."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("_seconds", "_per_second")
    return [
        {key: value for key, value in record.items() if not key.endswith(clock)}
        for record in records
        if record["kind"] == kind
    ]


def weights(run: Path, step: int = 10) -> dict[str, np.ndarray]:
    """Those that the next step starts from and their moving average."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    average = load_file(folder / "denoiser.average.safetensors")
    return load_file(folder / "denoiser.safetensors") | {
        f"average of {key}": value for key, value in average.items()
    }


@pytest.fixture(scope="module")
def trained(corpora: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps by `deepspeed launch/train.py`."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    train("deepspeed", run, {**TINY, **corpora})
    return run


def test_a_run_leaves_what_is_promised(trained: Path) -> None:
    status = json.loads((trained / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 10)
    assert [record["step"] for record in metrics(trained, "step")] == list(range(1, 11))
    (evaluation,) = metrics(trained, "evaluation")
    assert len(evaluation["rows"]) == 4
    assert (trained / "checkpoints" / "BEST").read_text().strip() == "step-0000010"
    assert list((trained / "tensorboard").iterdir())
    assert {path.suffix for path in (trained / "samples").rglob("*") if path.is_file()} == {".wav", ".png"}


@pytest.mark.parametrize("launcher", ["python", "deepspeed 2", "torchrun 2", "accelerate"])
def test_every_launcher_trains_the_same_run(
    corpora: dict[str, Any], trained: Path, tmp_path: Path, launcher: str
) -> None:
    """Same draws, and losses within 1e-5: one backend or the other, one rank of 8 or two of 4."""
    per_rank = 4 if launcher.endswith("2") else 8
    train(launcher, tmp_path / "run", {**TINY, **corpora, "batch_size_per_gpu": per_rank})
    one, other = metrics(trained, "step"), metrics(tmp_path / "run", "step")
    assert [record["draws"] for record in one] == [record["draws"] for record in other]
    for ours, theirs in zip(one, other, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_a_run_stopped_in_the_middle_goes_on_bit_for_bit(
    corpora: dict[str, Any], trained: Path, tmp_path: Path, launcher: str
) -> None:
    """SIGINT at some step, the same command again: weights and metrics of a run that was never stopped."""
    values = {**TINY, **corpora, "max_steps": 40, "eval_every": 40}
    train(launcher, tmp_path / "whole", values)
    run = tmp_path / "parts"
    process = subprocess.Popen(
        command(launcher, run, values),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(metrics(run, "step")) < 3:
        assert time.monotonic() < deadline and process.poll() is None, "no third step"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    while json.loads((run / "status.json").read_text())["state"] == "running":
        assert time.monotonic() < deadline, "never stopped"
        time.sleep(0.1)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "preempted" and 3 <= status["step"] < 40
    if launcher == "python":
        assert process.returncode == 75
    train(launcher, run, values)
    assert metrics(run, "step") == metrics(tmp_path / "whole", "step")
    expected, found = weights(tmp_path / "whole", 40), weights(run, 40)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_the_trained_run_is_judged_and_used(trained: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    judged = run_command(sys.executable, "launch/evaluate.py", "--run", str(trained), "--json", str(report))
    assert judged.returncode == 0, judged.stderr
    content = json.loads(report.read_text())
    (during_training,) = metrics(trained, "evaluation")
    for row, seen in zip(content["items"], during_training["rows"], strict=True):
        assert row["si_sdr_db"] == pytest.approx(seen["si_sdr_db"], abs=1e-3)
    sf.write(tmp_path / "in.wav", 0.1 * np.random.default_rng(0).standard_normal(30_000), 48_000)
    used = run_command(
        sys.executable,
        "launch/apply.py",
        "--run",
        str(trained),
        "--input",
        str(tmp_path / "in.wav"),
        "--output",
        str(tmp_path / "out.wav"),
    )
    assert used.returncode == 0, used.stderr
    assert "x real time" in used.stdout
    assert sf.info(tmp_path / "out.wav").frames == 30_000


@pytest.mark.parametrize(
    "values",
    [
        {"load_fg_only": True, "bg_dir": "absent", "rir_dir": "absent"},
        {"pair_dir": "pair", "fg_dir": "absent", "bg_dir": "absent", "rir_dir": "absent"},
        {"pair_dir": "pair", "task.pair_fraction": 0.5},
        {"task.stft_weight": 1.0, "task.si_sdr_weight": 0.0, "task.distort_prob": 0.5},
    ],
    ids=["foreground only", "pairs only", "pairs beside mixes", "losses of the base preset"],
)
def test_other_ways_to_train(corpora: dict[str, Any], tmp_path: Path, values: dict[str, Any]) -> None:
    if "pair_dir" in values:
        values = {**values, "pair_dir": Path(corpora["fg_dir"]).parent / "pair"}
    train("python", tmp_path / "run", {**TINY, **corpora, **values, "max_steps": 3})
    losses = [record["loss"] for record in metrics(tmp_path / "run", "step")]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)


def test_corpora_may_lie_at_urls(
    corpora: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run trains on them through the cache, and one of local corpora is judged on them with the same result."""
    monkeypatch.setenv("WAVEWRIGHT_CACHE", str(tmp_path / "cache"))
    urls = {key: f"file://{place}" for key, place in corpora.items() if key.endswith("_dir")}
    train("python", tmp_path / "run", {**TINY, **corpora, **urls, "max_steps": 3})
    assert f"fg_dir: {urls['fg_dir']}\n" in (tmp_path / "run/hparams.yaml").read_text()
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    flags = [word for key, url in urls.items() for word in ("--" + key.replace("_", "-"), url)]
    report = ("--json", str(tmp_path / "out.json"))
    judged = run_command(sys.executable, "launch/evaluate.py", "--run", str(trained), *report, *flags)
    assert judged.returncode == 0, judged.stderr
    found = [row["si_sdr_db"] for row in json.loads((tmp_path / "out.json").read_text())["items"]]
    (during_training,) = metrics(trained, "evaluation")
    assert found == pytest.approx([row["si_sdr_db"] for row in during_training["rows"]], abs=1e-3)


def test_weights_of_another_run_start_a_fresh_one(
    corpora: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    """`--init-from`: the first loss is that of the trained weights, the step and the schedule start anew."""
    values = {**TINY, **corpora, "max_steps": 3, "seed": 1}
    fresh = run_command(*command("python", tmp_path / "fresh", values))
    started = run_command(*command("python", tmp_path / "started", values), "--init-from", str(trained))
    assert (fresh.returncode, started.returncode) == (0, 0), started.stderr
    first, other = (metrics(tmp_path / name, "step")[0] for name in ("fresh", "started"))
    assert (first["step"], first["learning_rate"]) == (other["step"], other["learning_rate"])
    assert first["loss"] != other["loss"]
