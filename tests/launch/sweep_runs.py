"""Runs of a sweep as they lie on disk, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from hparams.load import dump, load
from hparams.sweep import Sweep, read_sweep
from launch.sweep_members import Planned, plan

SWEEP = """\
preset: pedal_lstm
grid:
  task.hidden_size: [8, 16, 32]
  task.model: [lstm, gru]
seeds: [0, 1, 2]
set:
  max_steps: 200
  warmup_steps: 2
"""
RATE_HZ = 8000


def sweep_in(folder: Path, text: str = SWEEP) -> tuple[Sweep, list[Planned]]:
    """A sweep, and its members in `folder`/out."""
    path = folder / "mine.yaml"
    path.write_text(text)
    sweep = read_sweep(path)
    return sweep, plan(sweep, folder / "out", load)


def write_hparams(planned: Planned) -> None:
    """The folder of a run with the values that it was started with."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    (planned.folder / "hparams.yaml").write_text(dump(planned.hp))


def write_status(planned: Planned, state: str, step: int, reason: str = "") -> None:
    """What a run leaves that has come so far."""
    write_hparams(planned)
    status = {"state": state, "step": step, "reason": reason}
    (planned.folder / "status.json").write_text(json.dumps(status))


def write_run(planned: Planned, esr: Sequence[float], examples_per_second: float = 50.0) -> None:
    """A finished run with an evaluation every 100 steps; ten steps are an update of fifty examples."""
    last = 100 * len(esr)
    write_status(planned, "finished", last)
    lines: list[dict[str, Any]] = [
        {
            "kind": "step",
            "step": step,
            "draws": 5 * step,
            "loss": 2.0 / step,
            "esr": 1.0 / step,
            # The first line has the start of everything in it.
            "examples_per_second": 1.0 if step == 10 else examples_per_second,
        }
        for step in range(10, last + 1, 10)
    ]
    for number, value in enumerate(esr, start=1):
        summary = {
            name: {"mean": factor * value, "low": 0, "high": 1} for name, factor in (("esr", 1), ("mae", 10))
        }
        lines.append({"kind": "evaluation", "step": 100 * number, "summary": summary, "rows": []})
    lines.append({"kind": "event", "step": last, "name": "finished", "text": ""})
    (planned.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = 100 * (1 + int(np.argmin(esr)))
    samples = planned.folder / "samples" / f"step-{best:07d}"
    samples.mkdir(parents=True)
    at = np.arange(RATE_HZ) / RATE_HZ
    target = 0.5 * np.sin(2 * np.pi * 200 * at) * (at > 0.5)
    sf.write(samples / "0_target.wav", target, RATE_HZ)
    sf.write(samples / "0_estimate.wav", (1 - min(esr)) * target, RATE_HZ)
