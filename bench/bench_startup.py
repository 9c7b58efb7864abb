"""Seconds from process start to the first finished step of base_small, warm: python -m bench.bench_startup [--rounds 3]

A first start of each kind is thrown away, so that files are in the page cache; the median of the rest counts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time

from bench.common import OUT, demo_corpora, describe_machine, steps_of, train

LIMITS = {"accelerate": 6.0, "deepspeed": 15.0}


def first_step_seconds(backend: str) -> float:
    """Seconds until the record of step 1 was written."""
    run_dir = OUT / f"startup-{backend}"
    shutil.rmtree(run_dir, ignore_errors=True)
    values = {
        **demo_corpora(),
        "max_steps": 2,
        "warmup_steps": 1,
        "log_every": 1,
        "eval_every": 100,
        "save_every": 100,
        "task.valid_items": 4,
    }
    started = time.time()
    return steps_of(train(run_dir, values, backend=backend))[0]["unix_seconds"] - started


def main() -> int:
    """Print the medians; exit code 1 when one is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    describe_machine()
    demo_corpora()
    is_good = True
    for backend, limit in LIMITS.items():
        rounds = [first_step_seconds(backend) for _ in range(options.rounds + 1)][1:]
        seconds = statistics.median(rounds)
        all_of_them = ", ".join(f"{value:.1f}" for value in rounds)
        print(
            f"{backend:<11} first step after {seconds:5.1f} s (at most {limit:g} wanted; rounds: {all_of_them})",
            flush=True,
        )
        is_good = is_good and seconds <= limit
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
