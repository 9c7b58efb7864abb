"""TensorBoard's files of a run, on rank 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from enhancer.engine.own_files import OwnFiles

TENSORBOARD = "tensorboard"


class Board:
    """Writes to `folder`/tensorboard; what a run wrote there from `purge_step` on is forgotten.

    TensorBoard's thread tells of a failure at the next call, with no file's name, and is not to be used any more: the
    failure goes to `files`, and what comes after it is dropped.
    """

    def __init__(self, folder: Path, purge_step: int, files: OwnFiles) -> None:
        self._folder, self._purge_step, self._files = folder / TENSORBOARD, purge_step, files
        self._writer: Any = None
        self._is_broken = False
        """Whether nothing can be written any more, for a failure or for being closed."""

    def write(self, add: Callable[[Any], None]) -> None:
        """Call `add` with the SummaryWriter, before `close`."""
        if self._is_broken:
            return
        self._is_broken = True
        with self._files.kept(self._folder):
            add(self._open())
            self._is_broken = False

    def close(self) -> None:
        """Write out what is buffered. What comes later is dropped."""
        is_broken, self._is_broken = self._is_broken, True
        writer, self._writer = self._writer, None
        if writer is None:
            return
        with self._files.kept(self._folder):
            if not is_broken:
                writer.flush()  # Closing says nothing of what its thread has met.
        with self._files.kept(self._folder):
            writer.close()

    def _open(self) -> Any:
        """The writer. Its import takes a second, which the first step need not wait for."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        return self._writer
