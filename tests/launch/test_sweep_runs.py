"""Members of a sweep as processes and as cluster jobs, with small programs in place of training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hparams.errors import UserError
from launch import sweep_slurm
from launch.slurm_job import TrainJob, read_parameters
from launch.sweep import main
from launch.sweep_local import train_here
from launch.sweep_members import Planned
from tests.launch.sweep_runs import sweep_in, write_hparams, write_run, write_status

# Says when it ran and with how many threads; ends as its folder's name wants it.
PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, ending, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def status(state, reason=""):
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 5, "reason": reason}))
def stop(number, frame):
    status("preempted", "SIGTERM")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
started = time.time()
status("running")
time.sleep(seconds)
(folder / "ran.json").write_text(json.dumps([started, time.time(), os.environ.get("OMP_NUM_THREADS")]))
if ending == "failed":
    status("failed", "the reason of the status")
    sys.exit(2)
if ending == "crashed":
    print("error: no room\\nat all", file=sys.stderr)
    sys.exit(3)
if ending == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
status("finished")
"""


def stand_in(members: list[Planned], endings: dict[int, str], seconds: float = 0.3) -> list[Planned]:
    """`members` whose command is the program above."""
    for each in members:
        write_hparams(each)
    return [
        replace(
            each,
            command=(
                sys.executable,
                "-c",
                PROGRAM,
                str(each.folder),
                endings.get(number, "finished"),
                str(seconds),
            ),
        )
        for number, each in enumerate(members)
    ]


def ran(planned: Planned) -> list[Any]:
    return json.loads((planned.folder / "ran.json").read_text())


def test_so_many_members_run_at_a_time_with_one_thread_each(tmp_path: Path) -> None:
    members = stand_in(sweep_in(tmp_path)[1][:5], {})
    assert train_here(members, 2) == {}
    spans = [ran(each) for each in members]
    assert all(threads == "1" for _, _, threads in spans)
    for start, _, _ in spans:
        assert sum(before <= start < after for before, after, _ in spans) <= 2
    # In their order, but for two that start at once.
    starts = [start for start, _, _ in spans]
    assert all(earlier < later for earlier, later in zip(starts, starts[2:], strict=False))


def test_a_failing_member_is_named_with_its_reason_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = stand_in(sweep_in(tmp_path)[1][:4], {0: "failed", 1: "crashed", 2: "killed"}, 0.0)
    names = [each.member.folder_name for each in members]
    assert train_here(members, 1) == {
        names[0]: "the reason of the status",
        names[1]: "ended with 3: no room at all",
        names[2]: "ended by SIGKILL",
    }
    assert json.loads((members[3].folder / "status.json").read_text())["state"] == "finished"
    told = capsys.readouterr().out
    assert f"[1/4] {members[0].label}: failed: the reason of the status" in told
    log = (members[1].folder / "train.log").read_text()
    assert log.startswith(f"$ {sys.executable}") and "no room" in log


def test_ctrl_c_has_the_running_members_save_and_starts_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = stand_in(sweep_in(tmp_path)[1][:4], {}, 600.0)
    statuses = [each.folder / "status.json" for each in members]

    def interrupt() -> None:
        while not all(path.exists() and path.read_text() for path in statuses[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    assert train_here(members, 2) is None
    assert signal.getsignal(signal.SIGINT) is before
    assert [json.loads(path.read_text())["state"] for path in statuses[:2]] == ["preempted", "preempted"]
    assert not statuses[2].exists() and not statuses[3].exists()
    assert "stopping: 2 members save first" in capsys.readouterr().out


# Keeps a folder as another process would, until its input ends.
HOLDER = """
import sys, pathlib
from enhancer.engine import folder_lock
lock = folder_lock.take(pathlib.Path(sys.argv[1]))
print("holding", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`folder`, in the hands of another process."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        yield process


def test_a_second_sweep_in_the_folder_is_told_who_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, members = sweep_in(tmp_path)
    for each in members:
        write_run(each, [0.5])
    words = [str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "out")]
    with held(tmp_path / "out") as other:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"another sweep works in {tmp_path / 'out'} (process {other.pid} on " in error
        assert " since 20" in error and not (tmp_path / "out" / "results.csv").exists()
        assert main([*words, "--no-runs"]) == 0
        # What a killed sweep held is free again.
        other.kill()
    assert main(words) == 0


def test_a_member_that_another_process_still_trains_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = stand_in(sweep_in(tmp_path)[1][:2], {}, 0.5)
    with held(members[0].folder) as other:
        assert other.stdin is not None
        threading.Timer(1.5, other.stdin.close).start()
        assert train_here(members, 1) == {}
    assert ran(members[1])[1] <= ran(members[0])[0]
    told = capsys.readouterr().out
    assert told.count(f"{members[0].label} waits: process {other.pid} on ") == 1


class Cluster:
    """As much of submitit as is used, with jobs that run when they are asked whether they are done."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self.arrays: list[list[Any]] = []
        self.jobs: dict[str, Any] = {}
        self.in_batch = False
        self.helpers = SimpleNamespace(DelayedSubmission=lambda function: function)

    def AutoExecutor(self, folder: Path, cluster: str) -> Cluster:
        assert Path(folder).is_absolute()
        if cluster != "slurm":
            raise ValueError(f"no executor named {cluster}")
        return self

    def update_parameters(self, **parameters: Any) -> None:
        if "tiem_min" in parameters:
            raise NameError("Unknown argument tiem_min")
        self.parameters = parameters

    def batch(self) -> Cluster:
        return self

    def __enter__(self) -> None:
        self.in_batch = True
        self.arrays.append([])

    def __exit__(self, *error: object) -> None:
        self.in_batch = False

    def submit(self, function: Any) -> Any:
        assert self.in_batch, "an array is one submission"
        self.arrays[-1].append(function)
        job = SimpleNamespace(job_id=f"7_{len(self.jobs)}", is_over=False)
        job.done = lambda: self.run(job, function)
        self.jobs[job.job_id] = job
        return job

    def run(self, job: Any, function: Any) -> bool:
        if not job.is_over:
            function()
            job.is_over = True
        return True

    def SlurmJob(self, folder: Path, job_id: str) -> Any:
        return self.jobs[job_id]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    fake = Cluster()
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(sweep_slurm, "POLL_SECONDS", 0.0)
    return fake


def test_a_sweep_is_one_array_with_the_parameters_given(tmp_path: Path, cluster: Cluster) -> None:
    members = stand_in(sweep_in(tmp_path)[1][:3], {1: "failed"}, 0.0)
    parameters = read_parameters(["timeout_min=90", "slurm_partition=gpu", "gpus_per_node=1"])
    sweep_slurm.train_on_cluster(members, tmp_path / "out", parameters, 2)
    assert [len(array) for array in cluster.arrays] == [3]
    assert cluster.parameters == {
        "timeout_min": 90, "slurm_partition": "gpu", "gpus_per_node": 1, "name": "sweep", "slurm_array_parallelism": 2,
    }  # fmt: skip
    states = [json.loads((each.folder / "status.json").read_text())["state"] for each in members]
    assert states == ["finished", "failed", "finished"]


def test_jobs_that_still_wait_are_not_submitted_again(tmp_path: Path, cluster: Cluster) -> None:
    members = stand_in(sweep_in(tmp_path)[1][:3], {}, 0.0)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_slurm, "_wait_for", lambda jobs: (_ for _ in ()).throw(KeyboardInterrupt))
        sweep_slurm.train_on_cluster(members[:2], tmp_path / "out", {}, None)
    first = cluster.jobs["7_0"]
    first.done = lambda: first.is_over  # Still in the queue.
    polls = iter([False, False, True])

    def end_later() -> bool:
        first.is_over = first.is_over or next(polls)
        return first.is_over

    first.done = end_later
    sweep_slurm.train_on_cluster(members, tmp_path / "out", {}, None)
    # The second was over by then, and is open again.
    assert [[function.command[3] for function in array] for array in cluster.arrays] == [
        [str(each.folder) for each in members[:2]],
        [str(each.folder) for each in members[1:]],
    ]


def test_before_its_time_is_up_a_job_saves_and_is_queued_again(tmp_path: Path, cluster: Cluster) -> None:
    (planned,) = stand_in(sweep_in(tmp_path)[1][:1], {}, 600.0)
    job = TrainJob(planned.command, planned.folder / "train.log")
    again: list[Any] = []

    def warn(number: int, frame: object) -> None:
        assert job._process is not None
        job._process.send_signal(signal.SIGUSR2)  # The cluster sends it to every process of the job.
        again.append(job.checkpoint())

    def preempt() -> None:
        while not (planned.folder / "status.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, warn)
    try:
        threading.Thread(target=preempt, daemon=True).start()
        assert job() == 75
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert json.loads((planned.folder / "status.json").read_text())["state"] == "preempted"
    assert (again[0].command, again[0].log, again[0]._process) == (job.command, job.log, None)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["tiem_min=3"], "submitit refuses --slurm tiem_min=3: Unknown argument tiem_min"),
        (["cluster=moon"], "no executor named moon"),
        (["timeout_min"], "--slurm timeout_min: needed key=value"),
    ],
)
def test_parameters_that_submitit_does_not_know_are_refused(
    tmp_path: Path, cluster: Cluster, texts: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        sweep_slurm.train_on_cluster([], tmp_path, read_parameters(texts), None)
    assert words in str(refused.value)


def test_without_submitit_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_in(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    output = str(tmp_path / "out")
    assert (
        main([str(tmp_path / "mine.yaml"), "--output", output, "--slurm", "--set", "pair_dir=nowhere"]) == 2
    )
    assert "pip install 'wavewright[slurm]'" in capsys.readouterr().err


def test_without_scipy_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_in(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main([str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'wavewright[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_submitits_own_jobs_run_the_members(tmp_path: Path) -> None:
    """With the real package, on this machine."""
    pytest.importorskip("submitit", reason="needs wavewright[slurm]")
    members = stand_in(sweep_in(tmp_path)[1][:2], {1: "crashed"}, 0.0)
    for each in members:
        write_status(each, "preempted", 1)
    sweep_slurm.train_on_cluster(members, tmp_path / "out", {"cluster": "local", "timeout_min": 5}, None)
    states = [json.loads((each.folder / "status.json").read_text())["state"] for each in members]
    assert states == ["finished", "running"]
    assert "no room" in (members[1].folder / "train.log").read_text()
