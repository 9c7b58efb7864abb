"""How fast a string is made and learned at 2 x 64 tanh, on one core.

    python -m bench.bench_string_speed [--eager-seconds 0.005]

Prints the times of one string without gradients, and of a rollout of 1 s, batch 32, forward and backward, beside the
same loop sample by sample in eager torch with autograd. Of that the time per sample is measured, by the difference of
rollouts of `--eager-seconds` and twice as long, which favours it: what autograd keeps of a whole second does not fit
into caches. All strings have one delay, so that its taps are plain indexing.

Times are CPU times of this process, so that others on the machine do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.common import describe_machine
from enhancer.models import string_reference
from enhancer.models.string import PluckedString
from enhancer.models.string_loop import LEARNED, Loop, generate, rollout

RATE_HZ, BATCH, HISTORY = 44_100, 32, 402
LEAST_SPEEDUP = 20.0


def main() -> int:
    """Exit code 1 where a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--eager-seconds", type=float, default=0.005)
    options = parser.parse_args()
    torch.set_num_threads(1)
    describe_machine()
    one, history = example(1)
    seconds = best_of(4, lambda: generate(one, history, RATE_HZ))
    print(f"1 s of one string: {seconds:.4f} s of CPU time, {1 / seconds:.0f} x real time (1 wanted)")
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
    return 0 if seconds < 1 and eager / compiled >= LEAST_SPEEDUP else 1


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
