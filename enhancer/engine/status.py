"""`status.json` of a run folder, the truth about a run, and its exit codes. `enhancer.engine.run` fills it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from enhancer.engine import atomic
from hparams.errors import UserError
from hparams.source import read_json

STATUS = "status.json"
STOP = "STOP"
"""A file of this name in the run folder asks the run to stop."""
EXIT_CODES = {"finished": 0, "failed": 1, "diverged": 70, "preempted": 75}
EXIT_LOST = 71
"""Of a failed run in which a rank died, froze or got stuck: no fault of what was given, so run again."""


def write_status(path: Path, text: str, is_durable: bool) -> None:
    """Replace the status file by `text`, also on a full disk, of which it may have to tell. Raises OSError."""
    try:
        atomic.write_text(path, text, is_durable)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
            raise
        # A status written over the old one needs no new block. It beats one that says "running" for ever.
        with path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def read_status(folder: Path) -> dict[str, Any] | None:
    """The content of a run's `status.json`, None where there is none. Raises UserError where it is damaged."""
    path = folder / STATUS
    if not path.exists():
        return None
    try:
        status = read_json(path, str(path))
        if not (
            type(status.get("step")) is int
            and {type(status.get(key)) for key in ("state", "reason")} == {str}
        ):
            raise UserError("it lacks state, step or reason")
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); remove it: it only says how the run ended") from error
    return status
