"""A run as one Slurm job, through submitit: a task a node, queued again where it was stopped before its end."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from enhancer.engine.launcher import slurm_place
from hparams.errors import UserError
from launch.slurm_job import TrainJob, batch_script, executor_of, submitit_module
from launch.submit_plan import NODE, Training

LOGS = "slurm"
# Reaching the time limit counts, a preemption does not; a run may take as many as it needs.
MAX_TIMEOUTS = 1_000_000
EXIT_PREEMPTED = 75
HOLD_SECONDS = 900.0
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?")


class NodeJob(TrainJob):
    """What each node of the job does: its ranks, by node.py; saved before Slurm takes the node away.

    Slurm says so in one of two ways. A warning signal, before the time limit and, where the cluster is set up so,
    before a preemption: submitit calls `checkpoint` on the first node and queues the job again. Or SIGTERM some time
    before SIGKILL: Slurm itself queues a preempted job again, but only one that has not ended, so this one waits.
    """

    def __init__(self, training: Training) -> None:
        super().__init__((), training.run_dir / "train.log")
        self.training = training
        self._was_terminated = False

    def __call__(self) -> int:
        """Train; the exit code of the run. Where that is not 0 or 75 the process ends with it, and so does the job."""
        node_rank, master_addr, job_id = slurm_place()
        if node_rank:
            self.log = self.log.with_name(f"train-{node_rank}.log")
        # Jobs that share a machine need ports of their own.
        training = replace(self.training, port=20_000 + job_id % 10_000)
        self.command = tuple(training.node_words(sys.executable, NODE, node_rank, master_addr))
        signal.signal(signal.SIGTERM, self._on_terminate)
        code = super().__call__()
        # Negative: SIGTERM has come before node.py could listen.
        if self._was_terminated and (code == EXIT_PREEMPTED or code < 0):
            time.sleep(HOLD_SECONDS)
        if code not in (0, EXIT_PREEMPTED):
            sys.exit(max(code, 1))
        return code

    def again(self) -> NodeJob:
        """What the job does when it is queued again."""
        return NodeJob(self.training)

    def _on_terminate(self, number: int, frame: object) -> None:
        self._was_terminated = True
        self.terminate()


def submit(
    training: Training, resources: Mapping[str, Any], parameters: Mapping[str, Any], *, is_dry: bool
) -> int:
    """Submit `training`, or print what would be submitted; the exit code.

    `resources` and `parameters` are submitit's; the latter, which the user named so, win. Raises UserError where
    submitit is missing or refuses one, or there is no Slurm.
    """
    submitit = submitit_module("slurm")
    training = replace(training, run_dir=training.run_dir.absolute())
    folder = training.run_dir / LOGS
    defaults: dict[str, Any] = {
        "name": training.name,
        "nodes": training.num_nodes,
        "tasks_per_node": 1,
        **({"gpus_per_node": training.gpus_per_node} if training.gpus_per_node else {}),
        "slurm_signal_delay_s": training.grace_seconds,
        "slurm_additional_parameters": {"requeue": True},
        **resources,
    }
    if is_dry:
        words = training.node_words(sys.executable, NODE, "$SLURM_NODEID", "$SLURM_LAUNCH_NODE_IPADDR")
        print(batch_script(executor_of(submitit, folder, "paper", parameters, defaults)))
        print("# each node then runs, with a port that goes with the job's number:\n# " + " ".join(words))
        return 0
    executor = executor_of(
        submitit, folder, "slurm", parameters, defaults, slurm_max_num_timeout=MAX_TIMEOUTS
    )
    job = executor.submit(NodeJob(training))
    print(
        f"job {job.job_id} submitted; look with: squeue -j {job.job_id}; its state is in "
        f"{training.run_dir}/status.json, its words in {training.run_dir}/train.log and {folder}"
    )
    return 0


def minutes(text: str) -> int:
    """Whole minutes, rounded up, of a time as Slurm writes it: M, M:SS, H:MM:SS, D-H, D-H:MM or D-H:MM:SS."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"--time {text}: needed minutes, HH:MM:SS or D-HH:MM:SS, such as 90, 24:00:00 or 2-00:00:00"
        )
    days, *parts = (int(part) if part is not None else None for part in found.groups())
    first, second, third = parts
    if days is not None:
        seconds = days * 86_400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    elif third is not None:
        seconds = (first or 0) * 3600 + (second or 0) * 60 + third
    else:
        seconds = (first or 0) * 60 + (second or 0)
    if seconds < 60:
        raise UserError(f"--time {text} is less than a minute; give it more")
    return -(-seconds // 60)
