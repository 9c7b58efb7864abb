"""Training throughput of the pedal task at 32 units on one thread, against a bare nn.LSTM loop of the same shapes.

    python -m bench.bench_pedal_speed [--turns 12] [--hidden 32]

A turn is one batch: 50 segments of 0.5 s, 1000 samples of warm-up, an update every 2048 samples. The bare loop is
written out below: ESR, AdamW, no guard, no clipping, nothing logged; once as it is and once in a process that keeps
freed memory (`enhancer/engine/memory.py`). The trainer's side is `pedal_lstm` with its losses
through the Accelerate backend and the guard. Each side is a process of its own; they take turns, and what counts is
CPU time of the process, so that a busy machine hurts both alike and little.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.common import OUT, REPOSITORY, describe_machine

WANTED = 0.95
WARM_TURNS = 2
RATE_HZ = 44_100
CORPUS = OUT / "speed-pair"


def write_corpus() -> None:
    """Ten seconds of noise through a clipper: what is learned does not matter here."""
    import numpy as np
    import soundfile

    from data_shards.pedal import DevicePair, PedalOptions, build_pedal_corpus

    dry = 0.2 * np.random.default_rng(0).standard_normal(10 * RATE_HZ)
    OUT.mkdir(parents=True, exist_ok=True)
    paths = [OUT / f"speed-{side}.wav" for side in ("dry", "wet")]
    for path, wave in zip(paths, (dry, np.tanh(4 * dry)), strict=True):
        soundfile.write(path, wave, RATE_HZ, "FLOAT")
    build_pedal_corpus([DevicePair(*paths)], CORPUS, PedalOptions(align="off"))


def open_pair(hidden_size: int) -> tuple[Any, Any]:
    """The hyper-parameters and endless batches."""
    from hparams.load import load
    from launch.common import open_data

    hp = load("pedal_lstm", [f"task.hidden_size={hidden_size}", f"pair_dir={CORPUS}"])
    return hp, open_data(hp).from_draw(0)


def bare_side(hidden_size: int) -> Callable[[], None]:
    """A turn of the plain way."""
    import torch
    from torch import nn

    hp, batches = open_pair(hidden_size)
    lstm, linear = nn.LSTM(1, hidden_size), nn.Linear(hidden_size, 1)
    optimizer = torch.optim.AdamW([*lstm.parameters(), *linear.parameters()], lr=hp.max_lr)

    def turn() -> None:
        batch = next(batches)
        dry, wet = batch["dry"].t().unsqueeze(-1), batch["wet"].t()
        warmup, length = hp.task.warmup_samples, hp.task.update_samples
        with torch.no_grad():
            _, state = lstm(dry[:warmup])
        for start in range(warmup, len(dry), length):
            features, state = lstm(dry[start : start + length], state)
            state = tuple(part.detach() for part in state)
            target = wet[start : start + length]
            loss = (target - linear(features).squeeze(-1)).square().mean() / target.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return turn


def trainer_side(hidden_size: int) -> Callable[[], None]:
    """A turn of the trainer: what its loop does with a batch."""
    from enhancer.engine.accelerate_backend import AccelerateBackend, start
    from enhancer.engine.memory import keep_freed_memory
    from enhancer.engine.stop import Stop
    from enhancer.engine.update import StepModules, Update
    from enhancer.tasks import TASKS

    keep_freed_memory()
    hp, batches = open_pair(hidden_size)
    task = TASKS[hp.task.name](hp)
    modules = task.build()
    groups = {name: task.param_groups(name, module) for name, module in modules.items()}
    backend = AccelerateBackend(start(hp), modules, groups, hp)
    update = Update(backend, task.main_module, Stop())

    def turn() -> None:
        update.begin()
        task.step(StepModules(backend.modules, backend.raw_modules), next(batches), update)
        assert not update.skipped, update.skipped

    return turn


def bare_side_with_kept_memory(hidden_size: int) -> Callable[[], None]:
    """The plain way in a process that keeps freed memory, as the trainer does."""
    from enhancer.engine.memory import keep_freed_memory

    keep_freed_memory()
    return bare_side(hidden_size)


SIDES = {"bare": bare_side, "bare-kept": bare_side_with_kept_memory, "trainer": trainer_side}


def serve(side: str, hidden_size: int) -> None:
    """Take a turn for each line that comes in, and tell the CPU seconds it took."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    turn = SIDES[side](hidden_size)
    for _ in sys.stdin:
        started = time.process_time()
        turn()
        print(time.process_time() - started, flush=True)


def main() -> int:
    """Print CPU seconds a turn and the ratio; exit code 1 below the wanted one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.hidden)
        return 0
    describe_machine()
    write_corpus()
    sides = {}
    for side in SIDES:
        command = [
            sys.executable,
            "-m",
            "bench.bench_pedal_speed",
            "--side",
            side,
            "--hidden",
            str(options.hidden),
        ]
        sides[side] = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(WARM_TURNS + options.turns):
        for side, process in sides.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[side].append(float(process.stdout.readline()))
        shown = ", ".join(f"{side} {values[-1]:.3f}" for side, values in seconds.items())
        print(f"turn {number + 1}: {shown} CPU s", flush=True)
    for process in sides.values():
        process.communicate()
    turn = {side: statistics.median(values[WARM_TURNS:]) for side, values in seconds.items()}
    ratio, kept_ratio = (turn[side] / turn["trainer"] for side in ("bare", "bare-kept"))
    for side, value in turn.items():
        print(f"{side:<10} {value:.3f} CPU s a batch of 50 segments of 0.5 s")
    print(f"throughput of the trainer {ratio:.3f} x the bare loop ({WANTED} wanted)")
    print(f"{kept_ratio:.3f} x the bare loop in a process that keeps freed memory, too")
    return 0 if ratio >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
