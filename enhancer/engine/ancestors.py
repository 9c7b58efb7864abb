"""The processes above this one that belong to its launcher: whether they still stand."""

from __future__ import annotations

import os

import psutil

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
_LAUNCH_PROCESS = "deepspeed.launcher.launch"


class Ancestors:
    """The nearest `count` processes above; `parent_pid` is the nearest, where it said so: it may be gone by now.

    An orphan is given another parent, so a list that changes tells of a death. One that died before the list was made
    has left the first process of the machine in its place, which is no launcher unless its command line says so.
    """

    def __init__(self, count: int, parent_pid: int | None = None) -> None:
        self._pids = _above(count)
        self._were_gone = _were_adopted(self._pids)
        if parent_pid is not None:
            self._pids[0] = parent_pid

    def are_gone(self) -> bool:
        """Whether any of them has died."""
        return self._were_gone or _above(len(self._pids)) != self._pids


def _above(count: int) -> list[int]:
    pids: list[int] = []
    pid = os.getpid()
    for _ in range(count):
        try:
            pid = psutil.Process(pid).ppid()
        except psutil.NoSuchProcess:
            pid = 0
        pids.append(pid)
    return pids


def _were_adopted(pids: list[int]) -> bool:
    """Whether the first process stands where a launcher should: right above, or above DeepSpeed's launch process."""
    if _FIRST not in pids:
        return False
    place = pids.index(_FIRST)
    is_launchers_place = place == 0 or _LAUNCH_PROCESS in _words(pids[place - 1])
    return is_launchers_place and not any(name in word for word in _words(_FIRST) for name in _LAUNCHERS)


def _words(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
