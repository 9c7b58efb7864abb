"""Validation ESR of a pedal preset against training time on a real pair.

    python -m bench.bench_pedal [--preset pedal_wavenet] [--minutes 10] [--ranks 1] [--set key=value ...]

The pair is the Boss DS-1 of the optional folder of real recordings ($WAVEWRIGHT_SHARED, default ../shared): the first
18 s train, the last 3 s validate. Prints ESR over time, the time to an ESR of 0.03, and the best.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.common import OUT, REPOSITORY, describe_machine, train_command
from launch.build_shards import main as build_shards

WANTED = {"pedal_lstm": 0.010, "pedal_lstm_cpu": 0.010, "pedal_wavenet": 0.005}
THRESHOLD = 0.03


def real_audio(kind: str) -> Path:
    """A folder of the optional real recordings. Exits where it is not there."""
    folder = Path(os.environ.get("WAVEWRIGHT_SHARED", REPOSITORY.parent / "shared")) / "audio" / kind
    if not folder.is_dir():
        sys.exit(f"no recordings at {folder}; set WAVEWRIGHT_SHARED to the folder above audio/{kind}")
    return folder


def corpus() -> Path:
    """The DS-1 as a corpus under bench/out. Exits where there is no recording."""
    folder = real_audio("pedal")
    dry, wet = folder / "ds1-val-input.wav", folder / "ds1-val-target.wav"
    command = [
        "pedal",
        "--dry",
        str(dry),
        "--wet",
        str(wet),
        "--output",
        str(OUT / "ds1"),
        "--valid-seconds",
        "3",
    ]
    if code := build_shards(command):
        sys.exit(code)
    return OUT / "ds1"


def main() -> int:
    """Train, asking it to stop when the time is over, and print the curve; exit code 1 above the wanted ESR."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=sorted(WANTED), default="pedal_wavenet")
    add_training_arguments(parser)
    options = parser.parse_args()
    describe_machine()
    run_dir = OUT / options.preset
    started = train_for(options, run_dir, options.preset, {"pair_dir": corpus()})
    return report(run_dir, started, WANTED[options.preset])


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train_for` takes."""
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further values of the run")


def train_for(options: argparse.Namespace, run_dir: Path, preset: str, values: dict[str, Any]) -> float:
    """Train a fresh run for so many minutes; the time it was started at. Exits where training fails."""
    shutil.rmtree(run_dir, ignore_errors=True)
    values = {**values, **dict(text.split("=", 1) for text in options.set)}
    command = train_command(run_dir, values, num_ranks=options.ranks, preset=preset)
    started = time.time()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if time.time() - started > 60 * options.minutes:
            (run_dir / "STOP").touch()
        time.sleep(1)
    # Launchers turn 75 into a code of their own.
    if json.loads((run_dir / "status.json").read_text())["state"] not in ("finished", "preempted"):
        sys.exit(f"training ended with {process.returncode}")
    return started


def report(run_dir: Path, started: float, wanted: float) -> int:
    """Print ESR over time from the run's metrics; 0 where the best is as wanted."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curve = [
        (record["unix_seconds"] - started, record["step"], record["summary"]["esr"]["mean"])
        for record in records
        if record["kind"] == "evaluation"
    ]
    if not curve:
        sys.exit("no evaluation before the time was over; lower eval_every")
    for seconds, step, esr in curve:
        print(f"{seconds:6.0f} s  step {step:6d}  validation ESR {esr:.4f}")
    best = min(esr for _, _, esr in curve)
    reached = [seconds for seconds, _, esr in curve if esr <= THRESHOLD]
    when = f"after {reached[0]:.0f} s" if reached else "not reached"
    print(f"best validation ESR {best:.4f} ({wanted:g} wanted); {THRESHOLD:g}: {when}")
    return 0 if best <= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
