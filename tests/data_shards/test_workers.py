"""Loader workers: how many, what they load, and how their end and the main process's end are noticed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from data_shards import loader_pool, stream
from data_shards.stream import WorkerDied, open_stream, worker_count
from tests.data_shards import mix_corpora


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return mix_corpora.build_all(tmp_path_factory.mktemp("corpora"))


@pytest.mark.multi
def test_a_killed_worker_is_named(hp):
    batches = open_stream(hp, num_workers=2).from_draw(0)
    next(batches)
    pid = batches.worker_pids[1]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        WorkerDied, match=rf"worker 1 of 2 \(pid {pid}\) of rank 0 was killed by SIGKILL"
    ) as caught:
        for _ in range(10):
            next(batches)
    assert "draws" in str(caught.value)
    batches.close()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


@pytest.mark.multi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_ignore_signals_meant_for_the_main_process(hp):
    batches = open_stream(hp, num_workers=1).from_draw(0)
    first = next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(batches.worker_pids[0], number)
    assert [next(batches)["draw"][0].item() for _ in range(6)] == [8, 16, 24, 32, 40, 48]
    assert first["draw"][0] == 0
    pids = batches.worker_pids
    batches.close()
    assert wait_until_gone(pids)


@pytest.mark.multi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_the_iterator_is_dropped(hp):
    batches = open_stream(hp, num_workers=2).from_draw(0)
    pids = batches.worker_pids
    del batches
    assert wait_until_gone(pids)


MAIN_THAT_IS_KILLED = """
import pickle, sys, time
from data_shards.stream import open_stream
batches = open_stream(pickle.loads(bytes.fromhex(sys.argv[1])), num_workers=2).from_draw(0)
next(batches)
print(*batches.worker_pids, flush=True)
time.sleep(60)
"""


@pytest.mark.multi
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_workers_end_when_the_main_process_is_killed(hp, is_stopped):
    command = [sys.executable, "-c", MAIN_THAT_IS_KILLED, pickle.dumps(hp).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        if is_stopped:
            os.kill(pids[0], signal.SIGSTOP)
        process.kill()
    assert wait_until_gone(pids)


class _Stalled:
    """A source that never has a batch, and the clock by which it is waited for."""

    def __init__(self):
        self.waits = []

    def next_arrays(self, timeout_seconds):
        self.waits.append(timeout_seconds)

    def awaited(self):
        return "nobody"

    def monotonic(self):
        return sum(self.waits)


def test_bounded_waiting_returns_and_the_whole_wait_is_bounded(monkeypatch):
    stalled = _Stalled()
    monkeypatch.setattr(stream, "time", stalled)
    batches = stream.BatchIterator(stalled, timeout_seconds=2.5)
    assert batches.next_batch(1.0) is None
    assert batches.next_batch(1.0) is None
    with pytest.raises(TimeoutError, match=r"data_timeout_seconds=2\.5"):
        batches.next_batch(1.0)
    assert stalled.waits == [1.0, 1.0, 0.5]
    with pytest.raises(TimeoutError):
        next(stream.BatchIterator(stalled, timeout_seconds=0.5))


@pytest.mark.multi
def test_a_stopped_worker_runs_into_the_timeout(hp):
    batches = open_stream(replace(hp, data_timeout_seconds=1.0), num_workers=1).from_draw(0)
    # Starting the worker counts as waiting too, so the first batch gets more time on a busy machine.
    batches._timeout_seconds = 30.0
    next(batches)
    batches._timeout_seconds = 1.0
    os.kill(batches.worker_pids[0], signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"loader worker 0 of 1 \(process \d+\), which is stopped"):
        for _ in range(5):
            next(batches)
    batches.close()


def test_workers_import_neither_torch_nor_pydantic_nor_fsspec():
    """Their start is a part of the wait for the first step."""
    code = (
        "import sys, data_shards.loader_worker as _; "
        "print({'torch', 'pydantic', 'scipy', 'fsspec'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_worker_count_is_bounded_by_cores_and_by_nj(hp, monkeypatch):
    for cores, ranks, nj, praat, expected in [
        (2, 1, 64, 0.0, 2),
        (2, 2, 64, 0.0, 1),
        (2, 4, 64, 0.0, 1),
        (128, 8, 64, 0.0, stream.MOST_USEFUL_WORKERS),
        (128, 8, 64, 0.5, 16),
        (16, 1, 3, 0.0, 3),
        (16, 1, 0, 0.0, 0),
    ]:
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False
        )
        monkeypatch.setattr(sys, "platform", "linux")
        assert worker_count(replace(hp, nj=nj, praat_augment_prob=praat), ranks) == expected


def test_exit_descriptions_name_signals_and_codes():
    assert "SIGKILL" in loader_pool._describe_exit(-9) and "memory" in loader_pool._describe_exit(-9)
    assert "SIGSEGV" in loader_pool._describe_exit(-11)
    assert "exit code 1" in loader_pool._describe_exit(1)
