"""How fast a string is made and learned at 2 x 64 tanh, on one core.

    python -m bench.bench_string_speed [--eager-seconds 0.005] [--run runs/string_real]

Prints the times of one string without gradients, and of a rollout of 1 s, batch 32, forward and backward, beside the
same loop sample by sample in eager torch with autograd. Of that the time per sample is measured, by the difference of
rollouts of `--eager-seconds` and twice as long, which favours it: what autograd keeps of a whole second does not fit
into caches. All strings have one delay, so that its taps are plain indexing.

Also of 8 s of a string of two stages whose T60 is told, trial runs included; and, with --run, of the whole command that
makes 8 s out of 0.1 s of noise, from the start of Python on.

Times are CPU times of this process, so that others on the machine do not count.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from bench.common import describe_machine
from enhancer.models import string_reference
from enhancer.models.string import PluckedString
from enhancer.models.string_loop import LEARNED, Loop, generate, rollout

RATE_HZ, BATCH, HISTORY = 44_100, 32, 402
LONG_SECONDS = 8.0
LEAST_SPEEDUP = 20.0


def main() -> int:
    """Exit code 1 where a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--eager-seconds", type=float, default=0.005)
    parser.add_argument(
        "--run", type=Path, help="a run folder of a string, for the time of the whole command"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    describe_machine()
    one, history = example(1)
    seconds = best_of(4, lambda: generate(one, history, RATE_HZ))
    print(f"1 s of one string: {seconds:.4f} s of CPU time, {1 / seconds:.0f} x real time (1 wanted)")
    tuned = tuned_seconds()
    print(
        f"{LONG_SECONDS:g} s of one string of two stages, tuned: {tuned:.2f} s of CPU time, {_factor(tuned)}"
    )
    whole = 0.0 if options.run is None else command_seconds(options.run)
    if whole:
        print(
            f"the command that makes as much with {options.run}: {whole:.2f} s of CPU time, {_factor(whole)}"
        )
    many, histories = example(BATCH)
    compiled = best_of(3, lambda: learn(rollout, many, histories, RATE_HZ))
    print(f"1 s of {BATCH} strings, forward and backward, compiled: {compiled:.2f} s")
    count = round(options.eager_seconds * RATE_HZ)
    short, long = (
        best_of(1, lambda n=n: learn(string_reference.rollout, many, histories, n))
        for n in (count, 2 * count)
    )
    eager = (long - short) * RATE_HZ / count
    print(f"the same in eager torch: {eager:.1f} s; {eager / compiled:.1f} x ({LEAST_SPEEDUP:.0f} wanted)")
    is_real_time = seconds < 1 and max(tuned, whole) < LONG_SECONDS
    return 0 if is_real_time and eager / compiled >= LEAST_SPEEDUP else 1


def tuned_seconds() -> float:
    """CPU seconds of what `apply.py` does once all is loaded."""
    torch.manual_seed(0)
    model = PluckedString(num_layers=2, hidden_size=64, has_two_stages=True)
    torch.nn.init.normal_(model.output.weight, std=0.05)
    history, one = 0.1 * torch.randn(1, 2205), torch.ones(1)
    with torch.no_grad():
        return best_of(
            2,
            lambda: model(
                history,
                round(LONG_SECONDS * RATE_HZ),
                82.4 * one,
                one,
                0.2 * one,
                4 * torch.ones(1, 9),
                0 * one,
            ),
        )


def command_seconds(run: Path) -> float:
    """CPU seconds of `launch/apply.py`, from its start to its end; the second of two runs, when code is cached."""
    used = 0.0
    with tempfile.TemporaryDirectory() as folder:
        pluck = Path(folder) / "pluck.wav"
        noise = np.random.default_rng(0).standard_normal(RATE_HZ // 10)
        soundfile.write(pluck, 0.1 * noise, RATE_HZ, subtype="FLOAT")
        words = ["--run", run, "--excite", pluck, "--f0", 82.4, "--seconds", LONG_SECONDS, "--t60", 4]
        command = [sys.executable, "launch/apply.py", *map(str, words), "--output", f"{folder}/e2.wav"]
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used


def _factor(seconds: float) -> str:
    return f"{seconds / LONG_SECONDS:.3f} s a second, {LONG_SECONDS / seconds:.1f} x real time (1 wanted)"


def example(batch: int) -> tuple[Loop, Tensor]:
    """A loop of 2 x 64 tanh with all inputs, and a history."""
    torch.manual_seed(0)
    model = PluckedString(num_layers=2, hidden_size=64, has_quarter_taps=True)
    torch.nn.init.normal_(model.output.weight, std=0.05)
    history = 0.1 * torch.randn(batch, HISTORY)
    same = torch.ones(batch)
    with torch.no_grad():
        loop = model.loop(history, 220 * same, same, 0.2 * same, 2 * torch.ones(batch, 9), 0 * same)
    return loop, history


def learn(run: Callable[[Loop, Tensor, int], Tensor], loop: Loop, history: Tensor, count: int) -> None:
    """A rollout, forward and backward."""
    leaves = {name: getattr(loop, name).clone().requires_grad_() for name in LEARNED}
    run(replace(loop, **leaves), history, count).square().mean().backward()


def best_of(repeats: int, call: Callable[[], object]) -> float:
    """Least CPU time of some calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    raise SystemExit(main())
