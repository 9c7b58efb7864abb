"""A rank's batches, waited for in short turns so that a stop request is heard, with failures kept for agreement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from enhancer.engine import distributed
from enhancer.engine.pulse import Pulse
from enhancer.engine.stop import Stop
from enhancer.engine.task import Batch
from hparams.errors import UserError

TURN_SECONDS = 0.5
WAITING = "waiting for data"


class DataFailure(UserError):
    """The data of a rank failed; the text says whose and how. Raised on every rank alike."""


class Batches:
    """Batches of `source`. `next` gives None after a failure or when asked to stop while waiting."""

    def __init__(
        self, source: Iterator[Batch], timeout_seconds: float, stop: Stop, pulse: Pulse | None = None
    ) -> None:
        self._source: Any = source
        self._timeout_seconds = timeout_seconds
        self._stop = stop
        self._pulse = pulse or Pulse()
        self.failure = ""
        """What went wrong on this rank, or nothing."""
        self.wait_seconds = 0.0
        """How long the last `next` took."""
        self.num_waits = 0
        """How often `next` was called."""
        self.last: Batch | None = None
        """The last batch that came; a rank without a new one keeps the others company with it."""

    def next(self) -> Batch | None:
        """The next batch of this rank, or None where there is none: see `failure`."""
        started = time.perf_counter()
        self.num_waits += 1
        batch = None
        try:
            batch = self._wait(started)
        except StopIteration:
            self.failure = "the training data ended, but a stream of training batches must be endless"
        except (ValueError, OSError, RuntimeError) as error:
            # A loader worker that a signal has reached first is no failure of the data.
            if not self._stop.is_requested:
                self.failure = f"{type(error).__name__}: {error}"
        self.wait_seconds = time.perf_counter() - started
        self.last = batch or self.last
        return batch

    def close(self) -> None:
        """End the loader workers, where the source has any."""
        if hasattr(self._source, "close"):
            self._source.close()

    def _wait(self, started: float) -> Batch | None:
        if not hasattr(self._source, "next_batch"):
            return next(self._source)
        progress_seen = None
        while True:
            self._pulse.mark(WAITING)
            batch = self._source.next_batch(TURN_SECONDS)
            if batch is not None or self._stop.is_requested:
                return batch
            if hasattr(self._source, "progress") and (progress := self._source.progress()) != progress_seen:
                progress_seen, started = progress, time.perf_counter()
            if time.perf_counter() - started > self._timeout_seconds:
                raise ValueError(
                    f"no batch came within data_timeout_seconds={self._timeout_seconds:g}. Look at the storage "
                    "of the corpora, or set data_timeout_seconds higher."
                )


def raise_failures(failure: str) -> None:
    """Raise DataFailure on every rank when any rank brings a `failure`; collective."""
    failures = [(rank, text) for rank, text in enumerate(distributed.all_gather(failure)) if text]
    if failures:
        texts = [text if distributed.world_size() == 1 else f"rank {rank}: {text}" for rank, text in failures]
        raise DataFailure("\n".join(texts))
