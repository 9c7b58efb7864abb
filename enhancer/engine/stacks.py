"""Stacks of all threads of a rank in `stacks/` of the run folder, of frozen ranks too; the end of a rank that hangs."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import psutil

from enhancer.engine.launcher import rank_of
from enhancer.engine.peers import Process
from enhancer.engine.pulse import Beat

STACKS = "stacks"
# So long a rank that was woken has to see that the run has ended, and to write its stacks by itself; then, asked for
# them by a signal; and to leave. Together shorter than a rank's time to clear up.
_WAKE_SECONDS, _DUMP_SECONDS, _LEAVE_SECONDS = 3.0, 1.5, 1.0


class StackFile:
    """Where the stacks of this rank go, also when another process asks for them by SIGQUIT.

    The handler is C code that needs no interpreter lock, so a rank that holds it for ever tells where, too. Where other
    threads run meanwhile it may read what they free, and crash the process: SIGQUIT is for a rank that is lost anyway.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = stack_path(folder, rank).open("w", encoding="utf-8")
        faulthandler.register(signal.SIGQUIT, self._file, all_threads=True, chain=False)

    def dump(self) -> None:
        """Write the stacks of this process. The caller holds the interpreter lock, so no other thread's can change."""
        faulthandler.dump_traceback(self._file, all_threads=True)

    def close(self) -> None:
        """Write no more, and remove the file where nothing was written."""
        faulthandler.unregister(signal.SIGQUIT)
        path = Path(self._file.name)
        self._file.close()
        if not path.stat().st_size:
            path.unlink(missing_ok=True)


def stack_path(folder: Path, rank: int) -> Path:
    """File of the stacks of `rank`."""
    return folder / f"rank{rank:05d}.txt"


def inspect(beat: Beat) -> Process:
    """What this machine says about the process of `beat`; `gone` also where it only waits to be reaped."""
    try:
        process = psutil.Process(beat.pid)
        if abs(process.create_time() - beat.created) > 2 or process.status() == psutil.STATUS_ZOMBIE:
            return Process("gone", 0.0)
        times = process.cpu_times()
        return Process(process.status(), times.user + times.system)
    except psutil.NoSuchProcess:
        return Process("gone", 0.0)
    except psutil.AccessDenied:
        return Process("running", 0.0)


def end_hung(beats: Sequence[Beat], folder: Path) -> None:
    """Let the processes of `beats`, all of this machine, write their stacks, and kill them.

    They are woken first: a rank whose watching thread runs sees what `write_abort` has told, and does both by itself.
    Those that do not are asked by SIGQUIT.
    """
    beats = [beat for beat in beats if not _is_gone(beat)]
    before = {beat.rank: _size(folder, beat) for beat in beats}

    def have_told(asked: Sequence[Beat]) -> bool:
        return all(_size(folder, beat) > before[beat.rank] or _is_gone(beat) for beat in asked)

    for beat in beats:
        _send(beat, signal.SIGCONT)
    if not _wait(_WAKE_SECONDS, lambda: have_told(beats)):
        silent = [beat for beat in beats if not have_told([beat])]
        for beat in silent:
            _send(beat, signal.SIGQUIT)
        _wait(_DUMP_SECONDS, lambda: have_told(silent))
    _wait(_LEAVE_SECONDS, lambda: all(map(_is_gone, beats)))
    for beat in beats:
        if not _is_gone(beat):
            _kill_tree(beat)


def kill_children() -> None:
    """End what this process has started, such as loader workers that do not notice its end."""
    for child in psutil.Process().children(recursive=True):
        _kill(child)


def kill_left_by(gone: Sequence[Beat]) -> None:
    """End what ranks of this machine that are `gone` have started, such as a compiler: those that have inherited their
    environment."""
    if not gone:
        return
    ranks = {beat.rank for beat in gone}
    for process in psutil.process_iter():
        try:
            rank = rank_of(process.environ())
        except psutil.Error:
            continue  # Of another user, or gone since.
        if rank in ranks:
            _kill(process)


def _wait(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether `condition` has come true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_true


def _is_gone(beat: Beat) -> bool:
    return inspect(beat).status == "gone"


def _size(folder: Path, beat: Beat) -> int:
    path = stack_path(folder, beat.rank)
    return path.stat().st_size if path.exists() else 0


def _send(beat: Beat, number: int) -> None:
    try:
        psutil.Process(beat.pid).send_signal(number)
    except psutil.NoSuchProcess:
        return


def _kill_tree(beat: Beat) -> None:
    try:
        process = psutil.Process(beat.pid)
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in (process, *children):
        _kill(each)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
