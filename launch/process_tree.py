"""A command and every process that comes of it: started together, told together, reaped, and none left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

# From Linux's prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILL_SECONDS = 5.0


class ProcessTree:
    """`words` in a session of its own. What its processes leave behind becomes ours, as in a container."""

    def __init__(self, words: Sequence[str]) -> None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # A session of its own: Ctrl-C of the terminal is for us alone, and is passed on once.
        self._process = subprocess.Popen(
            words, start_new_session=True, preexec_fn=_die_with_parent if sys.platform == "linux" else None
        )
        self.returncode: int | None = None
        """Exit code of the command once it has ended, negative for a signal."""

    def reap(self) -> None:
        """Take note of all that have ended, also of those that nobody else waits for."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._process.pid:
                self.returncode = self._process.returncode = os.waitstatus_to_exitcode(status)

    def living(self) -> list[psutil.Process]:
        """Every process of the command that has not ended."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def tell_group(self, number: int) -> None:
        """Send a signal to the command and what shares its process group."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def kill(self) -> None:
        """End every process of the command at once, those that are stopped too."""
        deadline = time.monotonic() + _KILL_SECONDS
        while (living := self.living()) and time.monotonic() < deadline:
            for process in living:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
            self.reap()
        self.reap()


def _die_with_parent() -> None:
    """In the child: be told by SIGTERM when the supervisor dies, however that happens."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
