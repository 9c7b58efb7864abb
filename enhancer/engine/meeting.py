"""Looks after the ranks of one machine while they meet, before there is a run folder to show signs of life in."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

from enhancer.engine.ancestors import GONE, Ancestors
from enhancer.engine.launcher import rank_of
from enhancer.engine.status import EXIT_CODES, EXIT_LOST

_LOOK_SECONDS = 1.0


@contextmanager
def meeting(num_local: int, patience_seconds: float, ancestors: Ancestors) -> Iterator[None]:
    """Ends this process inside when one of its `ancestors` is gone, and when for longer than `patience_seconds` one of
    the `num_local` ranks of this machine is not there, or is stopped; that one too.

    A launcher notices sooner when a rank dies, but not everybody who starts ranks looks after them. Those of another
    machine are missed by the time-out of the process group.
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
    complete = looked = time.monotonic()
    while not done.wait(_LOOK_SECONDS):
        if ancestors.are_gone() and not done.is_set():
            with contextlib.suppress(OSError):
                os.write(2, f"stopped: {GONE}, while the ranks met\n".encode())
            os._exit(EXIT_CODES["preempted"])
        now = time.monotonic()
        stopped = _stopped_siblings() if num_local > 1 else []
        if now - looked > patience_seconds / 3:
            stopped_since.clear()  # This process was stopped itself, such as by Ctrl-Z, with all others.
            complete = now
        looked = now
        num_missing = num_local - _num_ranks() if num_local > 1 else 0
        complete = complete if num_missing > 0 else now
        if now - complete > patience_seconds and not done.is_set():
            _end(
                f"{num_missing} of the {num_local} ranks of this machine had ended, or did not start, and the others "
                f"waited for {patience_seconds:g} s"
            )
        stopped_since = {pid: stopped_since.get(pid, now) for pid in stopped}
        frozen = [pid for pid, since in stopped_since.items() if now - since > patience_seconds]
        if frozen and not done.is_set():
            names = ", ".join(map(str, frozen))
            _end(f"process {names} of this machine was stopped for {patience_seconds:g} s", frozen)


def _stopped_siblings() -> list[int]:
    try:
        return [each.pid for each in _siblings() if each.status() == psutil.STATUS_STOPPED]
    except psutil.NoSuchProcess:
        return []  # A rank has died since.


def _siblings() -> list[psutil.Process]:
    try:
        return [each for each in psutil.Process(os.getppid()).children() if each.pid != os.getpid()]
    except psutil.NoSuchProcess:
        return []  # The launcher has died.


def _num_ranks() -> int:
    """How many ranks of this run are on this machine, this one among them."""
    own = psutil.Process()
    if rank_of(own.environ()) is None:
        # Its environment is not to be seen from outside: it was forked, or has filled it itself. The others, too, then.
        return 1 + sum(_program(each) == _program(own) for each in _siblings())
    ranks = {_rank(each) for each in psutil.process_iter()}
    # A process may keep its environment to itself, such as one with capabilities: that is none that has ended.
    return len(ranks - {None}) + sum(map(_is_closed, _siblings()))


def _rank(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else rank_of(process.environ())
    except psutil.Error:
        return None  # Of another user, or gone since.


def _is_closed(process: psutil.Process) -> bool:
    try:
        process.environ()
    except psutil.AccessDenied:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass
    return False


def _program(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[:1]  # Of a zombie there is none.
    except psutil.Error:
        return []


def _end(what: str, frozen: Sequence[int] = ()) -> None:
    with contextlib.suppress(OSError):  # The log may be on a full disk.
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        text = f"error: while the ranks met, {what} (hang_timeout_seconds). Run again\n"
        os.write(2, text.encode())
    for pid in frozen:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(EXIT_LOST)
