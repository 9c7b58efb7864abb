"""The long form: starts workers, goes on after one that died, prints counts, and ends with 1 for any wrong outcome."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import TARGETS, shares

ROOT = Path(__file__).resolve().parents[2]
Job = tuple[str, int, int]
"""Target, number of the first input, how many."""


@dataclass
class Result:
    """Outcomes by target, and what was wrong: (target, number, text)."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[tuple[str, int, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, target: str, number: int, outcome: str) -> None:
        """One input was read."""
        word, _, text = outcome.partition(" ")
        if target not in self.outcomes:
            print(f"{time.monotonic() - self.started:6.0f} s  {target}", file=sys.stderr, flush=True)
        self.outcomes.setdefault(target, Counter())[word] += 1
        if text:
            self.wrong.append((target, number, json.loads(text)))

    @property
    def total(self) -> int:
        """Inputs read."""
        return sum(sum(counts.values()) for counts in self.outcomes.values())


def run(jobs: Sequence[Job], seed: str) -> Result:
    """Read all inputs; a worker that dies is named with its input, and another one goes on behind it."""
    result, left = Result(), list(jobs)
    while left:
        name, number, ending = _run_worker(left, seed, result)
        if ending is None:
            break
        result.add(name, number, "WRONG " + json.dumps(ending))
        while left[0][0] != name:
            left.pop(0)
        _, first, count = left.pop(0)
        if first + count > number + 1:
            left.insert(0, (name, number + 1, first + count - number - 1))
    return result


def _run_worker(jobs: Sequence[Job], seed: str, result: Result) -> tuple[str, int, str | None]:
    """The last input begun, and how the worker died; None where it came to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if Path("/dev/shm").is_dir():
        environment["TMPDIR"] = "/dev/shm"  # What is written is flushed to the disk each time.
    command = [sys.executable, "-m", "tests.fuzz.worker", json.dumps(jobs), seed]
    name, number, is_open = "", -1, False
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as worker,
    ):
        assert worker.stdout is not None
        for line in worker.stdout:
            if is_open:
                result.add(name, number, line.strip())
            else:
                name, text = line.split()
                number = int(text)
            is_open = not is_open
        code = worker.wait()
        errors.seek(0)
        said = errors.read()[-3000:]
    if code == 0 and not is_open:
        return name, number, None
    if not is_open:
        raise RuntimeError(f"the worker ended with {code} between two inputs:\n{said}")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return name, number, f"the worker died of {how}{' (a hang)' if code == -signal.SIGALRM else ''}\n{said}"


def table(result: Result) -> str:
    """Counts by target and outcome."""
    lines = []
    for name, counts in result.outcomes.items():
        words = ", ".join(f"{word} {count}" for word, count in counts.most_common())
        lines.append(f"{name:<18} {sum(counts.values()):>6}  {words}")
    return "\n".join(lines)


def report(result: Result, seed: str) -> int:
    """Print the counts; the exit code."""
    print(table(result))
    # One of each kind: a defect is met many times.
    kinds = {
        (name, text.strip().rpartition("\n")[2]): (name, number, text)
        for name, number, text in result.wrong[::-1]
    }
    for name, number, text in kinds.values():
        print(
            f"\n-- again: python -m tests.fuzz --seed {seed} --target {name} --first {number} --count 1\n{text}"
        )
    print(f"\nseed {seed}: {result.total} inputs, {len(result.wrong)} without a typed error")
    return 1 if result.wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", default="0", help="of all inputs (%(default)s)")
    parser.add_argument("--count", type=int, default=20_000, help="inputs in all (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only these; default: all")
    args = parser.parse_args()
    counts = shares(args.target or list(TARGETS), args.count)
    return report(run([(name, args.first, count) for name, count in counts.items()], args.seed), args.seed)


if __name__ == "__main__":
    sys.exit(main())
