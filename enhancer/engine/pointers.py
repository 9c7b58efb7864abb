"""Names of checkpoints in small files beside them: the latest, and the best."""

from __future__ import annotations

import os
from pathlib import Path

from enhancer.engine import atomic
from enhancer.engine.manifest import DamagedCheckpoint, read_inside, step_of

LATEST = "LATEST"
BEST = "BEST"
_MAX_BYTES = 64


def read_pointer(checkpoints: Path, name: str) -> str:
    """The folder in `checkpoints` that the file `name` there points to, or "" without that file.

    Raises DamagedCheckpoint where it holds anything but the name of a checkpoint, so that it cannot lead elsewhere.
    """
    path = checkpoints / name
    if not os.path.lexists(path):
        return ""
    found = read_inside(checkpoints, name, _MAX_BYTES).decode("utf-8", "replace").removesuffix("\n")
    if step_of(Path(found)) is None or Path(found).name != found:
        raise DamagedCheckpoint(
            f"{path} holds {found!r:.80}, which is not the name of a checkpoint; remove it"
        )
    return found


def write_pointer(checkpoints: Path, name: str, folder: str) -> None:
    """Make `checkpoints`/`name` point to `folder`. Raises OSError."""
    atomic.write_text(checkpoints / name, folder + "\n")
