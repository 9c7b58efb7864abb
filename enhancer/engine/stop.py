"""Hears that a run should stop: signals, a STOP file in the run folder, the death of the launcher.

The request is only a flag. The loop polls it, agrees on it across ranks, saves and leaves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from enhancer.engine import distributed
from enhancer.engine.ancestors import GONE, Ancestors
from enhancer.engine.status import STOP

POLL_SECONDS = 0.5
EXIT_INTERRUPTED = 130
LEFT = "SIGINT for the third time: left at once, without a checkpoint of the last steps"


class Stop:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        self.reason = ""
        self.failure = ""
        """What this rank has met that ends the run as failed once the ranks agree; no request to stop."""
        self._interrupts = 0
        self._pid = os.getpid()
        self.before_leaving: Callable[[], None] = lambda: None
        """Called before a third SIGINT ends the process."""

    @property
    def is_requested(self) -> bool:
        """Whether this rank wants the run to end: it was asked to stop, or has met a failure."""
        return bool(self.reason or self.failure)

    def request(self, reason: str) -> None:
        """Ask the run to stop after the step in progress. The first reason is kept."""
        self.reason = self.reason or reason

    def fail(self, text: str) -> None:
        """Ask the run to end after the step in progress for a failure, which the ranks then raise together."""
        self.failure = self.failure or text

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM and SIGINT. A third SIGINT ends the process at once, without a checkpoint."""
        if os.getpid() != self._pid:  # A forked loader worker: it ends with the rank, which decides.
            return
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 1:
                _say("stopping: a checkpoint is saved first")
            elif self._interrupts == 2:
                _say("already stopping; interrupt once more to leave at once without a checkpoint")
            else:
                try:
                    self.before_leaving()
                finally:
                    os._exit(EXIT_INTERRUPTED)
        self.request(signal.Signals(number).name)


@contextmanager
def listening(run_folder: Path, ancestors: Ancestors) -> Iterator[Stop]:
    """A `Stop` that hears signals, `run_folder`/STOP and the end of one of the `ancestors`."""
    stop = Stop()
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stop, done, run_folder / STOP, ancestors), daemon=True)
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    watcher.start()
    try:
        yield stop
    finally:
        done.set()
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(stop: Stop, done: threading.Event, stop_file: Path, ancestors: Ancestors) -> None:
    while not done.wait(POLL_SECONDS):
        if stop_file.exists():
            stop.request(f"{STOP} file in the run folder")
        elif ancestors.are_gone():
            stop.request(GONE)
        if stop.reason:
            return


def _say(text: str) -> None:
    if distributed.is_main():
        # A signal may arrive inside a write to stderr, so the buffered stream is not entered again.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())
