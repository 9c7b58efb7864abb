"""Where the time of training goes between two logged lines."""

from __future__ import annotations

import time


class Clock:
    """Sums waiting for data and stepping, batch by batch; evaluation and saving are outside."""

    def __init__(self, examples_per_batch: int, seconds_per_example: float = 0.0) -> None:
        self._examples_per_batch = examples_per_batch
        self._seconds_per_example = seconds_per_example
        self._reset()

    def start(self) -> None:
        """A batch is about to be waited for."""
        self._started = time.perf_counter()

    def stop(self, wait_seconds: float) -> None:
        """The batch is through, after `wait_seconds` of waiting for it."""
        self._num_batches += 1
        self._wait_seconds += wait_seconds
        self._total_seconds += time.perf_counter() - self._started

    def read(self) -> dict[str, float]:
        """Means since the last `read`: waiting and stepping in seconds a batch, examples (all ranks) a second."""
        batches = max(self._num_batches, 1)
        speed = self._examples_per_batch * batches / max(self._total_seconds, 1e-9)
        values = {
            "data_wait_seconds": self._wait_seconds / batches,
            "step_seconds": (self._total_seconds - self._wait_seconds) / batches,
            "examples_per_second": speed,
        }
        if self._seconds_per_example:
            values["audio_seconds_per_second"] = speed * self._seconds_per_example
        self._reset()
        return values

    def _reset(self) -> None:
        self._num_batches = 0
        self._wait_seconds = 0.0
        self._total_seconds = 0.0


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]: a batch may count several steps."""
    return now // every > before // every
