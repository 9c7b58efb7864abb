"""Batches in order from several worker processes through shared memory without a name.

Worker w makes batches w, w + W, w + 2W, ... and has two slots, so that each works ahead by two batches
while the main process uses one. No queue, no thread, no file in /dev/shm: a slot is filled by one worker,
its reply is one small message, and the main process copies the slot out. What dies, dies visibly: a worker
by its closed connection, the main process by the worker's.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

import psutil

from data_shards.batches import Arrays, BatchPlan, Recipe
from data_shards.loader_worker import SLOTS_PER_WORKER, Job

# One thread in each worker: there is one worker per core. Signals are ignored before the slow imports begin.
_BOOT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also a stopped worker ends with its owner
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, sys.argv[1])
from data_shards.loader_worker import main
main(*map(int, sys.argv[2:]))
"""
_PACKAGE_ROOT = Path(__file__).resolve().parent.parent


class WorkerDied(OSError):
    """A loader worker ended by itself or was killed."""


class WorkerPool:
    """Endless batches `plan` of `recipe`, made by `num_workers` processes, which start at once."""

    def __init__(self, recipe: Recipe, plan: BatchPlan, num_workers: int) -> None:
        assert num_workers > 0
        self._plan = plan
        self._next_step = 0
        self._failure: Exception | None = None
        memory_bytes = plan.slot_bytes * SLOTS_PER_WORKER * num_workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        # Also runs when the pool is dropped or the interpreter ends without close().
        self._finalizer = weakref.finalize(self, _stop, os.getpid(), self._processes, self._connections)
        with tempfile.TemporaryFile() as job_file, _anonymous_file(memory_bytes) as memory_file:
            pickle.dump(Job(recipe, plan, os.getpid()), job_file, protocol=pickle.HIGHEST_PROTOCOL)
            job_file.flush()
            self._memory = memoryview(mmap.mmap(memory_file.fileno(), memory_bytes))
            for _ in range(num_workers):
                self._start_worker(memory_file.fileno(), memory_bytes, job_file.fileno())
        for step in range(SLOTS_PER_WORKER * num_workers):
            self._request(step)

    def next_arrays(self, timeout_seconds: float) -> Arrays | None:
        """The next batch, or None when it is not ready within `timeout_seconds`.

        Raises: DataError or OSError that a worker met; WorkerDied. After that every call raises it again.
        """
        if self._failure is not None:
            raise self._failure
        connection = self._connections[self._next_step % len(self._connections)]
        try:
            if not connection.poll(timeout_seconds):
                return None
            reply = connection.recv()
        except (EOFError, ConnectionError) as error:
            self._failure = self._death(self._next_step)
            raise self._failure from error
        if reply is not None:
            self._failure = reply
            raise reply
        views = self._plan.arrays(self._memory, self._slot(self._next_step))
        arrays = {name: view.copy() for name, view in views.items()}
        self._request(self._next_step + SLOTS_PER_WORKER * len(self._connections))
        self._next_step += 1
        return arrays

    def awaited(self) -> str:
        """The worker that makes the next batch, and what the system says about it."""
        worker = self._next_step % len(self._processes)
        process = self._processes[worker]
        try:
            state = psutil.Process(process.pid).status()
        except psutil.NoSuchProcess:
            state = "gone"
        return f"loader worker {worker} of {len(self._processes)} (process {process.pid}), which is {state}"

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Stop the workers."""
        self._finalizer()

    def _slot(self, step: int) -> int:
        return step % (SLOTS_PER_WORKER * len(self._connections))

    def _request(self, step: int) -> None:
        worker = step % len(self._connections)
        try:
            self._connections[worker].send((step, self._slot(step)))
        except ConnectionError as error:
            raise self._death(step) from error

    def _start_worker(self, memory_fd: int, memory_bytes: int, job_fd: int) -> None:
        ours, theirs = Pipe()
        with theirs:
            numbers = (theirs.fileno(), memory_fd, memory_bytes, job_fd)
            command = [sys.executable, "-c", _BOOT, str(_PACKAGE_ROOT), *map(str, numbers)]
            # A session of its own: Ctrl-C in the terminal is for the main process.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory_fd, job_fd),
                start_new_session=True,
            )
        self._processes.append(process)
        self._connections.append(ours)

    def _death(self, step: int) -> WorkerDied:
        worker = step % len(self._processes)
        process = self._processes[worker]
        deadline = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        draws = self._plan.draws(step)
        return WorkerDied(
            f"loader worker {worker} of {len(self._processes)} (pid {process.pid}) of rank {self._plan.rank} "
            f"{_describe_exit(process.returncode)} before draws {draws.start} to {draws.stop - 1} were made"
        )


def _describe_exit(returncode: int | None) -> str:
    if returncode is None:
        return "closed its connection"
    if returncode >= 0:
        return f"ended with exit code {returncode} (its traceback is above)"
    hint = "; SIGKILL often means that memory ran out: lower nj" if -returncode == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-returncode).name}{hint}"


def _stop(owner_pid: int, processes: list[subprocess.Popen[bytes]], connections: list[Connection]) -> None:
    # A process forked from the owner inherits this call, but not the workers.
    if os.getpid() != owner_pid:
        return
    # Workers hold nothing that must be put in order, so they are not waited for politely.
    for connection in connections:
        connection.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _anonymous_file(size: int) -> IO[bytes]:
    """A file of `size` zero bytes that has no name: memory on Linux, an unlinked temporary file elsewhere."""
    file: IO[bytes]
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("wavewright-batches"), "w+b", buffering=0)
    else:
        file = os.fdopen(_unlinked_fd(), "w+b", buffering=0)
    os.ftruncate(file.fileno(), size)
    return file


def _unlinked_fd() -> int:
    number, name = tempfile.mkstemp()
    os.unlink(name)
    return number
