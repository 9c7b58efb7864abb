"""Signs of life of the ranks: one small file a rank in `heartbeats/` of the run folder, written every second.

A file is overwritten in place by one `pwrite`, since a rename would show late on network file systems. What matters is
that it changes, seen by the reader's own clock: clocks of other machines may be off.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path

HEARTBEATS = "heartbeats"
BEAT_SECONDS = 1.0
COPYING = "copying"
"""The phase in which nothing is judged but signs of life: sending a checkpoint takes as long as the network does."""
STARTING, BUILDING = "starting", "opening the corpora and building the model"
PREPARING = (STARTING, BUILDING)
"""The phases before the first step, in which there is nothing to save yet."""
ENDED = "ended"
_FILE_BYTES = 2048


class Pulse:
    """What the main thread of this rank is at. It says so in passing; a thread beside it writes it down."""

    def __init__(self) -> None:
        self.phase = STARTING
        self.step = 0
        self.marks = 0
        """How often the main thread came further."""

    def mark(self, phase: str, step: int | None = None) -> None:
        """The main thread has come to `phase`, or further within it, with `step` steps behind the run."""
        self.phase = phase
        self.marks += 1
        if step is not None:
            self.step = step


@dataclass(frozen=True)
class Beat:
    """What the file of a rank says."""

    launch: str
    """Which start of the run it belongs to."""
    rank: int
    host: str
    pid: int
    created: float
    """Start time of the process, which tells it from another that was given the same pid later."""
    hang_seconds: float
    """How long this file may stand still."""
    count: int = 0
    phase: str = STARTING
    step: int = 0
    marks: int = 0
    stop: str = ""
    """Why the rank was asked to stop, if it was."""
    end: str = ""
    """Empty while the rank lives, `ended`, or what it failed with."""

    @property
    def place(self) -> str:
        """The rank as a person finds it."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def doing(self) -> str:
        """What it was last seen at."""
        return f"{self.phase} at step {self.step}"


class BeatFile:
    """The file of this rank; raises OSError where it cannot be written."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._descriptor = os.open(folder / f"rank{rank:05d}.json", os.O_RDWR | os.O_CREAT, 0o644)

    def write(self, beat: Beat) -> None:
        """Replace the content by `beat`."""
        end = beat.end
        while len(text := json.dumps({**asdict(beat), "end": end}).encode()) > _FILE_BYTES:
            end = end[: len(end) // 2]
        os.pwrite(self._descriptor, text.ljust(_FILE_BYTES), 0)

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


def read_beats(folder: Path, ranks: list[int] | None = None) -> list[Beat]:
    """The beats in `folder` of `ranks`, or of all; those that are not there or half written are left out."""
    paths = (
        sorted(folder.glob("rank*.json")) if ranks is None else [folder / f"rank{r:05d}.json" for r in ranks]
    )
    return [beat for path in paths if (beat := _read(path)) is not None]


def this_host() -> str:
    """The name by which ranks tell their machines, or containers, apart."""
    return socket.gethostname()


def _read(path: Path) -> Beat | None:
    try:
        values = json.loads(path.read_bytes())
        return Beat(**{field.name: values[field.name] for field in fields(Beat)})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Not there yet, or caught while it is written: the next look sees it whole.
