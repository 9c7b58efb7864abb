"""Training members of a sweep as a Slurm job array, through submitit (the [slurm] extra), and waiting for it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enhancer.engine.atomic import write_text
from hparams.errors import UserError
from hparams.source import parse_override
from launch.sweep_members import LOG, Planned

JOBS = "slurm.json"
LOGS = "slurm"
# Becomes part of file names and of command lines.
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
POLL_SECONDS = 2.0
TELL_SECONDS = 300.0


class TrainJob:
    """What a node of the cluster does: run the command of a member, and have it save before it is cut off.

    Submitit calls `checkpoint` on the cluster's warning signal and queues the job again with what it returns; the run
    then goes on from the checkpoint.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = tuple(command), log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train; the exit code."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # The warning reaches every process of the job; training does not know that signal and would end by it.
        shielded = ["sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh", *self.command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                shielded, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            return self._wait()

    def checkpoint(self) -> Any:
        """Have training save and end; what submitit is to run when the job starts again."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._wait()
        return submitit.helpers.DelayedSubmission(TrainJob(self.command, self.log))

    def _wait(self) -> int:
        assert self._process is not None
        # `Popen.wait` holds a lock, and `checkpoint` comes from a signal handler in the middle of it.
        while self._process.poll() is None:
            time.sleep(0.2)
        return self._process.returncode


def read_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """Parameters of submitit from `name=value` texts, such as `timeout_min=120` and `slurm_partition=gpu`."""
    parameters: dict[str, Any] = {}
    for text in texts:
        try:
            table = parse_override(text)
        except UserError as error:
            raise UserError(str(error).replace("--set", "--slurm", 1)) from error
        parameters.update({name: located.value for name, located in table.items()})
    return parameters


def train_on_cluster(
    members: Sequence[Planned], output: Path, parameters: Mapping[str, Any], num_jobs: int | None
) -> None:
    """Submit `members` as one array, at most `num_jobs` of them running at once, and wait for its end.

    Jobs of an earlier start that still wait or run are not submitted again, but waited for. Ctrl-C ends the waiting and
    leaves the jobs to the cluster. Raises UserError where submitit is missing or refuses the parameters.
    """
    submitit = _submitit()
    executor, cluster = _executor(submitit, output / LOGS, parameters, num_jobs)
    jobs = _still_there(submitit, output, cluster)
    new = [each for each in members if each.member.folder_name not in jobs]
    if new:
        with executor.batch():
            submitted = [executor.submit(TrainJob(each.command, each.folder / LOG)) for each in new]
        jobs |= {each.member.folder_name: job for each, job in zip(new, submitted, strict=True)}
        ids = {name: str(job.job_id) for name, job in jobs.items()}
        write_text(output / JOBS, json.dumps({"cluster": cluster, "jobs": ids}, indent=1) + "\n")
    waited = [jobs[each.member.folder_name] for each in members]
    print(
        f"{len(new)} jobs submitted, {len(members) - len(new)} were there: {', '.join(job.job_id for job in waited)}. "
        "Ctrl-C leaves them to the cluster; the same command then waits for them again",
        flush=True,
    )
    _wait_for(waited)


def _wait_for(jobs: Sequence[Any]) -> None:
    told = time.monotonic()
    while not all(done := [job.done() for job in jobs]):
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            print(f"{sum(done)} of {len(jobs)} jobs are over", flush=True)
        time.sleep(POLL_SECONDS)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--slurm needs submitit, which is not installed; run: pip install 'wavewright[slurm]'; or leave --slurm "
            "out to train on this machine"
        ) from error
    return submitit


def _executor(
    submitit: Any, folder: Path, parameters: Mapping[str, Any], num_jobs: int | None
) -> tuple[Any, str]:
    """Submitit's executor and the kind of cluster: `slurm`, or `local` to try a sweep out without one."""
    given = dict(parameters)
    cluster = given.pop("cluster", "slurm")
    if cluster == "slurm":
        given.setdefault("name", "sweep")
        if num_jobs is not None:
            given.setdefault("slurm_array_parallelism", num_jobs)
    try:
        executor = submitit.AutoExecutor(folder=folder.resolve(), cluster=cluster)
        executor.update_parameters(**given)
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        words = " ".join(f"{name}={value}" for name, value in parameters.items())
        raise UserError(f"submitit refuses --slurm {words}: {error}") from error
    return executor, cluster


def _still_there(submitit: Any, output: Path, cluster: str) -> dict[str, Any]:
    """Jobs of an earlier start that are not over, by folder name of the member."""
    path = output / JOBS
    if cluster != "slurm" or not path.is_file():
        return {}
    try:
        ids = json.loads(path.read_text("utf-8"))["jobs"]
        if not all(_JOB.fullmatch(job_id) for job_id in ids.values()):
            raise ValueError("a job has no number")
        jobs = {name: submitit.SlurmJob((output / LOGS).resolve(), job_id) for name, job_id in ids.items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it once no job of this sweep is in the queue"
        ) from error
    return {name: job for name, job in jobs.items() if not job.done()}
