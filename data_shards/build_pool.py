"""Building many shards in several processes, which can be stopped and do not outlive their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_shards.dataset import ShardInfo
from data_shards.errors import CorpusError
from data_shards.options import BuildOptions
from data_shards.plan import Report, ShardPlan
from data_shards.shard import build_shard
from data_shards.sidecar import Sidecar

POLL_SECONDS = 0.2
STAGE = "building shards"

Built = tuple[ShardPlan, Sidecar, ShardInfo]


class BuildStopped(Exception):
    """The build was asked to stop while a shard was half written."""


def build_all(
    plans: Sequence[ShardPlan], options: BuildOptions, folder: Path, report: Report
) -> Generator[Built, None, None]:
    """Build every planned shard; yields each as it is finished, in any order.

    KeyboardInterrupt stops all workers between two blocks of audio; their temporary files are removed.
    """
    num_workers = min(options.num_workers, len(plans))
    if num_workers <= 1:
        yield from _build_here(plans, options, folder, report)
        return
    context = multiprocessing.get_context("spawn")
    stop, progress = context.Event(), context.Value("q", 0)
    total = sum(plan.work for plan in plans)
    with ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(stop, progress)
    ) as pool:
        try:
            with _interrupt_blocked():
                waiting: dict[Future[tuple[Sidecar, ShardInfo]], ShardPlan] = {
                    pool.submit(_build_in_worker, plan, options, folder): plan for plan in plans
                }
            while waiting:
                done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                report(STAGE, progress.value, total)
                for future in done:
                    sidecar, shard = future.result()
                    yield waiting.pop(future), sidecar, shard
        except BrokenProcessPool as error:
            raise CorpusError(
                f"A worker process died, perhaps for lack of memory ({num_workers} workers). "
                "Finished shards are kept; run the same command again, with fewer --workers"
            ) from error
        finally:
            # Also when a shard failed: the others would be waited for, and their work thrown away.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _build_here(
    plans: Sequence[ShardPlan], options: BuildOptions, folder: Path, report: Report
) -> Iterator[Built]:
    done, total = 0, sum(plan.work for plan in plans)

    def tick(frames: int) -> None:
        nonlocal done
        done += frames
        report(STAGE, done, total)

    for plan in plans:
        sidecar, shard = build_shard(plan, options, folder, tick)
        yield plan, sidecar, shard


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Hold back Ctrl-C while workers are started, who inherit that for good.

    It reaches the whole process group. The parent gets it once this ends, and stops the workers; a worker that
    obeyed, perhaps while it still imports, would only print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker_tick: Callable[[int], None]


def _start_worker(stop: Any, progress: Any) -> None:
    """Runs once in each worker, to report its progress and to end with its parent."""
    global _worker_tick
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow_parent() -> None:
        # After kill -9 of the parent nothing else would end a worker, and a later build would meet it.
        with suppress(OSError):
            parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()

    def tick(frames: int) -> None:
        if stop.is_set():
            raise BuildStopped
        with progress.get_lock():
            progress.value += frames

    _worker_tick = tick


def _build_in_worker(plan: ShardPlan, options: BuildOptions, folder: Path) -> tuple[Sidecar, ShardInfo]:
    return build_shard(plan, options, folder, _worker_tick)
