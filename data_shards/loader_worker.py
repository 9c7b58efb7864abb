"""A loader worker: a bare Python process that fills batches in shared memory when asked.

It imports numpy but not torch, so it is ready in a fraction of the second that torch alone would take, and
it is started afresh rather than forked, so threads and CUDA of the main process are of no concern.
`data_shards.loader_pool` is the other end.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection

from data_shards.batches import BatchPlan, Recipe, fill_training
from data_shards.errors import DataError

SLOTS_PER_WORKER = 2
_PARENT_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """What every worker of a pool is told once."""

    recipe: Recipe
    plan: BatchPlan
    parent_pid: int


def main(connection_fd: int, memory_fd: int, memory_bytes: int, job_fd: int) -> None:
    """Answer each (step, slot) with None once the slot holds the batch of that step, or with the error met.

    Ends when the main process closes the connection or dies. SIGINT and SIGTERM are its business, not a
    worker's: both reach whole process groups, and a worker that obeyed would fail the batch that the main
    process waits for.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with Connection(connection_fd) as connection, open(job_fd, "rb", closefd=True) as file:
        # The file position is shared with the other workers, so the bytes are read by pread.
        job: Job = pickle.loads(os.pread(job_fd, os.fstat(file.fileno()).st_size, 0))
        memory = memoryview(mmap.mmap(memory_fd, memory_bytes))
        while _wait_for_request(connection, job.parent_pid):
            try:
                step, slot = connection.recv()
            except (EOFError, ConnectionError):
                return
            reply: DataError | OSError | None = None
            try:
                fill_training(job.plan.arrays(memory, slot), job.recipe, job.plan, step)
            except (DataError, OSError) as error:
                reply = error
            try:
                connection.send(reply)
            except ConnectionError:
                return


def _wait_for_request(connection: Connection, parent_pid: int) -> bool:
    """True when there is something to receive, False when the main process is gone.

    A process that the main one forked may hold the other end open after its death, hence the look at the
    parent.
    """
    while not connection.poll(_PARENT_POLL_SECONDS):
        if os.getppid() != parent_pid:
            return False
    return True
