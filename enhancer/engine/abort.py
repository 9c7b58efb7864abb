"""Why a start of a run must end: `abort.json` beside the heartbeats, which every rank reads within a second."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from enhancer.engine import atomic
from enhancer.engine.peers import Verdict
from enhancer.engine.pulse import Beat

ABORT = "abort.json"


def write_abort(folder: Path, launch: str, verdict: Verdict) -> bool:
    """Tell `verdict` of the start `launch` to all ranks; False where one is in `folder` already."""
    if (folder / ABORT).exists():
        return False
    with contextlib.suppress(OSError):  # Also on a full disk who found it acts, and the ranks find that out.
        atomic.write_text(folder / ABORT, json.dumps({"launch": launch, **asdict(verdict)}), is_durable=False)
    return True


def read_abort(folder: Path, launch: str) -> Verdict | None:
    """The verdict on the start `launch` in `folder`, if there is one."""
    try:
        values = json.loads((folder / ABORT).read_bytes())
    except OSError:
        return None
    if values["launch"] != launch:
        return None
    hung = tuple(Beat(**beat) for beat in values["hung"])
    return Verdict(values["reason"], values["exit_code"], hung)
