"""A training command as a Slurm job, through submitit (the [slurm] extra): saved in time and queued again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hparams.errors import UserError
from hparams.source import parse_override

# What the user gave is wrong, or training diverges: the same again would end the same way.
NOT_AGAIN = (2, 70)


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

        self.terminate()
        if self._process is not None and self._wait() in NOT_AGAIN:
            return None
        return submitit.helpers.DelayedSubmission(self.again())

    def again(self) -> TrainJob:
        """What the job does when it is queued again."""
        return TrainJob(self.command, self.log)

    def terminate(self) -> None:
        """Tell training to save and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

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


def submitit_module(option: str) -> Any:
    """The module submitit; raises UserError that names the `option` which needs it where it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"{option} needs submitit, which is not installed; run: pip install 'wavewright[slurm]'; or train on this "
            "machine"
        ) from error
    return submitit


def executor_of(
    submitit: Any,
    folder: Path,
    cluster: str,
    parameters: Mapping[str, Any],
    defaults: Mapping[str, Any],
    **construction: Any,
) -> Any:
    """Submitit's executor for the kind of `cluster`: `slurm`, `local` to try things out without one, or `paper`.

    `paper` is Slurm's where no Slurm is: it can tell what it would submit, and nothing else. `parameters` are
    the user's, before `defaults`; `construction` are arguments of the executor itself. Raises UserError where submitit
    refuses any of them.
    """
    try:
        if cluster == "paper":
            executor = submitit.AutoExecutor(folder=folder.resolve(), cluster="debug")
            executor.cluster = "slurm"
            executor._executor = _paper_executor(submitit)(folder.resolve())
        else:
            executor = submitit.AutoExecutor(folder=folder.resolve(), cluster=cluster, **construction)
        executor.update_parameters(**{**defaults, **parameters})
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        words = " ".join(f"{name}={value}" for name, value in parameters.items())
        raise UserError(f"submitit refuses --slurm {words}: {error}") from error
    return executor


def batch_script(executor: Any) -> str:
    """The text that an `executor` of `slurm` or `paper` hands to sbatch."""
    slurm = executor._executor
    return slurm._make_submission_file_text(slurm._submitit_command_str, "submission")


def _paper_executor(submitit: Any) -> Any:
    class PaperExecutor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1

    return PaperExecutor
