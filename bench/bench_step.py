"""Step time of the trainer against a bare PyTorch loop of the same model, loss and data, and the wait for data.

    python -m bench.bench_step [--steps 40] [--rounds 3]

The bare loop is written out below: no guard, no logging, no checkpoints. Loops take turns in rounds, and the median
step of all rounds counts, so that a busy machine hurts all alike.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time

from bench.common import OUT, REPOSITORY, demo_corpora, describe_machine, steps_of, train

WARM_STEPS = 5
LIMITS = {"accelerate": 1.05, "deepspeed": 1.15}
WAIT_LIMIT = 0.05
NUM_WORKERS = 2


def bare_loop(num_steps: int) -> None:
    """Train base_small the plain way and print the seconds of each step, data wait included."""
    import torch

    from data_shards.stream import open_stream
    from enhancer.tasks import TASKS
    from hparams.load import load

    hp = load("base_small", [f"{key}={value}" for key, value in demo_corpora().items()])
    stream = open_stream(hp, num_workers=NUM_WORKERS)
    task = TASKS[hp.task.name](hp, stream.constants())
    torch.manual_seed(hp.seed)
    model = task.build()[task.main_module]
    optimiser = torch.optim.AdamW(model.parameters(), lr=hp.max_lr, weight_decay=0.0)
    batches = stream.from_draw(0)
    for _ in range(num_steps):
        started = time.perf_counter()
        mixed = task.mix(next(batches))
        mixture, target = (wave[:, task.lead_samples :] for wave in (mixed.mixture, mixed.target))
        loss, _ = task.loss(model(mixture), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), hp.gradient_clipping)
        optimiser.step()
        print(time.perf_counter() - started)
    batches.close()


def run_bare(num_steps: int) -> list[float]:
    """Seconds of the warm steps of the bare loop, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.bench_step", "--bare", "--steps", str(num_steps)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line) for line in done.stdout.split()][WARM_STEPS:]


def run_trainer(backend: str, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds of the warm steps of the trainer, waiting included, and the waiting in them."""
    run_dir = OUT / f"step-{backend}"
    shutil.rmtree(run_dir, ignore_errors=True)
    values = {
        **demo_corpora(),
        "max_steps": num_steps,
        "warmup_steps": 1,
        "log_every": 1,
        "nj": NUM_WORKERS,
        "eval_every": 10 * num_steps,
        "save_every": 10 * num_steps,
        "task.valid_items": 4,
    }
    warm = steps_of(train(run_dir, values, backend=backend))[WARM_STEPS:]
    waits = [record["data_wait_seconds"] for record in warm]
    return [record["step_seconds"] + wait for record, wait in zip(warm, waits, strict=True)], waits


def main() -> int:
    """Print the medians and ratios; exit code 1 when a ratio is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare_loop(options.steps)
        return 0
    describe_machine()
    demo_corpora()
    bare: list[float] = []
    times: dict[str, list[float]] = {backend: [] for backend in LIMITS}
    waits: dict[str, list[float]] = {backend: [] for backend in LIMITS}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", flush=True)
        bare += run_bare(options.steps)
        for backend in LIMITS:
            seconds, waiting = run_trainer(backend, options.steps)
            times[backend] += seconds
            waits[backend] += waiting
    base = statistics.median(bare)
    print(f"bare loop                 {base * 1e3:8.1f} ms a step")
    is_good = True
    for backend, limit in LIMITS.items():
        step = statistics.median(times[backend])
        share = sum(waits[backend]) / sum(times[backend])
        print(
            f"{backend:<11} backend       {step * 1e3:8.1f} ms a step, {step / base:.3f} x bare ({limit} wanted)"
        )
        print(
            f"{backend:<11} data wait     {share:8.2%} of it ({WAIT_LIMIT:.0%} wanted, {NUM_WORKERS} workers)"
        )
        is_good = is_good and step / base <= limit and share < WAIT_LIMIT
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
