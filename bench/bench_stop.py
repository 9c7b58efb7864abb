"""Seconds from a request or a fault to a run that has ended, base_small on two ranks under `deepspeed`.

    python -m bench.bench_stop [--rounds 3]

SIGTERM to the whole process group, as a container's init or a job manager sends it, in a step and in an evaluation, to
the `deepspeed` runner alone and to its launch process, and a STOP file: until the checkpoint stands and every process,
launchers too, is gone. A rank that is killed or frozen, at the default limits: until the run has ended with its reason
and every process is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.common import OUT, REPOSITORY, demo_corpora, describe_machine, train_command

STOP_LIMIT, FAULT_LIMIT = 10.0, 30.0
STEPS_BEFORE = 5
VALUES: dict[str, Any] = {
    "max_steps": 100_000,
    "log_every": 1,
    "eval_every": 100_000,
    "save_every": 100_000,
}
EVALUATING = {"eval_every": STEPS_BEFORE, "task.valid_items": 400}


def rank_beat(run_dir: Path, rank: int) -> dict[str, Any]:
    """The last sign of life of `rank`."""
    return json.loads((run_dir / "heartbeats" / f"rank{rank:05d}.json").read_text())


def launch_pid(runner: int) -> int:
    """The process between the `runner` and the ranks."""
    (launch,) = psutil.Process(runner).children()
    return launch.pid


@dataclass(frozen=True)
class Case:
    """What is done to a run in mid-training, and what must come of it."""

    act: Callable[[int, Path], None]
    """Called with the process of the runner, which leads the group, and the run folder."""
    state: str = "preempted"
    exit_code: int = 75
    limit: float = STOP_LIMIT
    is_evaluating: bool = False


CASES = {
    "SIGTERM to the group": Case(lambda pid, run: os.killpg(pid, signal.SIGTERM)),
    "the same in an evaluation": Case(lambda pid, run: os.killpg(pid, signal.SIGTERM), is_evaluating=True),
    "SIGTERM to the runner": Case(lambda pid, run: os.kill(pid, signal.SIGTERM)),
    "SIGTERM to the launch": Case(lambda pid, run: os.kill(launch_pid(pid), signal.SIGTERM)),
    "STOP file": Case(lambda pid, run: (run / "STOP").touch()),
    "SIGKILL of a rank": Case(
        lambda pid, run: os.kill(rank_beat(run, 1)["pid"], signal.SIGKILL), "failed", 71, FAULT_LIMIT
    ),
    "SIGSTOP of a rank": Case(
        lambda pid, run: os.kill(rank_beat(run, 1)["pid"], signal.SIGSTOP), "failed", 71, FAULT_LIMIT
    ),
}


def status(run_dir: Path) -> dict[str, Any]:
    """Content of `status.json`; of a run that has not begun, one of step 0."""
    path = run_dir / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "running", "step": 0}


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when `condition()` holds. Raises RuntimeError, naming `what`, after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def measure(case: str) -> tuple[float, float]:
    """Seconds until the run has ended by its status, and until all its processes are gone."""
    wanted = CASES[case]
    run_dir = OUT / "stop"
    shutil.rmtree(run_dir, ignore_errors=True)
    values = {**demo_corpora(), **VALUES, **(EVALUATING if wanted.is_evaluating else {})}
    command = train_command(run_dir, values, backend="deepspeed", num_ranks=2)
    with (OUT / "stop.log").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        root = psutil.Process(process.pid)
        try:
            wait_until(lambda: status(run_dir)["step"] >= STEPS_BEFORE, 180, "the first steps")
            if wanted.is_evaluating:
                wait_until(lambda: rank_beat(run_dir, 1)["phase"] == "an evaluation", 60, "the evaluation")
            family = [root, *root.children(recursive=True)]
            started = time.monotonic()
            wanted.act(process.pid, run_dir)
            wait_until(lambda: status(run_dir)["state"] != "running", 120, "the end of the run")
            ended = time.monotonic() - started
            wait_until(lambda: not living(family), 120, f"the end of {living(family)}")
            gone = time.monotonic() - started
        finally:
            for each in living([root, *root.children(recursive=True)] if root.is_running() else []):
                each.kill()
            process.wait()
    found = status(run_dir)
    if (found["state"], found["exit_code"]) != (wanted.state, wanted.exit_code):
        raise RuntimeError(f"{case}: needed {wanted.state} with {wanted.exit_code}, found {found}")
    if wanted.state == "preempted" and not (run_dir / "checkpoints" / f"step-{found['step']:07d}").is_dir():
        raise RuntimeError(f"{case}: {found} without a checkpoint of that step")
    return ended, gone


def main() -> int:
    """Print the medians; exit code 1 when a run ended later than its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    options = parser.parse_args()
    describe_machine()
    is_good = True
    for case in options.case:
        limit = CASES[case].limit
        rounds = [measure(case) for _ in range(options.rounds)]
        ended, gone = (statistics.median(values) for values in zip(*rounds, strict=True))
        texts = ", ".join(f"{each:.1f}" for _, each in rounds)
        print(
            f"{case:<25} ended after {ended:5.1f} s, all processes gone after {gone:5.1f} s "
            f"(at most {limit:g} wanted; rounds: {texts})",
            flush=True,
        )
        is_good = is_good and gone <= limit
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
