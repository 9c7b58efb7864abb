"""Work on a thread beside training, one piece at a time, with less claim to the processor than training has."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

# A tenth of the time of a core that training wants too; all of what training leaves.
_NICENESS = 10


class Background:
    """At most one call at a time on a thread of its own.

    Args:
        name: of the thread.
        on_failure: called on that thread with a text as soon as a call has failed.
    """

    def __init__(self, name: str, on_failure: Callable[[str], None]) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_lower_priority)
        self._urgent_executor = ThreadPoolExecutor(1, thread_name_prefix=f"urgent-{name}")
        self._on_failure = on_failure
        self._future: Future[None] | None = None

    def start(self, function: Callable[[], None], *, is_urgent: bool = False) -> None:
        """Begin `function`, at training's own priority where `is_urgent`; `finish` has returned since the last one."""
        assert self._future is None, "the last call is not finished"
        self._future = (self._urgent_executor if is_urgent else self._executor).submit(function)
        self._future.add_done_callback(self._tell)

    def is_done(self, wait_seconds: float) -> bool:
        """Whether no call is under way any more, after `wait_seconds` at most; `finish` then returns at once."""
        future = self._future
        return future is None or bool(wait([future], wait_seconds).done)

    def finish(self) -> None:
        """Wait for the end of the call. Raises what it raised."""
        future, self._future = self._future, None
        if future is not None:
            future.result()

    def _tell(self, future: Future[None]) -> None:
        error = future.exception()
        if error is not None:
            self._on_failure(str(error) or type(error).__name__)


def _lower_priority() -> None:
    # Linux has a niceness for each thread; elsewhere this would slow the whole process down.
    if sys.platform == "linux":
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(niceness, 19))
