"""A sweep as a user runs it: a failing member, Ctrl-C, going on, the tables; all by the command."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.data_shards import pedal_audio
from tests.end_to_end.test_main_job import REPOSITORY, run_command

pytestmark = [pytest.mark.multi, pytest.mark.slow]

RATE_HZ = 24_000
# A segment of thirty seconds is longer than the recording: those members fail.
SWEEP = """\
preset: pedal_lstm
grid:
  training_seconds: [0.1, 0.2, 30]
seeds: [0, 1]
set:
  task.hidden_size: 4
  task.warmup_samples: 200
  batch_size_per_gpu: 4
  warmup_steps: 2
  max_steps: 12
  max_lr: 1e-2
  log_every: 2
  eval_every: 6
  save_every: 6
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus `pair`, test files `riffs` and the sweep `mine.yaml`."""
    folder = tmp_path_factory.mktemp("sweep")
    dry = pedal_audio.guitar(4.0, RATE_HZ, 0)
    for name, wave in (("dry", dry), ("wet", 0.8 * np.tanh(4 * dry))):
        sf.write(folder / f"{name}.wav", wave, RATE_HZ, "FLOAT")
    (folder / "riffs").mkdir()
    riff = pedal_audio.guitar(1.0, RATE_HZ, 1)
    sf.write(folder / "riffs" / "riff-input.wav", riff, RATE_HZ, "FLOAT")
    sf.write(folder / "riffs" / "riff-target.wav", 0.8 * np.tanh(4 * riff), RATE_HZ, "FLOAT")
    done = run_command(
        sys.executable, "launch/build_shards.py", "pedal", "--dry", str(folder / "dry.wav"), "--wet",
        str(folder / "wet.wav"), "--output", str(folder / "pair"), "--valid-seconds", "1", "--align", "off",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "mine.yaml").write_text(SWEEP)
    return folder


def command(place: Path, output: Path, *words: str, name: str = "mine") -> list[str]:
    return [
        sys.executable, "launch/sweep.py", str(place / f"{name}.yaml"), "--output", str(output), *words,
        "--set", f"pair_dir={place / 'pair'}",
    ]  # fmt: skip


def run_sweep(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Several trainings one after another, so with more time than one of them has."""
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def status(run: Path) -> dict[str, Any]:
    path = run / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "", "step": 0}


def test_a_failing_member_stands_in_the_table_and_finished_ones_are_skipped(
    place: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = run_sweep(command(place, output, "--jobs", "2", "--files", str(place / "riffs")))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "training_seconds=30, seed=1: failed: " in done.stdout
    members = rows(output / "members.csv")
    assert [row["state"] for row in members] == ["finished", "finished", "failed"] * 2
    assert all("training_seconds=30" in row["reason"] for row in members[2::3])
    # The value is the lowest ESR that the run itself evaluated.
    for row in members[:2]:
        lines = [
            json.loads(line) for line in (output / row["run"] / "metrics.jsonl").read_text().splitlines()
        ]
        judged = [line["summary"]["esr"]["mean"] for line in lines if line["kind"] == "evaluation"]
        assert float(row["esr"]) == min(judged) and len(judged) >= 2
        sound, rate_hz = sf.read(output / row["run"] / "files" / "riff-estimate.wav")
        assert (rate_hz, len(sound)) == (RATE_HZ, RATE_HZ)
    settings = rows(output / "results.csv")
    assert [row["finished"] for row in settings] == ["2", "2", "0"]
    assert all(float(row["seconds_per_epoch"]) > 0 for row in settings[:2])
    (over_seeds,) = [row for row in rows(output / "pairs.csv") if row["over"] == "seeds" and row["p"]]
    assert (over_seeds["pairs"], over_seeds["p"]) == ("2", over_seeds["p_holm"])
    figures = {path.name for path in (output / "figures").iterdir()}
    assert {
        "esr-against-training_seconds.png",
        "curves.png",
        "waves-riff.png",
        "waves-validation.png",
    } <= figures

    before = {row["run"]: status(output / row["run"])["updated"] for row in members[:2]}
    again = run_sweep(command(place, output))
    assert again.returncode == 1 and "4 of 6 members are done" in again.stdout
    assert again.stdout.count("started ") == 2
    assert before == {name: status(output / name)["updated"] for name in before}


def start_long(place: Path, output: Path) -> tuple[subprocess.Popen[str], Path]:
    """A sweep of two members that would train for hours, in the middle of the first; and that one's folder."""
    text = (
        SWEEP.replace(", 30", "")
        .replace("seeds: [0, 1]", "seeds: [0]")
        .replace("max_steps: 12", "max_steps: 100000")
    )
    (place / "long.yaml").write_text(text.replace("every: 6", "every: 50000"))
    process = subprocess.Popen(
        command(place, output, name="long"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = output / "training_seconds=0.1,seed=0"
    deadline = time.monotonic() + 300
    while status(first)["step"] < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return process, first


def go_on(
    place: Path, output: Path, first: Path, steps: int, reached: int
) -> subprocess.CompletedProcess[str]:
    """The same command to the end of `steps`; the first member began where it was."""
    done = run_sweep([*command(place, output, name="long"), f"max_steps={steps}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["state"] for row in rows(output / "members.csv")] == ["finished", "finished"]
    events = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert any(f"going on from step-{reached:07d}" in line.get("text", "") for line in events)
    return done


def test_ctrl_c_saves_and_the_same_command_goes_on(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process, first = start_long(place, output)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 75, told
    reached = status(first)
    assert reached["state"] == "preempted" and reached["step"] >= 4
    assert not (output / "training_seconds=0.2,seed=0").exists() and not (output / "results.csv").exists()
    go_on(place, output, first, reached["step"] + 10, reached["step"])


def test_members_of_a_killed_sweep_save_and_end_and_the_same_command_goes_on(
    place: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process, first = start_long(place, output)
    second = run_sweep(command(place, output, name="long"))
    assert second.returncode == 2, second.stdout + second.stderr
    assert f"another sweep works in {output} (process {process.pid} on " in second.stderr
    assert process.poll() is None and status(first)["state"] == "running"

    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while status(first)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    reached = status(first)
    assert (reached["state"], reached["reason"]) == ("preempted", "the launcher is gone")
    go_on(place, output, first, reached["step"] + 10, reached["step"])
