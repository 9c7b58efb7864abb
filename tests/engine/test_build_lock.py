"""A lock that a killed build has left is told from one that a build holds."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

sys.path.insert(0, str(Path(__file__).parent))
from ranks import environment, status

from enhancer.engine import build_lock
from enhancer.engine.build_lock import BuildLocks, waited_lock

HOLDER = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep(60)"
STUCK = """
import sys
from pathlib import Path
from torch.utils.file_baton import FileBaton
from enhancer.engine.pulse import Pulse
from enhancer.engine.run import Run
from enhancer.engine.stop import Stop
from enhancer.engine.watch import watching
from hparams.load import load
hp = load("base", ["hang_timeout_seconds=5"])
run = Run.open(Path(sys.argv[1]), hp)
run.status("running", 0)
with watching(run, Pulse(), hp, Stop()):
    FileBaton(sys.argv[2]).wait()
"""


@pytest.fixture
def waiting(tmp_path):
    """A lock file and a thread that waits for it as a build does."""
    lock = tmp_path / "lock"
    lock.touch()
    thread = threading.Thread(target=FileBaton(str(lock)).wait)
    thread.start()
    yield lock, thread
    lock.unlink()
    thread.join(5)


def looked_at(locks: BuildLocks, thread: threading.Thread) -> list[Path | None]:
    """What is found at the seconds 0, 4 and 6."""
    while waited_lock(thread.ident or 0) is None:
        time.sleep(0.01)
    return [locks.stale(now) for now in (0.0, 4.0, 6.0)]


def test_a_lock_that_nobody_holds_is_stale_after_the_patience(waiting):
    lock, thread = waiting
    assert looked_at(BuildLocks(thread.ident or 0, 5.0), thread) == [None, None, lock]


def test_a_lock_that_a_process_holds_is_not(tmp_path):
    lock = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        thread = threading.Thread(target=FileBaton(str(lock)).wait)
        thread.start()
        locks = BuildLocks(thread.ident or 0, 5.0)
        assert looked_at(locks, thread) == [None, None, None]
        process.kill()
        process.wait()
        assert looked_at(locks, thread) == [None, None, lock]
    finally:
        process.kill()
        process.communicate()
        lock.unlink(missing_ok=True)
        thread.join(5)


def test_a_young_lock_on_a_file_system_of_several_machines_may_be_held_elsewhere(waiting, monkeypatch):
    _, thread = waiting
    monkeypatch.setattr(build_lock, "_is_shared", lambda path: True)
    assert looked_at(BuildLocks(thread.ident or 0, 5.0), thread) == [None, None, None]


def test_a_thread_that_waits_for_no_build_has_no_lock():
    assert waited_lock(threading.get_ident()) is None


def test_a_run_that_waits_for_a_stale_lock_ends_and_names_it(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path / "run"), str(lock)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    reason = status(tmp_path / "run")["reason"]
    assert str(lock) in reason and "Remove that file" in reason and reason in done.stderr
    (stacks,) = (tmp_path / "run" / "stacks").glob("*/rank00000.txt")
    assert "file_baton.py" in stacks.read_text()


def test_a_verdict_that_cannot_be_written_ends_the_run_all_the_same(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    full = "import sys\nfrom enhancer.engine.run import Run\ndef full(*_, **__): raise OSError('no room')\n"
    program = full + STUCK.replace("with watching", "Run.status = full\nwith watching")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), str(lock)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert str(lock) in done.stderr and "no room" in done.stderr
