"""Peak memory, step time and losses of base_small on one rank, its batch whole and in parts.

python -m bench.bench_parts [--rows 16] [--steps 8]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from typing import Any

from bench.common import (
    OUT,
    REPOSITORY,
    demo_corpora,
    describe_machine,
    read_metrics,
    steps_of,
    train_command,
)

NUM_PARTS = (1, 2, 4)
WARM_STEPS = 2


def run(num_rows: int, num_parts: int, num_steps: int) -> tuple[float, float, list[float]]:
    """Peak memory of the process (MiB), median seconds of a warm step, and the loss of every step."""
    run_dir = OUT / f"parts-{num_parts}"
    shutil.rmtree(run_dir, ignore_errors=True)
    values: dict[str, Any] = {
        **demo_corpora(),
        "batch_size_per_gpu": num_rows // num_parts,
        "gradient_accumulation_steps": num_parts,
        "max_steps": num_steps,
        "warmup_steps": 1,
        "log_every": 1,
        "eval_every": 10 * num_steps,
        "save_every": 10 * num_steps,
        "nj": 0,
        "task.valid_items": 4,
        "task.valid_seconds": 1,
    }
    process = subprocess.Popen(
        train_command(run_dir, values), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"training ended with {process.returncode}; see {run_dir / 'status.json'}")
    steps = steps_of(read_metrics(run_dir))
    seconds = statistics.median(record["step_seconds"] for record in steps[WARM_STEPS:])
    return usage.ru_maxrss / 1024, seconds, [record["loss"] for record in steps]


def main() -> int:
    """Print a line for each number of parts; exit code 1 when a loss is more than 1e-3 from that of whole batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    describe_machine()
    whole: list[float] = []
    furthest = 0.0
    for num_parts in NUM_PARTS:
        peak, seconds, losses = run(options.rows, num_parts, options.steps)
        whole = whole or losses
        distance = max(abs(loss - other) for loss, other in zip(losses, whole, strict=True))
        furthest = max(furthest, distance)
        print(
            f"{num_parts} part(s) of {options.rows // num_parts:3d}: peak {peak:7.0f} MiB, {seconds:6.2f} s a step, "
            f"losses within {distance:.1e} of whole batches",
            flush=True,
        )
    return 0 if furthest <= 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
