"""Training members of a sweep on this machine: a few at a time, each a process of its own with one thread."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from enhancer.engine.folder_lock import holder
from enhancer.engine.launcher import PARENT_VARIABLE
from launch.sweep_members import LOG, Planned, failure_reason, progress_of

POLL_SECONDS = 0.1
TELL_SECONDS = 60.0
# Of every library that may do the arithmetic: members side by side would fight for the cores.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
STOPPED = 75
AT_ONCE = 3
"""So many Ctrl-C leave no time to save."""


@dataclass
class _Child:
    planned: Planned
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    log_start: int
    """Where this start begins in the log, bytes."""
    started: float
    is_told: bool = False
    """Whether it was asked to stop."""


class _Interrupts:
    """How often this process was told to stop."""

    def __init__(self) -> None:
        self.count = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGINT, SIGTERM and SIGHUP."""
        self.count += 1


def train_here(members: Sequence[Planned], num_jobs: int) -> dict[str, str] | None:
    """Train `members`, `num_jobs` at a time; the reasons of those that failed, by folder name.

    None where it was told to stop by SIGINT, SIGTERM or SIGHUP: all members were then told to save, and have ended. A
    second Ctrl-C changes nothing; a third ends them at once and raises KeyboardInterrupt. Where this process is killed,
    they see that it is gone, save and end by themselves.
    """
    waiting = deque(members)
    running: list[_Child] = []
    failures: dict[str, str] = {}
    held: set[Path] = set()
    num_over, told = 0, time.monotonic()
    with _listening() as interrupts:
        try:
            while running or (waiting and not interrupts.count):
                while (
                    len(running) < num_jobs and not interrupts.count and (free := _take_free(waiting, held))
                ):
                    running.append(_start(free))
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    num_over += 1
                    text = _ended(child, failures, is_stopping=bool(interrupts.count))
                    print(f"[{num_over}/{len(members)}] {child.planned.label}: {text}", flush=True)
                if running and time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    print(f"training: {'; '.join(_where(child) for child in running)}", flush=True)
                _heed(interrupts, running)
                time.sleep(POLL_SECONDS)
        except BaseException:
            _end(running, is_at_once=interrupts.count >= AT_ONCE)
            raise
        return None if interrupts.count else failures


@contextmanager
def _listening() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    # A terminal that is closed stops a sweep too, unless nohup has it ignored.
    heard = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, interrupts.on_signal) for number in heard}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_free(waiting: deque[Planned], held: set[Path]) -> Planned | None:
    """Take the first of `waiting` in whose folder nobody trains: members of a killed sweep need a moment to save.

    Each of the others is told of once, and then in `held`.
    """
    for planned in waiting:
        owner = holder(planned.folder)
        if owner is None:
            waiting.remove(planned)
            return planned
        if planned.folder not in held:
            held.add(planned.folder)
            print(f"{planned.label} waits: {owner} trains in {planned.folder}", flush=True)
    return None


def _start(planned: Planned) -> _Child:
    planned.folder.mkdir(parents=True, exist_ok=True)
    log = (planned.folder / LOG).open("ab")
    log.write(f"$ {shlex.join(planned.command)}\n".encode())
    log.flush()
    start = log.tell()
    process = subprocess.Popen(
        planned.command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **ONE_THREAD, PARENT_VARIABLE: str(os.getpid())},
        # Ctrl-C of the terminal reaches this process alone, which passes it on once.
        start_new_session=True,
    )
    print(f"started {planned.label}: {planned.folder}", flush=True)
    return _Child(planned, process, log, start, time.monotonic())


def _heed(interrupts: _Interrupts, running: list[_Child]) -> None:
    """Pass on the first request to stop, once to each child. Raises KeyboardInterrupt at the third."""
    if interrupts.count >= AT_ONCE:
        raise KeyboardInterrupt
    untold = [child for child in running if interrupts.count and not child.is_told]
    if untold:
        print(f"stopping: {len(untold)} members save first; run the same command to go on", flush=True)
    for child in untold:
        child.is_told = True
        child.process.terminate()


def _end(children: Sequence[_Child], *, is_at_once: bool) -> None:
    for child in children:
        child.process.kill() if is_at_once else child.process.terminate()
    for child in children:
        child.process.wait()
        child.log.close()


def _where(child: _Child) -> str:
    progress = progress_of(child.planned)
    return f"{child.planned.label} at step {progress.step} of {child.planned.hp.max_steps}"


def _ended(child: _Child, failures: dict[str, str], *, is_stopping: bool) -> str:
    """How a child ended, in words; a failure is put into `failures`."""
    child.log.close()
    code, seconds = child.process.returncode, time.monotonic() - child.started
    progress = progress_of(child.planned)
    if code in (0, STOPPED):
        return f"{progress.state} at step {progress.step} after {seconds:.0f} s"
    if is_stopping and code == -signal.SIGTERM:
        return "stopped while it was starting"
    log = (child.planned.folder / LOG).read_bytes()[child.log_start :].decode("utf-8", "replace")
    reason = failure_reason(progress, code, log)
    failures[child.planned.member.folder_name] = reason
    return f"failed: {reason}"
