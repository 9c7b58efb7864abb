"""How a start ends: words on stderr, what `status.json` then says, and the end of the process."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

from enhancer.engine import distributed
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.run import Run
from enhancer.engine.status import STATUS
from hparams.errors import UserError

EXIT_FAILED, EXIT_USER = 1, 2


def leave(code: int) -> NoReturn:
    """End this process with `code` after a session.

    Without the interpreter's own clean-up: threads of the process group that still run then abort it now and then,
    which launchers take for a failed run. All files are closed by this time.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # A log on a full disk.
            stream.flush()
    os._exit(code)


def say(text: str) -> None:
    """One line on rank 0's stderr."""
    if distributed.is_main():
        print_error(text)


def print_error(text: str) -> None:
    """One line on this rank's stderr, if that can be: a log on a full disk must not decide how a run ends."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def tell_failed(run: Run, reason: str, exit_code: int = EXIT_FAILED) -> None:
    """`status.json` says why the run has failed, or stderr that it cannot: the error itself is raised either way."""
    try:
        run.status("failed", run.step, reason, exit_code)
    except OSError as error:
        say(
            f"error: {run.folder / STATUS} cannot be written ({error.strerror}), so it does not say that the run failed"
        )


def wait_for_writes(
    checkpoints: Checkpoints, kind: type[BaseException] | None, error: BaseException | None, trace: Any
) -> None:
    """Let a save that is under way come to its end before the process does; `error` is what ends the run."""
    if distributed.is_lost(error):
        return  # It waits for the lost ones too; the next start removes what it leaves.
    try:
        checkpoints.finish()
    except (UserError, OSError, RuntimeError) as failure:
        if error is None:
            raise
        say(f"error: {failure}")
