"""A run of two nodes as a Slurm job: preempted, warned, finished; and one that cannot be trained."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import slurm
from tests.clusters.runs import (
    REPOSITORY,
    alive,
    assert_same_run,
    environment,
    status,
    submit_words,
    wait_until,
)

MINUTES = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    if reason := slurm.missing():
        pytest.skip(reason)
    made = slurm.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def submit(cluster: slurm.Cluster, run: Path, values: dict[str, Any]) -> str:
    """Number of the job of two nodes that launch/submit.py submits."""
    words = submit_words("slurm", run, values, "--nodes", "2", "--partition", "all", "--cpus-per-node", "1")
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env=environment(**cluster.environment()) | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = re.findall(r"^job (\d+) submitted", done.stdout, flags=re.MULTILINE)
    return job


def told(cluster: slurm.Cluster, run: Path, job: str) -> str:
    """All that is known, for a failure."""
    texts = [f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(run.rglob("*.log"))]
    texts += [f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(run.glob("slurm/*.*t"))]
    shown = subprocess.run(
        ["scontrol", "show", "job", job],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return "\n".join([str(status(run)), shown.stdout, *texts, cluster.logs()])


def test_a_preempted_and_then_warned_job_goes_on_and_ends_like_an_unbroken_one(
    cluster: slurm.Cluster, corpora: dict[str, Path], unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, corpora)

    def tell() -> str:
        return told(cluster, run, job)

    wait_until(lambda: status(run).get("step", 0) >= 4, 5 * MINUTES, tell)
    cluster.tell("sbatch", "-p", "urgent", "-N2", "-o", "/dev/null", "--wrap", "sleep 3")
    wait_until(lambda: status(run)["state"] == "preempted", 2 * MINUTES, tell)
    first = status(run)
    assert first["reason"] == "SIGTERM" and first["step"] < 30, first
    wait_until(lambda: cluster.field(job, "Restarts") == "1", 3 * MINUTES, tell)
    assert not alive(run)

    wait_until(
        lambda: status(run)["state"] == "running" and status(run)["step"] > first["step"] + 3,
        8 * MINUTES,
        tell,
    )
    # What Slurm sends before the time limit.
    cluster.tell("scancel", "--signal=USR2", job)
    wait_until(lambda: status(run)["state"] == "preempted", 2 * MINUTES, tell)
    assert first["step"] < status(run)["step"] < 30
    wait_until(lambda: cluster.field(job, "Restarts") == "2", 3 * MINUTES, tell)
    wait_until(lambda: status(run)["state"] == "finished", 8 * MINUTES, tell)
    wait_until(lambda: cluster.field(job, "JobState") == "COMPLETED", MINUTES, tell)
    assert_same_run(run, unbroken)


def test_a_job_that_cannot_be_trained_fails_with_2_and_is_not_queued_again(
    cluster: slurm.Cluster, corpora: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, {**corpora, "bg_dir": tmp_path / "nowhere"})
    wait_until(
        lambda: cluster.field(job, "JobState") == "FAILED", 5 * MINUTES, lambda: told(cluster, run, job)
    )
    assert cluster.field(job, "Restarts") == "0"
    assert cluster.field(job, "ExitCode") == "2:0"
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 2)
    assert "nowhere" in (run / "train.log").read_text()
    assert not alive(run)
