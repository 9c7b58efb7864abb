"""Looks after the ranks of one machine while they meet, before there is a run folder to show signs of life in."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from enhancer.engine.ancestors import GONE, Ancestors
from enhancer.engine.status import EXIT_CODES, EXIT_LOST

_LOOK_SECONDS = 1.0


@contextmanager
def meeting(num_local: int, patience_seconds: float, ancestors: Ancestors) -> Iterator[None]:
    """Ends this process and its siblings that are stopped for longer than `patience_seconds` inside, and this process
    when one of its `ancestors` is gone.

    Siblings are the other processes of the launcher, for a machine of `num_local` ranks. One that dies is noticed by
    the launcher, one on another machine by the time-out of the process group.
    """
    done = threading.Event()
    given = (done, num_local, patience_seconds, ancestors)
    threading.Thread(target=_look, args=given, name="meeting", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _look(done: threading.Event, num_local: int, patience_seconds: float, ancestors: Ancestors) -> None:
    stopped_since: dict[int, float] = {}
    looked = time.monotonic()
    while not done.wait(_LOOK_SECONDS):
        if ancestors.are_gone() and not done.is_set():
            os.write(2, f"stopped: {GONE}, while the ranks met\n".encode())
            os._exit(EXIT_CODES["preempted"])
        now = time.monotonic()
        stopped = _stopped_siblings() if num_local > 1 else []
        if now - looked > patience_seconds / 3:
            stopped_since.clear()  # This process was stopped itself, such as by Ctrl-Z, with all others.
        looked = now
        stopped_since = {pid: stopped_since.get(pid, now) for pid in stopped}
        frozen = [pid for pid, since in stopped_since.items() if now - since > patience_seconds]
        if frozen and not done.is_set():
            _end(frozen, patience_seconds)


def _stopped_siblings() -> list[int]:
    found = []
    try:
        for process in psutil.Process(os.getppid()).children():
            if process.pid != os.getpid() and process.status() == psutil.STATUS_STOPPED:
                found.append(process.pid)
    except psutil.NoSuchProcess:
        return []  # The launcher has died, or a rank: they have their own watchers.
    return found


def _end(frozen: list[int], patience_seconds: float) -> None:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    text = (
        f"error: while the ranks met, process {', '.join(map(str, frozen))} of this machine was stopped for "
        f"{patience_seconds:g} s (hang_timeout_seconds). Run again\n"
    )
    os.write(2, text.encode())
    for pid in frozen:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(EXIT_LOST)
