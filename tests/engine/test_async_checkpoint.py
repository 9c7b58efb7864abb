"""Checkpoints written beside training: of one moment, one at a time, and no failure of a write passes unseen."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_backend import TinyBackend, checkpoints_in, state_at

from enhancer.engine.background import Background
from enhancer.engine.publisher import SaveError

HERE = Path(__file__).parent
SECONDS = 20


class Gate:
    """`before_write` of a backend that holds every write until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_reached = threading.Event()

    def __call__(self) -> None:
        self.is_reached.set()
        assert self.is_open.wait(SECONDS)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def values_of(folder: Path, step: int) -> torch.Tensor:
    return load_file(folder / "checkpoints" / f"step-{step:07d}" / "tiny-0.safetensors")["values"]


def test_training_goes_on_at_once_and_the_checkpoint_is_of_the_moment_of_the_save(tmp_path):
    checkpoints, gate = checkpoints_in(tmp_path, is_async=True), Gate()
    backend = TinyBackend(before_write=gate)
    backend.values = torch.randn(100)
    expected = backend.values.clone()
    checkpoints.save(state_at(1), backend)
    assert gate.is_reached.wait(SECONDS)
    assert not (tmp_path / "checkpoints" / "step-0000001").exists()
    backend.values.zero_()  # As the next steps would.
    torch.randn(5)
    gate.is_open.set()
    checkpoints.finish()
    assert torch.equal(values_of(tmp_path, 1), expected)
    found = checkpoints_in(tmp_path).latest_valid()
    assert found is not None and found.state == state_at(1)


def test_the_random_numbers_are_of_the_moment_of_the_save(tmp_path):
    checkpoints, gate = checkpoints_in(tmp_path, is_async=True), Gate()
    checkpoints.save(state_at(1), TinyBackend(before_write=gate))
    expected = torch.randn(5)
    gate.is_open.set()
    checkpoints.finish()
    found = checkpoints.latest_valid()
    assert found is not None
    checkpoints.restore(found, TinyBackend())
    assert torch.equal(torch.randn(5), expected)


def test_the_next_save_waits_for_the_one_before(tmp_path):
    checkpoints, gate = checkpoints_in(tmp_path, is_async=True), Gate()
    backend = TinyBackend(before_write=gate)
    backend.values = torch.full((100,), 1.0)
    checkpoints.save(state_at(1), backend)
    assert gate.is_reached.wait(SECONDS)
    threading.Timer(0.3, gate.is_open.set).start()
    backend.values = torch.full((100,), 2.0)
    checkpoints.save(state_at(2), backend)
    assert gate.is_open.is_set()
    checkpoints.finish()
    assert [values_of(tmp_path, step)[0] for step in (1, 2)] == [1, 2]
    blocked = [saved.blocked_seconds for saved in checkpoints.saved]
    assert blocked[0] < 0.25 < blocked[1], blocked
    assert [saved.step for saved in checkpoints.saved] == [1, 2]


def test_a_save_of_the_step_under_way_is_the_same_save(tmp_path):
    checkpoints, gate = checkpoints_in(tmp_path, is_async=True), Gate()
    backend = TinyBackend(before_write=gate)
    checkpoints.save(state_at(1), backend, is_best=True)
    checkpoints.save(state_at(1), backend)  # Does not wait: the gate is shut.
    gate.is_open.set()
    checkpoints.save(state_at(1), backend, is_waiting=True)
    assert names(tmp_path) == ["BEST", "LATEST", "step-0000001"]
    assert len(checkpoints.saved) == 1


def test_a_waiting_save_stands_when_it_returns(tmp_path):
    checkpoints = checkpoints_in(tmp_path, is_async=True)
    checkpoints.save(state_at(1), TinyBackend())
    checkpoints.save(state_at(2), TinyBackend(), is_waiting=True)
    assert names(tmp_path) == ["LATEST", "step-0000001", "step-0000002"]


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["save", "finish"])
def test_a_failed_write_is_told_at_once_and_raised_by_the_next_call(tmp_path, call):
    told, is_told = [], threading.Event()

    def on_failure(text: str) -> None:
        told.append(text)
        is_told.set()

    checkpoints = checkpoints_in(tmp_path, is_async=True, on_failure=on_failure)
    checkpoints.save(state_at(1), TinyBackend(), is_waiting=True)
    checkpoints.save(state_at(2), TinyBackend(before_write=full_disk))
    assert is_told.wait(SECONDS)
    assert "No space left" in told[0]
    assert names(tmp_path) == ["LATEST", "step-0000001"]
    with pytest.raises(
        SaveError, match=r"step-0000002.*No space left.*step-0000001, is untouched.*Make room"
    ):
        if call == "save":
            checkpoints.save(state_at(3), TinyBackend())
        else:
            checkpoints.finish()
    assert names(tmp_path) == ["LATEST", "step-0000001"]


def test_a_bug_in_the_writer_is_raised_as_it_is(tmp_path):
    def bug() -> None:
        raise KeyError("values")

    checkpoints = checkpoints_in(tmp_path, is_async=True)
    checkpoints.save(state_at(1), TinyBackend(before_write=bug))
    with pytest.raises(KeyError, match="values"):
        checkpoints.finish()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no niceness of a thread")
def test_the_writer_gives_way_to_training():
    import os

    found = []
    own = os.getpriority(os.PRIO_PROCESS, 0)
    background = Background("test", lambda text: None)
    background.start(lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    background.finish()
    assert found == [min(own + 10, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


TWO_RANKS = """
import errno, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
import torch.distributed as dist
from tiny_backend import TinyBackend, checkpoints_in, state_at
from enhancer.engine import distributed
from enhancer.engine.publisher import SaveError
rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=rank, world_size=2)
told = threading.Event()
checkpoints = checkpoints_in(Path(sys.argv[1]), is_async=True, on_failure=lambda text: told.set())
backend = TinyBackend()
backend.values += rank
gate = threading.Event()
backend.before_write = lambda: gate.wait(20)
checkpoints.save(state_at(1), backend)
# Training speaks on its own line while the write is under way.
for number in range(50):
    assert distributed.all_max([rank * number]) == [number]
gate.set()
def full():
    if rank == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
backend.before_write = full
backend.values += 10
checkpoints.save(state_at(2), backend)
assert told.wait(20), "the other rank's failure was not told"
try:
    checkpoints.save(state_at(3), backend)
except SaveError as error:
    assert "rank 1" in str(error) and "step-0000001, is untouched" in str(error), error
else:
    raise SystemExit("the failure was silent")
other = TinyBackend()
found = checkpoints.latest_valid()
assert checkpoints.restore(found, other) == state_at(1)
assert torch.equal(other.values, torch.full((100,), float(rank)))
dist.destroy_process_group()
"""


@pytest.mark.multi
def test_a_write_that_fails_on_one_rank_is_learned_by_both(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(tmp_path), str(HERE), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert names(tmp_path) == ["LATEST", "step-0000001"]


MEMORY = """
import re, sys
from pathlib import Path
from tiny_backend import TinyBackend, checkpoints_in, state_at

def peak():
    # Not ru_maxrss, which begins at the size of the process that this one was forked from.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

size = 50_000_000
backend = TinyBackend(size)
backend.values += 1
checkpoints = checkpoints_in(Path(sys.argv[1]), 1, is_async=True)
checkpoints.save(state_at(0), TinyBackend(1))
checkpoints.finish()
before = peak()
for step in (1, 2, 3):
    checkpoints.save(state_at(step), backend)
checkpoints.finish()
print((peak() - before) / (4 * size))
"""


def test_the_memory_of_many_saves_is_that_of_one_snapshot(tmp_path):
    """As the system counts it, for the whole process; a copy for the writing would make it two."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=HERE, capture_output=True, text=True, check=True
    )
    assert 0.9 < float(done.stdout) < 1.2, done.stdout
