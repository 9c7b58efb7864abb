"""Training members of a sweep as a Slurm job array, through submitit (the [slurm] extra), and waiting for it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enhancer.engine.atomic import write_text
from hparams.errors import UserError
from launch.slurm_job import TrainJob, executor_of, submitit_module
from launch.sweep_members import LOG, Planned

JOBS = "slurm.json"
LOGS = "slurm"
# Becomes part of file names and of command lines.
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
POLL_SECONDS = 2.0
TELL_SECONDS = 300.0


def train_on_cluster(
    members: Sequence[Planned], output: Path, parameters: Mapping[str, Any], num_jobs: int | None
) -> None:
    """Submit `members` as one array, at most `num_jobs` of them running at once, and wait for its end.

    Jobs of an earlier start that still wait or run are not submitted again, but waited for. Ctrl-C ends the waiting and
    leaves the jobs to the cluster. Raises UserError where submitit is missing or refuses the parameters.
    """
    submitit = submitit_module("--slurm")
    given = dict(parameters)
    cluster = given.pop("cluster", "slurm")
    defaults: dict[str, Any] = {}
    if cluster == "slurm":
        defaults["name"] = "sweep"
        if num_jobs is not None:
            defaults["slurm_array_parallelism"] = num_jobs
    executor = executor_of(submitit, output / LOGS, cluster, given, defaults)
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
