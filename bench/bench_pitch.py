"""What a small pitch preset repairs after some time of training on real recordings, and the wait for data meanwhile.

    python -m bench.bench_pitch [--minutes 60] [--preset pitch_spec_small]
    python -m bench.bench_pitch --minutes 0                  # judge as far as it has come

Builds pairs of the optional folder of real recordings ($WAVEWRIGHT_SHARED, default ../shared), shifted by Signalsmith
and by a plain phase vocoder, trains, stops when the time is over, and judges the best checkpoint against doing nothing.
Called again it goes on with its run, so that the time may come in pieces.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.common import OUT, REPOSITORY, describe_machine, read_metrics, steps_of, train_command
from data_shards.build import build_corpus
from data_shards.options import BuildOptions
from data_shards.pitch_stream import open_pitch_stream
from data_shards.shifts import ShiftOptions
from enhancer.engine.evaluate import groups_of_task, summarise
from enhancer.inference import load_run
from enhancer.tasks import TASKS
from launch.evaluate import evaluate

ENGINES = ("signalsmith", "phase_vocoder")
COPIES, SEGMENT_SECONDS, VALID_FRACTION = 4, 10.0, 0.25
WAIT_LIMIT = 0.05
NUM_WORKERS = 2
WANTED = ("log_mel_improvement_db", "log_spectral_improvement_db")


def real_pairs() -> Path:
    """The corpus under bench/out. Exits with 2 where there are no recordings."""
    audio = Path(os.environ.get("WAVEWRIGHT_SHARED", REPOSITORY.parent / "shared")) / "audio" / "fg"
    if not audio.is_dir():
        print(
            f"no real recordings at {audio}; set WAVEWRIGHT_SHARED to the folder above audio/fg",
            file=sys.stderr,
        )
        sys.exit(2)
    shift = ShiftOptions((-12, 12), ENGINES, COPIES)
    options = BuildOptions("pitch", segment_seconds=SEGMENT_SECONDS, shift=shift, workers=1)
    build_corpus("pitch", [audio], OUT / "pitch" / "pairs", options)
    return OUT / "pitch" / "pairs"


def train_for(run_dir: Path, preset: str, minutes: float, max_steps: int) -> None:
    """Train, or go on with the run, and ask it to stop when the time is over."""
    values = {
        "pair_dir": real_pairs(),
        "valid_fraction": VALID_FRACTION,
        "max_steps": max_steps,
        "eval_every": 200,
        "save_every": 50,
        "nj": NUM_WORKERS,
    }
    process = subprocess.Popen(train_command(run_dir, values, preset=preset), cwd=REPOSITORY)
    end = time.monotonic() + 60 * minutes
    while process.poll() is None:
        if time.monotonic() > end:
            (run_dir / "STOP").touch()
        time.sleep(1)


def say_training(run_dir: Path) -> bool:
    """Print how long it trained and how much of it was waiting for data; whether that is little enough."""
    steps = steps_of(read_metrics(run_dir))
    waits = sum(record["data_wait_seconds"] for record in steps)
    times = [record["step_seconds"] for record in steps]
    share = waits / (sum(times) + waits)
    total, median = (sum(times) + waits) / 60, 1e3 * statistics.median(times)
    print(
        f"{len(steps)} steps in {total:.1f} min, median {median:.0f} ms a step; "
        f"waiting for data {share:.2%} of it ({WAIT_LIMIT:.0%} wanted, {NUM_WORKERS} workers)"
    )
    return share < WAIT_LIMIT


def judge(run_dir: Path) -> bool:
    """Print the improvements over the unrepaired input; whether those wanted are above zero with their intervals."""
    run = load_run(run_dir)
    rows = evaluate(run, open_pitch_stream(run.hp, batch_size=4, num_workers=0))
    print(f"{run.checkpoint.name}, {len(rows)} validation items of {run.hp.task.valid_seconds:g} s")
    summary = summarise(rows)
    for name, found in summary.items():
        print(f"{name:<28} {found.mean:7.3f} ({found.low:.3f} .. {found.high:.3f})")
    for group in groups_of_task(TASKS["pitch"], rows):
        shown = ", ".join(
            f"{each.mean:.3f} ({each.low:.3f} .. {each.high:.3f})" for each in group.summary.values()
        )
        print(f"{group.kind} {group.name} ({group.count}): {shown}")
    return all(summary[name].low > 0 for name in WANTED)


def main() -> int:
    """Train and judge; exit code 1 when something is short of what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--max-steps", type=int, default=8000, help="steps the learning rate is planned for")
    parser.add_argument("--preset", default="pitch_wave_small")
    options = parser.parse_args()
    run_dir = OUT / "pitch" / options.preset
    describe_machine()
    if options.minutes > 0:
        train_for(run_dir, options.preset, options.minutes, options.max_steps)
    is_fed = say_training(run_dir)
    return 0 if judge(run_dir) and is_fed else 1


if __name__ == "__main__":
    sys.exit(main())
