"""Two ranks of a run, forked from this process or under a launcher, and every process that comes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from enhancer.engine.launcher import PARENT_VARIABLE
from tests.engine.ranks import SCRIPTS, environment, free_port

NUM_RANKS = 2
END_SECONDS = 30.0
"""How long after a fault the last process of a run may be there."""
MARK = "WAVEWRIGHT_FAULTS"
"""Environment variable that all processes of one start have in common, whoever their parent is."""


class Start:
    """One start of a run: its ranks and its launcher, if any. Output goes to `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.ranks: list[int] = []
        """Forked ranks; of a launcher's ask `rank_pids`."""
        self.launcher: subprocess.Popen[bytes] | None = None
        self.codes: dict[int, int] = {}
        """Exit codes by process id, negative for a signal, of what this process has started."""
        self._mark = uuid.uuid4().hex

    def fork_ranks(self, backend: str, main: Callable[[], int]) -> None:
        """Ranks that run `main`, forked so that nobody waits for imports, in the environment of a launcher."""
        values = {"WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        if backend == "deepspeed":
            values |= {PARENT_VARIABLE: str(os.getpid())}
            values |= {"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": str(NUM_RANKS)}
        else:
            values |= {"TORCHELASTIC_RUN_ID": "faults", "LOCAL_WORLD_SIZE": str(NUM_RANKS)}
        for rank in range(NUM_RANKS):
            pid = os.fork()
            if pid == 0:
                _become_rank(
                    self.log, {**values, "RANK": str(rank), "LOCAL_RANK": str(rank), MARK: self._mark}, main
                )
            self.ranks.append(pid)

    def launch(self, backend: str, words: list[str]) -> None:
        """The command that a user would give: `words` is the program and its arguments."""
        commands = {"deepspeed": ["deepspeed", "--num_gpus"], "accelerate": ["torchrun", "--nproc_per_node"]}
        name, option = commands[backend]
        command = [str(SCRIPTS / name), option, str(NUM_RANKS), "--master_port", str(free_port()), *words]
        with self.log.open("ab") as log:
            self.launcher = subprocess.Popen(
                command,
                env=environment(**{MARK: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def reap(self) -> None:
        """Take note of what has ended."""
        for pid in self.ranks:
            if pid not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        if self.launcher is not None and self.launcher.poll() is not None:
            self.codes[self.launcher.pid] = self.launcher.returncode

    def has_children(self) -> bool:
        """Whether a rank that was forked or the launcher has not ended. Cheap, unlike `living`."""
        self.reap()
        started = {*self.ranks, *([self.launcher.pid] if self.launcher else [])}
        return bool(started - self.codes.keys())

    def living(self) -> list[psutil.Process]:
        """Every process of this start that has not ended, orphans included."""
        self.reap()
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_rank = process.pid in self.ranks and process.pid not in self.codes
                if is_rank or (process.pid != os.getpid() and process.environ().get(MARK) == self._mark):
                    found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        return found

    def rank_pids(self) -> list[int]:
        """Processes of the ranks, in rank order as far as they were started, also under a launcher."""
        if self.launcher is None:
            return [pid for pid in self.ranks if pid not in self.codes]
        found = {}
        for process in self.living():
            with contextlib.suppress(psutil.Error):
                values = process.environ()
                if (
                    "RANK" in values and "-c" not in process.cmdline()
                ):  # Loader workers are code on the command line.
                    found[int(values["RANK"])] = process.pid
        return [found[rank] for rank in sorted(found)]

    def workers(self) -> list[int]:
        """Loader workers of all ranks."""
        found = []
        for process in self.living():
            with contextlib.suppress(psutil.Error):
                if any("loader_worker" in word for word in process.cmdline()):
                    found.append(process.pid)
        return found

    def launch_processes(self) -> list[int]:
        """DeepSpeed's launch.py, which stands between the launcher and the ranks."""
        found = []
        for process in self.living():
            with contextlib.suppress(psutil.Error):
                found += [process.pid] if "deepspeed.launcher.launch" in process.cmdline() else []
        return found

    def wait(self, seconds: float) -> list[str]:
        """Wait until every process is gone; those that stay for `seconds` are named, and killed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (self.has_children() or self.living()):
            time.sleep(0.1)
        left = []
        for process in self.living():
            with contextlib.suppress(psutil.Error):
                left.append(f"{process.pid} ({process.status()}) {' '.join(process.cmdline())[-100:]}")
        self.kill()
        return left

    def kill(self) -> None:
        """End every process of this start at once."""
        while living := self.living():
            for process in living:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)


def send(pid: int, number: int) -> None:
    """A signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_rank(log: Path, values: dict[str, str], main: Callable[[], int]) -> None:
    """In the child: a process of its own that writes to `log` and ends with what `main` returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        os.environ.update(values)
        code = main()
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)
