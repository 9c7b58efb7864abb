"""The supervisor over real processes: small programs that behave as a run does, and the toy run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from ranks import TOY, alive, environment, status, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
SUPERVISE = [sys.executable, str(REPOSITORY / "launch" / "supervise.py")]
FAST = ["--backoff-seconds", "0.1", "--grace-seconds", "20"]
# Writes what each start of a run leaves: [state, exit code, step, checkpoint], one after another.
RUN = """
import json, os, sys, time
from pathlib import Path
folder, ends = Path(sys.argv[1]), json.loads(sys.argv[2])
starts = folder / "starts"
number = len(starts.read_text().split()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(f"{time.time()}\\n")
state, code, step, checkpoint = ends[min(number, len(ends) - 1)]
(folder / "checkpoints" / f"step-{checkpoint:07d}").mkdir(parents=True, exist_ok=True)
status = {"state": state, "step": step, "exit_code": code, "reason": "because", "updated": time.time()}
(folder / "status.json").write_text(json.dumps(status))
sys.exit(0)
"""
WAITING = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def heard(number, frame):
    (folder / "heard").write_text(str(number)); sys.exit(75)
signal.signal(signal.SIGTERM, heard)
(folder / "ready").touch()
time.sleep(60)
"""


def supervise(run: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SUPERVISE, "--run-dir", str(run), *FAST, *options, "--", *command],
        env=environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ends(run: Path, *given: list[Any], options: tuple[str, ...] = ()) -> tuple[int, str, int]:
    """Exit code and words of a supervisor over starts that end as `given`, and the number of starts."""
    run.mkdir()
    process = supervise(run, sys.executable, "-c", RUN, str(run), json.dumps(given), options=options)
    text, _ = process.communicate(timeout=60)
    return process.returncode, text, len((run / "starts").read_text().split())


def test_a_run_that_fails_and_is_preempted_is_started_until_it_is_finished(tmp_path):
    code, text, starts = ends(
        tmp_path / "run",
        ["failed", 71, 4, 2],
        ["preempted", 75, 6, 6],
        ["failed", 1, 7, 6],
        ["finished", 0, 10, 10],
    )
    assert (code, starts) == (0, 4), text
    assert "restart 1 of 10" in text and "finished at step 10" in text


@pytest.mark.parametrize(("state", "expected"), [("failed", 2), ("diverged", 70)])
def test_wrong_input_and_divergence_are_not_tried_again(tmp_path, state, expected):
    code, text, starts = ends(tmp_path / "run", [state, expected, 4, 2])
    assert (code, starts) == (expected, 1), text


def test_the_same_failing_step_is_not_tried_for_ever(tmp_path):
    code, text, starts = ends(tmp_path / "run", ["failed", 1, 4, 2])
    assert (code, starts) == (1, 2)
    assert "failed twice at step 4 with no checkpoint in between" in text


def test_a_limit_of_restarts(tmp_path):
    code, text, starts = ends(tmp_path / "run", ["preempted", 75, 4, 2], options=("--max-restarts", "2"))
    assert (code, starts) == (75, 3), text


def test_a_launcher_that_ends_with_0_over_a_killed_run_is_not_believed(tmp_path):
    code, text, starts = ends(tmp_path / "run", ["running", None, 4, 2], ["finished", 0, 10, 10])
    assert (code, starts) == (0, 2), text
    assert "all processes of the run are gone without a word; the command ended with 0" in text


def test_a_status_that_says_running_for_ever_is_put_right(tmp_path):
    run = tmp_path / "run"
    assert ends(run, ["running", None, 4, 2])[0] == 71
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 71)


def test_a_command_that_never_gets_to_training(tmp_path):
    process = supervise(tmp_path, sys.executable, "-c", "import sys; sys.exit(2)")
    assert "what to mend" in process.communicate(timeout=60)[0]
    assert process.returncode == 2
    process = supervise(tmp_path, sys.executable, "-c", "import sys; sys.exit(3)")
    assert "the command ended with 3 before training began" in process.communicate(timeout=60)[0]
    assert process.returncode == 71


def test_without_a_train_command_the_run_folder_must_be_named():
    done = subprocess.run(
        [*SUPERVISE, "true"], env=environment(PYTHONPATH=str(REPOSITORY)), capture_output=True, text=True
    )
    assert done.returncode == 2 and "--run-dir" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command_and_end_the_supervisor(tmp_path, number):
    program = WAITING.replace("SIGTERM", number.name)
    process = supervise(tmp_path, sys.executable, "-c", program, str(tmp_path))
    wait_until((tmp_path / "ready").exists, 20, "the command")
    process.send_signal(number)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 75, text
    assert (tmp_path / "heard").read_text() == str(int(number))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_the_death_of_the_supervisor_ends_the_command(tmp_path):
    process = supervise(tmp_path, sys.executable, "-c", WAITING, str(tmp_path))
    wait_until((tmp_path / "ready").exists, 20, "the command")
    process.kill()
    process.communicate()
    wait_until((tmp_path / "heard").exists, 10, "the command to be told")
    wait_until(lambda: not alive(tmp_path), 10, "its end")


def test_what_outlives_its_launcher_is_ended(tmp_path):
    """A process in a session of its own that ignores SIGTERM is killed when its time is over."""
    child = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]], start_new_session=True)\n"
    )
    process = supervise(
        tmp_path, sys.executable, "-c", program, str(tmp_path), options=("--grace-seconds", "1")
    )
    text, _ = process.communicate(timeout=60)
    assert "so killed" in text
    assert not alive(tmp_path)


def _can_unshare() -> str:
    """Why processes cannot be given a PID namespace here, or nothing."""
    if shutil.which("unshare") is None:
        return "there is no unshare command"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True, check=False
    )
    return done.stderr.strip() if done.returncode else ""


def test_as_the_first_process_of_a_container_it_reaps_and_hears_signals(tmp_path):
    reason = _can_unshare()
    if reason:
        pytest.skip(f"no PID namespaces: {reason}")
    # Leaves a dead process that only the first process of the namespace can reap, then waits for SIGTERM.
    orphan = f"import os, time\nif os.fork() == 0:\n    if os.fork() == 0: time.sleep(0.3)\n    os._exit(0)\n{WAITING}"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *SUPERVISE]
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path), *FAST, "--", sys.executable, "-c", orphan, str(tmp_path)],
        env=environment(PYTHONPATH=str(REPOSITORY)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until((tmp_path / "ready").exists, 20, "the command")
    (first,) = psutil.Process(process.pid).children()
    time.sleep(1.5)
    inside = first.children(recursive=True)
    assert [
        each for each in inside if each.status() == psutil.STATUS_ZOMBIE and each.ppid() == first.pid
    ] == []
    os.kill(first.pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 75, text
    assert (tmp_path / "heard").read_text() == str(int(signal.SIGTERM))


@pytest.mark.multi
@pytest.mark.slow
def test_a_killed_toy_run_goes_on_to_its_end_bit_for_bit(tmp_path):
    """SIGKILL, and the supervisor brings the run to the weights of an unbroken one."""
    values = [
        "--set",
        "max_steps=60",
        "--set",
        "save_every=10",
        "--set",
        "eval_every=60",
        "--step-seconds",
        "0.05",
    ]
    run, whole = tmp_path / "run", tmp_path / "whole"
    unbroken = supervise(whole, sys.executable, str(TOY), str(whole), *values)
    text, _ = unbroken.communicate(timeout=120)
    assert unbroken.returncode == 0, text
    process = supervise(run, sys.executable, str(TOY), str(run), *values)
    wait_until((run / "checkpoints" / "LATEST").exists, 90, "a checkpoint")
    os.kill(status(run)["pid"], signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "gone without a word" in text and "restart 1 of 10" in text
    assert status(run)["state"] == "finished" and not alive(run)
    found, expected = (
        each / "checkpoints" / "step-0000060" / "generator.safetensors" for each in (run, whole)
    )
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.multi
@pytest.mark.slow
def test_a_frozen_run_of_one_process_is_ended_by_its_supervisor_alone(tmp_path):
    values = ["--set", "max_steps=100000", "--set", "save_every=100000", "--set", "eval_every=100000"]
    values += ["--step-seconds", "0.01", "--set", "hang_timeout_seconds=5"]
    run = tmp_path / "run"
    process = supervise(run, sys.executable, str(TOY), str(run), *values, options=("--max-restarts", "0"))
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 60, "the first step")
    victim = json.loads((run / "heartbeats" / "rank00000.json").read_text())["pid"]
    os.kill(victim, signal.SIGSTOP)
    started = time.monotonic()
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert (process.returncode, status(run)["state"]) == (71, "failed"), text
    assert "no sign of life" in status(run)["reason"] and "stopped" in status(run)["reason"]
    (stacks,) = (run / "stacks").glob("*/rank00000.txt")
    assert "most recent call first" in stacks.read_text()
    assert not alive(run)
