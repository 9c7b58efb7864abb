"""Real ranks that die, freeze, crash or come no further: the run ends in time, with its reason, and nothing stays."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from ranks import alive, free_port, run_ranks, start_launcher, start_ranks, status, wait, wait_until

from enhancer.engine.abort import write_abort
from enhancer.engine.peers import Verdict
from enhancer.engine.pulse import BEAT_SECONDS, read_beats

pytestmark = [pytest.mark.multi, pytest.mark.slow]

HELD = Path(__file__).with_name("held.py")
FOREVER = ("--set", "max_steps=100000", "--set", "save_every=100000", "--set", "eval_every=100000")
HALF = ("--set", "batch_size_per_gpu=4", *FOREVER)
SOON = (*HALF, "--set", "hang_timeout_seconds=6", "--step-seconds", "0.02")
LAUNCHERS = {"deepspeed": ["deepspeed", "--num_gpus", "2"], "torchrun": ["torchrun", "--nproc_per_node", "2"]}


def stacks(run: Path, rank: int) -> str:
    (path,) = (run / "stacks").glob(f"*/rank{rank:05d}.txt")
    return path.read_text()


def failed(run: Path, code: int) -> str:
    """The reason of a run that failed with `code`."""
    found: dict[str, Any] = status(run)
    assert (found["state"], found["exit_code"]) == ("failed", code), found
    assert not alive(run)
    return found["reason"]


@pytest.mark.parametrize(
    ("launcher", "victim", "number"),
    [
        ("deepspeed", 1, signal.SIGSTOP),
        ("deepspeed", 0, signal.SIGKILL),
        ("torchrun", 0, signal.SIGSTOP),
        ("torchrun", 1, signal.SIGKILL),
    ],
)
def test_a_rank_that_dies_or_freezes_ends_the_run_within_30_s_of_default_limits(
    tmp_path, launcher, victim, number
):
    run = tmp_path / "run"
    command = [*LAUNCHERS[launcher], "--master_port", str(free_port())]
    process = start_launcher(command, run, *HALF, "--step-seconds", "0.02")
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 120, "the first step")
    time.sleep(2 * BEAT_SECONDS)
    beat = json.loads((run / "heartbeats" / f"rank{victim:05d}.json").read_text())
    started = time.monotonic()
    os.kill(beat["pid"], number)
    wait_until(lambda: status(run)["state"] != "running", 30, "the end of the run")
    seconds = time.monotonic() - started
    wait_until(lambda: not alive(run), 30 - seconds, "the end of all processes")
    wait(process)
    reason = failed(run, 71)
    assert f"rank {victim} (process {beat['pid']}" in reason
    assert ("stopped" if number == signal.SIGSTOP else "killed") in reason
    for rank in {0, 1} if number == signal.SIGSTOP else {0, 1} - {victim}:
        assert re.search(r"Thread .*most recent call first", stacks(run, rank))


def test_ranks_that_were_all_frozen_and_woken_leave_by_themselves_and_end_nobody(tmp_path):
    """The test is the rank of another machine that has missed them."""
    run = tmp_path / "run"
    processes = start_ranks("accelerate", 2, run, *HALF, "--step-seconds", "0.02")
    wait_until(lambda: (run / "status.json").exists() and status(run)["step"] > 0, 120, "the first step")
    for process in processes:
        process.send_signal(signal.SIGSTOP)
        state = psutil.Process(process.pid).status
        wait_until(lambda state=state: state() == psutil.STATUS_STOPPED, 10, "both are frozen")
    beats = tuple(read_beats(run / "heartbeats"))
    assert len(beats) == 2
    assert write_abort(run / "heartbeats", beats[0].launch, Verdict("no sign of both", 71, beats))
    for process in processes:
        process.send_signal(signal.SIGCONT)
    ended = [wait(process) for process in processes]
    assert [each.code for each in ended] == [71, 71], [each.text for each in ended]
    assert failed(run, 71) == "no sign of both"
    assert all("most recent call first" in stacks(run, rank) for rank in (0, 1))


def test_a_rank_frozen_in_its_first_step_ends_the_run(tmp_path):
    run = tmp_path / "run"
    ended = run_ranks("accelerate", 2, run, *SOON, "--fault", "stop:0:1")
    # Woken for its stacks, the frozen rank may see by itself that the run has ended.
    assert ended[0].code == 71 and ended[1].code in (71, -signal.SIGKILL), [each.text for each in ended]
    assert "rank 1" in failed(run, 71)
    assert ended[0].text.count("no sign of life") == 1


def test_a_rank_that_is_frozen_before_the_ranks_have_met_ends_the_start(tmp_path):
    run = tmp_path / "run"
    first, second = start_ranks("accelerate", 2, run, *SOON)
    maps = psutil.Process(second.pid).memory_maps
    wait_until(lambda: any("libtorch" in each.path for each in maps()), 60, "torch is being imported")
    second.send_signal(signal.SIGSTOP)
    ended = [wait(first), wait(second)]
    assert [each.code for each in ended] == [71, -signal.SIGKILL], [each.text for each in ended]
    assert f"process {second.pid} of this machine was stopped for 6 s" in ended[0].text
    assert "most recent call first" in ended[0].text
    assert not alive(run) and not (run / "status.json").exists()


@pytest.mark.parametrize(("backend", "victim"), [("accelerate", 0), ("deepspeed", 1)])
def test_a_rank_that_dies_before_the_ranks_have_met_ends_the_start_within_30_s_of_default_limits(
    tmp_path, backend, victim
):
    """Nobody looks after these ranks, as a launcher would, and the one that waits has never heard of the other."""
    run = tmp_path / "run"
    processes = start_ranks(backend, 2, run, "start", *HALF, program=HELD)
    wait_until(lambda: len(list(tmp_path.glob("run.reached-*"))) == 2, 90, "both have imported everything")
    processes[victim].kill()
    started = time.monotonic()
    ended = wait(processes[1 - victim])
    assert time.monotonic() - started < 30, ended.text
    assert ended.code == 71, ended.text
    assert "while the ranks met, 1 of the 2 ranks of this machine had ended" in ended.text
    wait(processes[victim])
    assert not alive(run) and not run.exists()


def test_a_rank_whose_interpreter_is_held_for_ever_tells_where(tmp_path):
    run = tmp_path / "run"
    ended = run_ranks("accelerate", 2, run, *SOON, "--fault", "hold:5:1")
    assert ended[0].code == 71, ended[0].text
    assert "rank 1" in failed(run, 71)
    assert "toy.py" in stacks(run, 1) and "_break" in stacks(run, 1)


def test_a_rank_that_dies_when_it_is_asked_for_its_stacks_changes_nothing_of_the_end(tmp_path):
    run = tmp_path / "run"
    ended = run_ranks("accelerate", 2, run, *SOON, "--fault", "mute:5:1")
    assert [each.code for each in ended] == [71, -signal.SIGQUIT], [each.text for each in ended]
    reason = failed(run, 71)
    assert "rank 1" in reason and "no sign of life" in reason
    assert "most recent call first" in stacks(run, 0)


def test_a_crash_of_one_rank_is_the_reason_on_the_other(tmp_path):
    run = tmp_path / "run"
    ended = run_ranks("accelerate", 2, run, *SOON, "--fault", "crash:5:1")
    assert [each.code for each in ended] == [1, 1], [each.text for each in ended]
    assert "rank 1" in (reason := failed(run, 1)) and "KeyError: 'a mistake in the code'" in reason


def test_a_standstill_of_living_ranks_ends_the_run(tmp_path):
    run = tmp_path / "run"
    ended = run_ranks("accelerate", 2, run, *SOON, "--set", "stall_timeout_seconds=6", "--fault", "stall:5:1")
    assert [each.code for each in ended] == [71, 71], [each.text for each in ended]
    reason = failed(run, 71)
    assert "no rank came further for 6 s" in reason and "rank 1 in waiting for data at step 5" in reason
    assert "_break" in stacks(run, 1)


def test_a_rank_that_is_cut_off_in_the_last_save_ends_the_run_within_the_limit(tmp_path):
    """It lives, but does not answer any more, as beyond a link that was cut."""
    run = tmp_path / "run"
    values = ("--set", "batch_size_per_gpu=4", "--set", "max_steps=4", "--set", "comm_timeout_seconds=5")
    ended = [
        wait(process)
        for process in start_ranks("deepspeed", 2, run, "cut off while saving", *values, program=HELD)
    ]
    assert [each.code for each in ended] == [1, 1], [each.text for each in ended]
    assert "longer than comm_timeout_seconds=5" in failed(run, 1)


@pytest.mark.parametrize("backend", ["accelerate", "deepspeed"])
def test_a_rank_that_cannot_show_signs_of_life_ends_the_start_on_both_in_words(tmp_path, backend):
    run = tmp_path / "run"
    ended = [wait(each) for each in start_ranks(backend, 2, run, "no watch of one", *HALF, program=HELD)]
    assert [each.code for each in ended] == [2, 2], [each.text for each in ended]
    text = f"error: rank 1 cannot write {run}/heartbeats/rank00001.json (Permission denied), by which the ranks watch"
    assert [each.text.count(text) for each in ended] == [1, 0]
    assert "Traceback" not in ended[0].text + ended[1].text
    assert failed(run, 2).startswith(text.removeprefix("error: "))
    assert not any((run / name).exists() for name in ("checkpoints", "stacks", "hparams.yaml"))


def test_a_run_that_goes_well_leaves_no_trace_of_the_watch(tmp_path):
    run = tmp_path / "run"
    for ended in run_ranks("accelerate", 2, run, "--set", "batch_size_per_gpu=4"):
        assert ended.code == 0, ended.text
    assert not (run / "heartbeats").exists() and not (run / "stacks").exists()
