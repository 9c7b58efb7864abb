"""A run of two ranks that is asked to stop, or loses one of its processes, at any moment: `make stops` tries them all.

Each time the ranks that live agree, save if there is something to save, `status.json` tells what happened, and no
process is left 30 s later.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from ranks import SCRIPTS, environment, free_port, status, wait_until

from enhancer.engine.manifest import committed, verify

pytestmark = [pytest.mark.multi, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("held.py")
END_SECONDS = 30
VICTIM = 1
MARK = "WAVEWRIGHT_TEST_RUN"
LAUNCHERS = {"deepspeed": ["deepspeed", "--num_gpus", "2"], "torchrun": ["torchrun", "--nproc_per_node", "2"]}
MOMENTS = ("start", "opening", "build", "data wait", "step", "evaluation", "saving")
BEFORE_TRAINING = ("start", "opening", "build")
VALUES = ["batch_size_per_gpu=4", "max_steps=100000", "save_every=100000", "eval_every=100000"]
CADENCE = {"evaluation": "eval_every=4", "saving": "save_every=4"}


def kin(run: Path) -> list[psutil.Process]:
    """All living processes of the run, however they were started: they have inherited its mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(run):
                found.append(process)
        except psutil.Error:
            continue  # Of another user, a zombie, or gone since.
    return found


def rank(run: Path, number: int) -> int:
    """Process of rank `number`: the one whose parent is of no rank."""
    ranks = {each.pid: each for each in kin(run) if each.environ().get("RANK") == str(number)}
    (found,) = (pid for pid, each in ranks.items() if each.ppid() not in ranks)
    return found


def builder(run: Path) -> int:
    """Number of the rank that builds, which may be either: the one that has the lock open."""
    (lock,) = run.rglob("lock")
    (found,) = (
        number
        for number in range(2)
        if str(lock) in [file.path for file in psutil.Process(rank(run, number)).open_files()]
    )
    return found


def launch_process(runner: int) -> int:
    (found,) = psutil.Process(runner).children()
    return found.pid


REQUESTS: dict[str, Callable[[int, Path], None]] = {
    "SIGTERM to the runner": lambda runner, run: os.kill(runner, signal.SIGTERM),
    "SIGTERM to the launch process": lambda runner, run: os.kill(launch_process(runner), signal.SIGTERM),
    "SIGTERM to the group": lambda runner, run: os.killpg(runner, signal.SIGTERM),
    "SIGINT to the group": lambda runner, run: os.killpg(runner, signal.SIGINT),
    "STOP file": lambda runner, run: (run / "STOP").touch(),
    "death of the runner": lambda runner, run: os.kill(runner, signal.SIGKILL),
    "death of the launch process": lambda runner, run: os.kill(launch_process(runner), signal.SIGKILL),
    "death of a rank": lambda runner, run: os.kill(rank(run, VICTIM), signal.SIGKILL),
}
# torchrun is runner and launch process in one, and its ranks are no part of its group.
OF_DEEPSPEED = ("SIGTERM to the launch process", "SIGTERM to the group", "death of the launch process")


def is_cell(launcher: str, moment: str, request: str) -> bool:
    if launcher == "torchrun" and request in OF_DEEPSPEED:
        return False
    return not (
        moment == "start" and request == "STOP file"
    )  # One that is there at the start is of the run before.


ALL = [
    (launcher, moment, request)
    for launcher in LAUNCHERS
    for moment in MOMENTS
    for request in REQUESTS
    if is_cell(launcher, moment, request)
]
SHORT = [
    ("deepspeed", "start", "death of the launch process"),
    ("torchrun", "start", "death of the runner"),
    ("deepspeed", "build", "SIGTERM to the runner"),
    ("deepspeed", "build", "death of a rank"),
    ("deepspeed", "data wait", "SIGTERM to the launch process"),
    ("torchrun", "saving", "death of the runner"),
]


def start(launcher: str, moment: str, run: Path) -> subprocess.Popen[bytes]:
    words = [*LAUNCHERS[launcher], "--master_port", str(free_port()), str(PROGRAM), str(run), moment]
    values = [*VALUES, CADENCE.get(moment, "seed=1")]
    with run.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [str(SCRIPTS / words[0]), *words[1:], *(word for value in values for word in ("--set", value))],
            env=environment(**{MARK: str(run)}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for_moment(moment: str, run: Path) -> None:
    num_reached = 1 if moment == "build" else 2  # One rank builds, and the other waits for it.
    if moment == "saving":
        num_reached = 1  # With Accelerate rank 0 alone has much to write.
    wait_until(lambda: len(list(run.parent.glob(f"{run.name}.reached-*"))) >= num_reached, 90, moment)


@pytest.mark.parametrize(
    ("launcher", "moment", "request_"), ALL if os.environ.get("WAVEWRIGHT_STOPS") else SHORT
)
def test_a_run_ends_as_it_should_whenever_and_however_it_is_told(tmp_path, launcher, moment, request_):
    run = tmp_path / "run"
    process = start(launcher, moment, run)
    try:
        wait_for_moment(moment, run)
        number_of_builder = builder(run) if moment == "build" else None
        started = time.monotonic()
        REQUESTS[request_](process.pid, run)
        process.wait(END_SECONDS)
        wait_until(
            lambda: not kin(run), END_SECONDS - (time.monotonic() - started), "the end of all processes"
        )
    finally:
        left = kin(run)
        for each in left:
            each.kill()
        process.wait()
    text = run.with_suffix(".log").read_text()
    assert not left, text
    check_end(launcher, moment, request_, run, text)
    if request_ == "STOP file" and launcher == "deepspeed":
        assert process.returncode == 75, text
    # A build's lock would stop the next start. Only a builder that is killed leaves it, which that start then names.
    is_left = request_ == "death of a rank" and number_of_builder == VICTIM
    assert [path.name for path in run.rglob("lock")] == ["lock"] * is_left, text


def check_end(launcher: str, moment: str, request: str, run: Path, text: str) -> None:
    if moment == "start" and not (run / "status.json").exists():
        # They have not met, so there was no run. Orphans say why they end, unless a signal has ended them.
        assert not committed(run / "checkpoints") and not (run / "metrics.jsonl").exists(), text
        if (launcher, request) == ("torchrun", "death of the runner"):
            assert "stopped: the launcher is gone, while the ranks met" in text
        return
    found = status(run)
    expected = ("failed", 71) if request == "death of a rank" else ("preempted", 75)
    assert (found["state"], found["exit_code"]) == expected, text
    saved = committed(run / "checkpoints")
    for _, folder in saved:
        verify(folder)
    if moment == "start" and expected[0] == "preempted":
        # Nothing holds the ranks there: on a busy machine they have taken steps before the request is heard.
        assert found["step"] == (saved[0][0] if saved else 0), text
    elif moment in BEFORE_TRAINING:
        assert found["step"] == 0 and not saved
    elif expected[0] == "preempted":
        assert found["step"] > 0 and saved[0][0] == found["step"], text


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_dies_in_a_start_is_the_reason_though_its_launcher_tells_the_other_to_stop(
    tmp_path, launcher
):
    """The other one is told by SIGTERM, and its wait for the dead one fails, before it has seen what happened."""
    run = tmp_path / "run"
    process = start(launcher, "opening of one", run)
    try:
        wait_until(lambda: list(tmp_path.glob("run.reached-*")), 90, "one rank opens its data")
        os.kill(rank(run, VICTIM), signal.SIGKILL)
        process.wait(END_SECONDS)
        wait_until(lambda: not kin(run), END_SECONDS, "the end of all processes")
    finally:
        for each in kin(run):
            each.kill()
        process.wait()
    text = run.with_suffix(".log").read_text()
    found = status(run)
    assert (found["state"], found["exit_code"]) == ("failed", 71), text
    assert re.search(rf"rank {VICTIM} \(process \d+ on .*\) is gone", found["reason"])
