"""Tiny runs of base_small on several machines: their corpora, their values, and what they leave."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from safetensors.numpy import load_file

from data_shards.build import build_corpus
from data_shards.options import BuildOptions

REPOSITORY = Path(__file__).resolve().parents[2]
SUBMIT = REPOSITORY / "launch" / "submit.py"
RATE_HZ = 44_100
TINY = {
    "task.width": 1,
    "task.lead_seconds": 0,
    "task.valid_items": 2,
    "task.valid_seconds": 0.25,
    "training_seconds": 0.25,
    "valid_fraction": 0.4,
    "batch_size_per_gpu": 4,
    "max_steps": 30,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 30,
    "save_every": 10,
    "nj": 0,
}


def build_corpora(root: Path) -> dict[str, Path]:
    """fg, bg and rir corpora of noisy tones below `root`, as values for `--set`."""
    rng = np.random.default_rng(7)
    at = np.arange(RATE_HZ) / RATE_HZ
    waves: dict[str, Callable[[], np.ndarray]] = {
        "fg": lambda: 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at),
        "bg": lambda: 0.1 * rng.standard_normal(RATE_HZ),
        "rir": lambda: np.exp(-at[:8000] * 20) * rng.standard_normal(8000) * 0.1 + (at[:8000] == 0),
    }
    for kind, wave in waves.items():
        (root / "audio" / kind).mkdir(parents=True)
        for number in range(6):
            soundfile.write(root / f"audio/{kind}/{number}.wav", wave().clip(-1, 1), RATE_HZ)
        build_corpus(kind, [root / "audio" / kind], root / kind, BuildOptions(kind))
    return {f"{kind}_dir": root / kind for kind in waves}


def submit_words(place: str, run: Path, values: dict[str, Any], *words: str) -> list[str]:
    """The command that submits a run of base_small with `values`."""
    settings = [f"{key}={value}" for key, value in {**TINY, **values}.items()]
    common = ["--hparams", "base_small", "--run-dir", str(run), "--set", *settings]
    return [sys.executable, str(SUBMIT), place, *words, *common]


def environment(**values: str) -> dict[str, str]:
    """One thread each, and this repository before an installed one."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **values}


def status(run: Path) -> dict[str, Any]:
    """status.json of a run; empty where there is none yet."""
    path = run / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind without what the clock decides."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("_seconds", "_per_second")
    return [
        {key: value for key, value in record.items() if not key.endswith(clock)}
        for record in records
        if record["kind"] == kind
    ]


def assert_same_run(found: Path, expected: Path) -> None:
    """Both have the same steps, evaluations and final weights, bit for bit."""
    for kind in ("step", "evaluation"):
        assert metrics(found, kind) == metrics(expected, kind)
    for name in ("denoiser.safetensors", "denoiser.average.safetensors"):
        last = f"checkpoints/step-{TINY['max_steps']:07d}/{name}"
        ours, theirs = load_file(found / last), load_file(expected / last)
        assert ours.keys() == theirs.keys() and len(ours) > 10
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=f"{name}: {key}")


def alive(run: Path) -> list[int]:
    """Processes whose command line names the run folder, but for the one asking."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if str(run) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def wait_until(condition: Callable[[], Any], seconds: float, what: Callable[[], str]) -> None:
    """Return when `condition()` holds; fail, telling `what()`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what()}"
        time.sleep(0.25)
