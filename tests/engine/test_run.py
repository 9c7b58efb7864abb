"""The run folder: hyper-parameters that stay, a status that is true, one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from tiny_backend import TinyBackend, checkpoints_in, state_at

from enhancer.engine import atomic, folder_lock, records
from enhancer.engine import run as run_module
from enhancer.engine.run import Run
from hparams.errors import UserError
from hparams.load import load
from hparams.schema import HParams


def reopened(folder: Path, hp: HParams) -> Run:
    run = Run.open(folder, hp)
    run.close()
    return run


def trained_to(folder: Path, step: int) -> None:
    checkpoints_in(folder, 3).save(state_at(step), TinyBackend())


def test_the_resolved_values_are_written_before_anything_else(tmp_path):
    hp = load("base_small", ["seed=3"])
    reopened(tmp_path / "deep" / "run", hp)
    assert load(tmp_path / "deep" / "run" / "hparams.yaml") == hp


def test_the_same_command_goes_on(tmp_path):
    reopened(tmp_path, HParams())
    assert reopened(tmp_path, HParams()).changes == []


def test_other_values_are_refused_with_the_difference_and_nothing_is_changed(tmp_path):
    reopened(tmp_path, HParams())
    with pytest.raises(UserError) as caught:
        Run.open(tmp_path, load("base", ["task.width=4", "max_lr=1e-3", "nj=1"]))
    text = str(caught.value)
    assert "max_lr: the run has 0.0001, the command gives 0.001" in text
    assert "task.width: the run has 16, the command gives 4" in text
    assert "nj" not in text and "--run-dir" in text
    assert load(tmp_path / "hparams.yaml") == HParams()


def test_values_that_may_change_are_taken_over_and_recorded(tmp_path):
    reopened(tmp_path, HParams())
    trained_to(tmp_path, 5)
    new = load("base", ["nj=1", "max_steps=2000000", "save_every=7"])
    assert reopened(tmp_path, new).changes == [
        ("nj", 64, 1),
        ("max_steps", 1_000_000, 2_000_000),
        ("save_every", 1000, 7),
    ]
    assert load(tmp_path / "hparams.yaml") == new
    (event,) = records.read(tmp_path / "metrics.jsonl")
    assert (event["kind"], event["name"], event["step"]) == ("event", "hparams_changed", 5)
    assert {"key": "nj", "old": 64, "new": 1} in event["changes"]


def test_max_steps_below_the_resumed_step_is_refused(tmp_path):
    reopened(tmp_path, HParams())
    trained_to(tmp_path, 3000)
    with pytest.raises(UserError, match=r"max_steps is 2000, below the resumed step.*3000 or more"):
        Run.open(tmp_path, load("base", ["max_steps=2000"]))
    assert reopened(tmp_path, load("base", ["max_steps=3000"])).changes == [("max_steps", 1_000_000, 3000)]


def test_the_batch_per_rank_may_change_when_the_global_batch_stays(tmp_path, monkeypatch):
    reopened(tmp_path, HParams())
    halved = replace(HParams(), batch_size_per_gpu=8)
    trained_to(tmp_path, 5)  # a global batch of 16
    with pytest.raises(UserError, match="batch_size_per_gpu: the run has 16, the command gives 8"):
        Run.open(tmp_path, halved)
    monkeypatch.setattr(run_module.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(run_module.distributed, "on_main", lambda function: function())
    assert reopened(tmp_path, halved).changes == [("batch_size_per_gpu", 16, 8)]


def test_a_damaged_hparams_file_is_named(tmp_path):
    (tmp_path / "hparams.yaml").write_text("nj: [1\n")
    with pytest.raises(UserError, match=r"hparams\.yaml:2: not valid YAML"):
        Run.open(tmp_path, HParams())


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run folder .* cannot be written .*--run-dir"):
        Run.open(tmp_path / place, HParams())


def test_status_says_where_the_run_is(tmp_path):
    run = Run.open(tmp_path, HParams())
    run.status("running", 10)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["max_steps"]) == ("running", 10, 1_000_000)
    assert (status["pid"], status["exit_code"]) == (os.getpid(), None)
    assert datetime.fromisoformat(status["started"]) <= datetime.fromisoformat(status["updated"])
    run.close()


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("finished", None, 0),
        ("diverged", None, 70),
        ("preempted", None, 75),
        ("failed", None, 1),
        ("failed", 2, 2),
    ],
)
def test_status_has_the_exit_code(tmp_path, state, code, expected):
    run = Run.open(tmp_path, HParams())
    run.status(state, 5, "because", exit_code=code)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"], status["exit_code"]) == (state, "because", expected)
    run.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_status_is_told_on_a_full_disk_too(tmp_path, monkeypatch, number):
    run = Run.open(tmp_path, HParams())
    run.status("running", 1, "a reason longer than the next")

    def refuse(path, text, is_durable=True):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "write_text", refuse)
    run.status("failed", 2)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    run.close()


def test_other_ranks_write_no_status(tmp_path, monkeypatch):
    run = Run.open(tmp_path, HParams())
    monkeypatch.setattr(run_module.distributed, "is_main", lambda: False)
    run.status("running", 1)
    assert not (tmp_path / "status.json").exists()
    run.close()


def test_the_stop_file_of_the_last_run_is_gone_but_not_that_of_a_run_refused(tmp_path):
    reopened(tmp_path, HParams())
    (tmp_path / "STOP").touch()
    os.utime(tmp_path / "STOP", (0, psutil.Process().create_time() - 2))
    with pytest.raises(UserError):
        Run.open(tmp_path, load("base", ["seed=1"]))
    assert (tmp_path / "STOP").exists()
    reopened(tmp_path, HParams())
    assert not (tmp_path / "STOP").exists()


def test_a_stop_file_that_came_while_this_process_started_is_heard(tmp_path):
    (tmp_path / "STOP").touch()
    reopened(tmp_path, HParams())
    assert (tmp_path / "STOP").exists()


def test_a_stop_file_written_anew_while_the_old_one_is_judged_is_heard(tmp_path, monkeypatch):
    reopened(tmp_path, HParams())
    stop = tmp_path / "STOP"
    stop.touch()
    os.utime(stop, (0, 0))

    def started_unix() -> float:
        stop.touch()
        return psutil.Process().create_time()

    monkeypatch.setattr("enhancer.engine.run.started_unix", started_unix)
    reopened(tmp_path, HParams())
    assert stop.exists() and stop.stat().st_mtime > psutil.Process().create_time()
    assert not list(tmp_path.glob(".*.tmp-*"))


@pytest.mark.parametrize("ahead_seconds", [3600, -3600])
def test_a_stop_file_is_old_or_new_by_the_clock_of_the_disk(tmp_path, monkeypatch, ahead_seconds):
    """Here this machine's clock goes wrong, and that of the file system is right."""
    real_time, started = time.time, psutil.Process().create_time()
    monkeypatch.setattr(run_module.time, "time", lambda: real_time() - ahead_seconds)
    monkeypatch.setattr(run_module, "started_unix", lambda: started - ahead_seconds)
    for age_seconds, is_kept in ((2, False), (-0.05, True)):
        (tmp_path / "STOP").touch()
        os.utime(tmp_path / "STOP", (0, started - age_seconds))
        reopened(tmp_path, HParams())
        assert (tmp_path / "STOP").exists() == is_kept


def test_what_dead_writers_left_in_the_folder_is_removed(tmp_path):
    for name in (".status.json.tmp-77-0", ".hparams.yaml.tmp-77-1", ".metrics.jsonl.tmp-77-2"):
        (tmp_path / name).write_text("half a fi")
    reopened(tmp_path, HParams())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "hparams.yaml"]


def test_checkpoints_without_their_hparams_are_no_fresh_run(tmp_path):
    trained_to(tmp_path, 3)
    with pytest.raises(UserError, match=r"checkpoints but no hparams\.yaml.*Put the file back.*--init-from"):
        Run.open(tmp_path, HParams())
    assert not (tmp_path / "hparams.yaml").exists()


OTHER_TRAINING = """
import fcntl, sys
file = open(sys.argv[1], "a+")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("locked")
file.write("process 4711 on elsewhere\\n")
file.flush()
print("holding", flush=True)
sys.stdin.read()
"""


def other_training(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER_TRAINING, str(folder / ".lock")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_second_training_in_the_folder_is_refused_naming_the_first(tmp_path):
    with other_training(tmp_path) as process:
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(
            UserError, match=r"another training writes into .*process 4711 on elsewhere.*STOP"
        ):
            Run.open(tmp_path, HParams())
        process.communicate("")
    reopened(tmp_path, HParams())


def test_the_lock_is_held_until_the_run_is_closed(tmp_path):
    run = Run.open(tmp_path, HParams())
    assert "locked" in other_training(tmp_path).communicate("")[1]
    run.close()
    assert other_training(tmp_path).communicate("")[0] == "holding\n"


def test_a_lock_says_who_holds_it_since_when_and_dies_with_its_process(tmp_path):
    assert folder_lock.holder(tmp_path) is None
    code = (
        "import sys, pathlib; from enhancer.engine import folder_lock\n"
        "lock = folder_lock.take(pathlib.Path(sys.argv[1])); print('holding', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holding\n"
        words = rf"process {process.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\dT.*"
        assert re.fullmatch(words, folder_lock.holder(tmp_path))
        with pytest.raises(folder_lock.FolderTakenError, match=words):
            folder_lock.take(tmp_path)
        process.kill()
        process.wait()
    assert folder_lock.holder(tmp_path) is None
    os.close(folder_lock.take(tmp_path))


def test_an_atomic_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
