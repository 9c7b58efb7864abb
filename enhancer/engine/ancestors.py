"""The processes above this one whose end is the end of the run: a launcher, or who has started it in its place."""

from __future__ import annotations

import os

import psutil

from enhancer.engine.launcher import Launch

GONE = "the launcher is gone"
_FIRST = 1
_LAUNCHERS = (
    "deepspeed",
    "torchrun",
    "torch.distributed",
    "accelerate",
    "node.py",
    "supervise.py",
    "sweep.py",
)


class Ancestors:
    """The nearest `count` processes above, as they are now.

    The `deepspeed` runner dies without a word to its ranks, two processes below it; so does a sweep that is killed.
    They may be gone by now: `parent_pid` is the process that started this one, where that is known, and the nearest
    `num_in_session` are of the session of this one, which who inherits an orphan is not. Ranks of torchrun have
    sessions of their own: right above an orphan of it stands the first process of the machine, which is none by its
    words.
    """

    def __init__(self, count: int, parent_pid: int | None = None, num_in_session: int = 0) -> None:
        self._pids = _nearest(count)
        own = os.getsid(0)
        self._were_gone = any(_session(pid) != own for pid in self._pids[:num_in_session])
        if self._pids[:1] == [_FIRST]:
            self._were_gone |= not any(name in word for word in _words(_FIRST) for name in _LAUNCHERS)
        if parent_pid is not None:
            self._pids[0] = parent_pid

    @classmethod
    def of(cls, launch: Launch) -> Ancestors:
        """Those of a process that came to be as `launch` says. Best taken at its beginning, before it imports torch."""
        return cls(launch.num_ancestors, launch.parent_pid, launch.num_in_session)

    def are_gone(self) -> bool:
        """Whether one of them has ended."""
        return self._were_gone or _nearest(len(self._pids)) != self._pids


def _nearest(count: int) -> list[int]:
    """Process ids of the nearest `count` processes above. An orphan is given another parent, so the list changes."""
    pids: list[int] = []
    pid = os.getpid()
    for _ in range(count):
        try:
            pid = psutil.Process(pid).ppid()
        except psutil.NoSuchProcess:
            pid = 0
        pids.append(pid)
    return pids


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _words(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
