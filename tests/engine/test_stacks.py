"""Stacks of a process that stands still: told by itself where it can, by a signal where it cannot."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from enhancer.engine.pulse import Beat, this_host
from enhancer.engine.stacks import end_hung, stack_path

RANK = """
import ctypes, faulthandler, os, signal, sys, threading, time
from pathlib import Path
from enhancer.engine.stacks import StackFile
kind, folder = sys.argv[1], Path(sys.argv[2])
stacks = StackFile(folder, 1)
def watch():
    while not (folder / "abort").exists():
        time.sleep(0.01)
    stacks.dump()
    os._exit(71)
def stand_still():
    if kind == "frozen":
        threading.Thread(target=watch, daemon=True).start()
        os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            time.sleep(0.001)
    mutex = ctypes.create_string_buffer(64)
    (folder / "ready").touch()
    while True:
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)  # The second time for ever, with the interpreter held.
if kind != "holding":
    faulthandler.unregister(signal.SIGQUIT)  # It would kill this process.
stand_still()
"""

CHURN = """
import sys, threading
from pathlib import Path
from enhancer.engine.stacks import StackFile
def deep(n):
    return n if n == 0 else deep(n - 1)
def churn():
    while True:
        exec("def g(n):\\n    return sum(x for x in range(n))\\ng(50)", {})
        deep(40)
for _ in range(2):
    threading.Thread(target=churn, daemon=True).start()
stacks = StackFile(Path(sys.argv[1]), 0)
for _ in range(1500):
    stacks.dump()
"""


@pytest.mark.parametrize(("kind", "code"), [("frozen", 71), ("holding", -9), ("mute", -3)])
def test_a_signal_is_the_last_resort_for_stacks(tmp_path, kind, code):
    """A frozen one tells when it is woken; who holds the interpreter is asked by a signal, and may die of it."""
    process = subprocess.Popen([sys.executable, "-c", RANK, kind, str(tmp_path)])
    try:
        while (
            psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
            and not (tmp_path / "ready").exists()
        ):
            assert process.poll() is None
            time.sleep(0.01)
        (tmp_path / "abort").touch()
        created = psutil.Process(process.pid).create_time()
        end_hung([Beat("start", 1, this_host(), process.pid, created, 6.0)], tmp_path)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait()
    text = stack_path(tmp_path, 1).read_text()
    assert ("most recent call first" in text and "stand_still" in text) == (kind != "mute")


def test_stacks_of_threads_that_run_can_be_told_without_end(tmp_path):
    """The handler of the signal crashes a process like this one after some hundred times."""
    done = subprocess.run([sys.executable, "-c", CHURN, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert stack_path(tmp_path, 0).read_text().count("in churn") > 1500
