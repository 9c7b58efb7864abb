"""Program of a test: a child saves without pause and is killed with -9 at a random moment, many times.

    kill_while_saving.py RUN_FOLDER TIMES SEED beside|waiting

After each kill the newest checkpoint must verify, be no older than the last one that was told to be published, and hold
the values of its step. Prints how many kills fell into a save that had begun and was not published.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_backend import TinyBackend, checkpoints_in, state_at

from enhancer.engine.manifest import committed

SIZE = 500_000


def save_for_ever(folder: Path, report: int, is_async: bool) -> None:
    checkpoints = checkpoints_in(folder, 2, is_async=is_async)
    found = checkpoints.latest_valid()
    step = found.state.step if found else 0
    backend = TinyBackend(SIZE)
    while True:
        step += 1
        backend.values = torch.full((SIZE,), float(step))
        checkpoints.save(state_at(step), backend)
        while checkpoints.saved:
            os.write(report, f"{checkpoints.saved.popleft().step}\n".encode())


def killed_once(folder: Path, delay: float, is_async: bool) -> int:
    """Start a saver, kill it `delay` seconds after its first save; the last step it reported."""
    reader, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        save_for_ever(folder, report, is_async)
    os.close(report)
    told = os.read(reader, 1 << 16)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reader, 1 << 16):
        told += more
    os.close(reader)
    return int(told.split()[-1])


def main(folder: Path, times: int, seed: int, is_async: bool) -> None:
    choose = random.Random(seed)
    interrupted = 0
    for _ in range(times):
        reported = killed_once(folder, choose.uniform(0, 0.1), is_async)
        interrupted += any(path.name.startswith(".step-") for path in (folder / "checkpoints").iterdir())
        published = committed(folder / "checkpoints")[0][0]
        checkpoints = checkpoints_in(folder, 2)
        found = checkpoints.latest_valid()
        assert found is not None and not checkpoints.skipped, checkpoints.skipped
        assert found.state.step == published >= reported, (found.state.step, published, reported)
        backend = TinyBackend(SIZE)
        assert checkpoints.restore(found, backend) == state_at(published)
        assert torch.equal(backend.values, torch.full((SIZE,), float(published)))
    print(interrupted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "beside")
