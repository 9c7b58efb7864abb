"""Files that rank 0 alone writes. What goes wrong there is kept as a text until all ranks agree to end with it.

A rank that raised by itself would leave the others waiting for it, and they could only say that it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from enhancer.engine import distributed
from hparams.errors import UserError


class FileFailure(UserError):
    """A file beside the checkpoints cannot be written; the text names it. Raised on every rank alike."""


class OwnFiles:
    """The first failure to write a file, kept.

    Args:
        on_failure: called with its text; the ranks are to stop soon then, and to call `agreed`.
    """

    def __init__(self, on_failure: Callable[[str], None] = lambda text: None) -> None:
        self._on_failure = on_failure
        self.failure = ""
        """What went wrong on this rank first, or nothing."""

    @contextmanager
    def kept(self, name: str | Path) -> Iterator[None]:
        """Keeps an OSError of writing `name`, a file or what a person calls it, that is raised inside."""
        try:
            yield
        except OSError as error:
            cause = error.strerror or str(error) or type(error).__name__
            advice = "make room or mend the disk, then run again"
            if isinstance(error, BrokenPipeError):
                advice = "what read it has ended; run again, with the output in a file or read to the end"
            self._keep(f"{name} cannot be written ({cause}); {advice}")

    def agreed(self) -> FileFailure | None:
        """The failure of rank 0, on every rank, or None. Collective."""
        text = distributed.broadcast(self.failure)
        return FileFailure(text) if text else None

    def _keep(self, text: str) -> None:
        if not self.failure:
            self.failure = text
            self._on_failure(text)
