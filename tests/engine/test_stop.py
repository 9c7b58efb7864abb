"""Stop requests: signals, the STOP file, a launcher that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ranks import start_ranks, status, wait, wait_until

from enhancer.engine.ancestors import Ancestors
from enhancer.engine.batches import Batches
from enhancer.engine.launcher import PARENT_VARIABLE, detect
from enhancer.engine.stop import Stop, listening

FOREVER = ("--set", "max_steps=100000", "--set", "save_every=100000", "--set", "eval_every=100000")


def started(run: Path):
    process = start_ranks("accelerate", 1, run, *FOREVER, "--step-seconds", "0.01")[0]
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 60, "the first step")
    return process


def test_a_signal_is_a_request_and_the_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with listening(tmp_path, Ancestors(0)) as stop:
        assert not stop.is_requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_forked_worker_does_not_hear_the_signals_of_its_rank():
    stop = Stop()
    stop._pid = os.getpid() + 1
    stop.on_signal(signal.SIGTERM, None)
    assert not stop.is_requested


def test_a_stop_file_is_a_request(tmp_path):
    with listening(tmp_path, Ancestors(0)) as stop:
        (tmp_path / "STOP").touch()
        wait_until(lambda: stop.is_requested, 5, "the request")
    assert "STOP" in stop.reason


def test_the_end_of_the_process_above_the_parent_is_a_request(tmp_path):
    # runner -> launch -> rank: the runner is killed, launch lives on and says nothing.
    rank = (
        "import sys, time; from pathlib import Path; from enhancer.engine.stop import listening\n"
        "from enhancer.engine.ancestors import Ancestors\n"
        "folder = Path(sys.argv[1])\n"
        "with listening(folder, Ancestors(2)) as stop:\n"
        "    (folder / 'ready').touch()\n"
        "    end = time.time() + 20\n"
        "    while not stop.is_requested and time.time() < end: time.sleep(0.05)\n"
        "    (folder / 'heard').write_text(stop.reason)\n"
    )
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    runner = subprocess.Popen([sys.executable, "-c", start, start, rank, str(tmp_path)])
    wait_until((tmp_path / "ready").exists, 30, "the rank")
    time.sleep(0.2)
    runner.kill()
    runner.wait()
    wait_until((tmp_path / "heard").exists, 10, "the rank to hear of it")
    wait_until(lambda: (tmp_path / "heard").read_text(), 5, "the reason")
    assert (tmp_path / "heard").read_text() == "the launcher is gone"


def test_a_starter_that_died_before_anybody_listened_is_missed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with listening(tmp_path, Ancestors(1, gone.pid)) as stop:
        wait_until(lambda: stop.is_requested, 5, "the request")
    assert stop.reason == "the launcher is gone"
    with listening(tmp_path, Ancestors(1, os.getppid())) as stop:
        time.sleep(1)
        assert not stop.is_requested


def test_the_member_of_a_sweep_watches_the_sweep(monkeypatch):
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert (detect().num_ancestors, detect().parent_pid) == (0, None)
    monkeypatch.setenv(PARENT_VARIABLE, "4711")
    assert (detect().num_ancestors, detect().parent_pid) == (1, 4711)


def test_who_inherits_an_orphan_is_no_launcher(tmp_path):
    """A launcher that died before anybody listened: the parent is then of another session than this process."""
    rank = (
        "import sys, time; from pathlib import Path; from enhancer.engine.ancestors import Ancestors\n"
        "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.05)\n"
        "Path(sys.argv[1], 'heard').write_text(str(Ancestors(1, num_in_session=1).are_gone()))\n"
    )
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    for is_killed, expected in ((False, "False"), (True, "True")):
        folder = tmp_path / str(is_killed)
        folder.mkdir()
        # Its own session, so that the tests' is another one.
        launcher = subprocess.Popen([sys.executable, "-c", start, rank, str(folder)], start_new_session=True)
        wait_until(lambda pid=launcher.pid: psutil.Process(pid).children(), 30, "the rank")
        if is_killed:
            launcher.kill()
            launcher.wait()
        (folder / "go").touch()
        heard = folder / "heard"
        wait_until(lambda heard=heard: heard.exists() and heard.read_text(), 30, "the rank to look")
        launcher.wait()
        assert heard.read_text() == expected


def test_the_first_process_of_the_machine_is_no_torchrun(tmp_path):
    """Ranks of torchrun have sessions of their own; one that is an orphan by the time it looks must see that too."""
    rank = (
        "import os, sys, time; from pathlib import Path; from enhancer.engine.ancestors import Ancestors\n"
        "Path(sys.argv[1], 'pid').write_text(str(os.getpid()))\n"
        "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.05)\n"
        "Path(sys.argv[1], 'heard').write_text(f'{os.getppid()} {Ancestors(1).are_gone()}')\n"
    )
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
    launcher = subprocess.Popen([sys.executable, "-c", start, rank, str(tmp_path)])
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text(), 30, "the rank")
    launcher.kill()
    launcher.wait()
    wait_until(lambda: psutil.Process(int(pid.read_text())).ppid() != launcher.pid, 10, "another parent")
    (tmp_path / "go").touch()
    heard = tmp_path / "heard"
    wait_until(lambda: heard.exists() and heard.read_text(), 30, "the rank to look")
    parent, are_gone = heard.read_text().split()
    if parent != "1":
        pytest.skip(f"on this machine orphans are given to process {parent}")
    assert are_gone == "True"


def test_ranks_that_somebody_starts_by_hand_have_no_launcher_to_lose_but_him(monkeypatch):
    for name in ("RANK", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    assert (detect().num_ancestors, detect().num_in_session, detect().parent_pid) == (2, 2, None)
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))
    assert (detect().num_ancestors, detect().num_in_session, detect().parent_pid) == (1, 0, os.getppid())
    monkeypatch.setenv(PARENT_VARIABLE, "4711")  # Of a sweep, which has started a launcher.
    assert (detect().num_ancestors, detect().num_in_session) == (2, 2)


def test_waiting_for_data_ends_when_asked_to_stop():
    stop = Stop()

    class Stalled:
        def next_batch(self, timeout_seconds: float) -> None:
            stop.request("asked")

    batches = Batches(Stalled(), timeout_seconds=60, stop=stop)
    assert batches.next() is None
    assert batches.failure == ""


def test_data_that_never_come_are_a_failure_that_names_the_setting():
    class Stalled:
        def next_batch(self, timeout_seconds: float) -> None:
            time.sleep(0.01)

    batches = Batches(Stalled(), timeout_seconds=0.05, stop=Stop())
    assert batches.next() is None
    assert "data_timeout_seconds=0.05" in batches.failure


def test_data_on_their_way_are_waited_for():
    class Fetching:
        turns = 0

        def next_batch(self, timeout_seconds: float) -> dict[str, Any] | None:
            time.sleep(0.03)
            self.turns += 1
            return {"draw": self.turns} if self.turns == 10 else None

        def progress(self) -> int:
            return self.turns

    batches = Batches(Fetching(), timeout_seconds=0.1, stop=Stop())
    assert (batches.next(), batches.failure) == ({"draw": 10}, "")


def test_a_stop_file_ends_a_run_with_a_checkpoint_and_the_next_start_goes_on(tmp_path):
    run = tmp_path / "run"
    process = started(run)
    (run / "STOP").touch()
    assert wait(process).code == 75
    assert (status(run)["state"], status(run)["exit_code"]) == ("preempted", 75)
    step = status(run)["step"]
    assert (run / "checkpoints" / f"step-{step:07d}" / "manifest.json").exists()
    ended = wait(start_ranks("accelerate", 1, run, *FOREVER[2:], "--set", f"max_steps={step + 3}")[0])
    assert ended.code == 0, ended.text
    assert status(run)["step"] == step + 3


@pytest.mark.multi
def test_an_interrupt_before_training_listens_ends_it_without_a_word(tmp_path):
    script = Path(__file__).parents[2] / "launch" / "train.py"
    command = [sys.executable, str(script), "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    maps = psutil.Process(process.pid).memory_maps
    wait_until(lambda: any("libtorch" in each.path for each in maps()), 60, "torch is being imported")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / "run").exists()


def test_the_third_interrupt_leaves_at_once(tmp_path):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from enhancer.engine.stop import listening\n"
        "from enhancer.engine.ancestors import Ancestors\n"
        "with listening(Path(sys.argv[1]), Ancestors(0)) as stop:\n"
        "    stop.before_leaving = Path(sys.argv[1], 'left').touch\n"
        "    for _ in range(3):\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert (tmp_path / "left").exists()
    assert "still here" not in done.stdout
    assert [line.split(":")[0].split(";")[0] for line in done.stderr.splitlines()] == [
        "stopping",
        "already stopping",
    ]
