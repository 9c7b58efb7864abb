"""Names of checkpoints in small files beside them: the latest, and the best."""

from __future__ import annotations

from pathlib import Path

from enhancer.engine import atomic

LATEST = "LATEST"
BEST = "BEST"


def read_pointer(checkpoints: Path, name: str) -> str:
    """The folder that `checkpoints`/`name` points to, or "" where it is none.

    Only the last part counts, so that a pointer cannot lead out of the folder.
    """
    path = checkpoints / name
    return Path(path.read_text("utf-8").strip()).name if path.is_file() else ""


def write_pointer(checkpoints: Path, name: str, folder: str) -> None:
    """Make `checkpoints`/`name` point to `folder`. Raises OSError."""
    atomic.write_text(checkpoints / name, folder + "\n")
