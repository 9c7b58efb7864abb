"""The long form: plays rounds one after another, prints a table, and ends with 1 where any of them has failed."""

from __future__ import annotations

import argparse
import importlib
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.kinds import FAULTS

if TYPE_CHECKING:
    from tests.faults.rounds import Report

_SLOW_IMPORTS = (
    "accelerate",
    "deepspeed",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "enhancer.engine.accelerate_backend",
    "enhancer.engine.deepspeed_backend",
    "enhancer.tasks",
    "launch.train",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", help="of all rounds; default: a random one, which is printed")
    parser.add_argument("--rounds", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first round (%(default)s)")
    parser.add_argument("--kind", choices=sorted(FAULTS), help="only this fault")
    options = parser.parse_args(arguments)
    seed = options.seed or str(random.SystemRandom().randrange(10**6))
    _import_everything()
    from tests.faults.rounds import can_mount, play
    from tests.faults.runs import Runs

    kinds = [options.kind] if options.kind else list(FAULTS)
    if not can_mount():
        kinds = [name for name in kinds if FAULTS[name].needs != "disk"]
        print("no file system can be made here, so no disk is filled: that takes the rights of root")
    reports: list[Report] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        runs = Runs(Path(work))
        for number in range(options.first, options.first + options.rounds):
            report = play(number, seed, runs, kinds)
            reports.append(report)
            _tell(report, seed, options.kind)
    print(table(reports))
    failed = sum(bool(report.problems) for report in reports)
    print(
        f"seed {seed}: {len(reports) - failed} of {len(reports)} rounds survived, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


def _tell(report: Report, seed: str, kind: str | None) -> None:
    word = "FAILED" if report.problems else "ok"
    print(
        f"{report.number:4} {report.seconds:5.1f} s {word:6} {report.case}: "
        f"{'; '.join(f'{name} -> {end}' for name, end in zip(report.kinds, report.endings, strict=False))}",
        flush=True,
    )
    if report.problems:
        extra = f" --kind '{kind}'" if kind else ""
        print("  " + "\n  ".join(report.problems))
        print("  " + "\n  ".join(report.story))
        print(
            f"  again: python -m tests.faults --seed {seed} --first {report.number} --rounds 1{extra}",
            flush=True,
        )


def table(reports: Sequence[Report]) -> str:
    """Faults by kind: how many, how the runs ended by them, rounds with a problem."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failed: Counter[str] = Counter()
    for report in reports:
        for kind, ending in zip(report.kinds, report.endings, strict=False):
            counts[kind][ending] += 1
            failed[kind] += bool(report.problems)
    lines = [f"{'fault':<32} {'count':>5} {'failed':>6}  ended"]
    for kind in FAULTS:
        if kind in counts:
            ended = ", ".join(f"{word} {count}" for word, count in counts[kind].most_common())
            lines.append(f"{kind:<32} {sum(counts[kind].values()):>5} {failed[kind]:>6}  {ended}")
    return "\n".join(lines)


def _import_everything() -> None:
    """What ranks need, before they are forked."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in _SLOW_IMPORTS:
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
