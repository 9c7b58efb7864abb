"""A string by the commands: synthetic notes, training, a stop and going on, judging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.demo_corpora import write_demo_string
from tests.end_to_end.test_main_job import command, metrics, run_command

pytestmark = [pytest.mark.multi, pytest.mark.slow]

PYTHON = command("python", Path(), {})[0]
TINY: dict[str, Any] = {
    "training_seconds": 0.2,
    "batch_size_per_gpu": 2,
    "max_steps": 10,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 10,
    "save_every": 5,
    "task.hidden_size": 4,
    "task.rollout_draws": 20,
    "task.rollout_periods": "[1,5]",
    "task.folds": 8,
    "task.valid_seconds": 1.0,
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("notes")
    write_demo_string(data, num_notes=8)
    return data / "string"


def train(run: Path, notes: Path, launcher: str) -> None:
    done = run_command(*command(launcher, run, {**TINY, "note_dir": notes}, "string_ks"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(notes: Path, tmp_path: Path, launcher: str) -> None:
    """10 steps are 5, a new start from the checkpoint, and 5 more: the same losses, of rollouts that change."""
    run = tmp_path / "run"
    train(run, notes, launcher)
    whole = metrics(run, "step")
    lengths = [record["rollout_samples"] for record in whole]
    assert len(set(lengths)) > 3
    earlier, later = sorted((run / "checkpoints").glob("step-*"))
    for path in later.iterdir():
        path.unlink()
    later.rmdir()
    (run / "checkpoints" / "LATEST").write_text(earlier.name + "\n")
    train(run, notes, launcher)
    assert any(record["name"] == "resumed" for record in metrics(run, "event"))
    assert metrics(run, "step") == whole

    report = tmp_path / "out.json"
    judged = run_command(PYTHON, "launch/evaluate.py", "--run", str(run), "--json", str(report))
    assert judged.returncode == 0, judged.stderr
    (item,) = json.loads(report.read_text())["items"]
    assert item["num_failures"] == 0 and item["f0_error_cents"] < 3
