"""What a run consists of, and how it may end."""

from __future__ import annotations

from dataclasses import dataclass, field

from enhancer.engine.average import WeightAverage
from enhancer.engine.backend import Backend
from enhancer.engine.checkpoint import Checkpoints
from enhancer.engine.monitor import Monitor
from enhancer.engine.pulse import Pulse
from enhancer.engine.run import Run
from enhancer.engine.state import State
from enhancer.engine.status import EXIT_CODES
from enhancer.engine.stop import Stop
from enhancer.engine.task import Stream, Task
from hparams.schema import HParams


@dataclass(frozen=True)
class Job:
    """All that training works with."""

    hp: HParams
    task: Task
    stream: Stream
    backend: Backend
    run: Run
    checkpoints: Checkpoints
    monitor: Monitor
    stop: Stop
    global_batch: int
    """Examples of one batch over all ranks."""
    num_parts: int = 1
    """Equal parts that a rank takes its share of a batch in, one after another."""
    seconds_per_example: float = 0.0
    """Length of an example, for the logged speed; 0 where it has none."""
    average: WeightAverage | None = None
    """Of the main module's weights, where `ema_decay` asks for one."""
    pulse: Pulse = field(default_factory=Pulse)
    """Told where training is, so that a standstill is noticed."""

    @property
    def most_rows(self) -> int | None:
        """Rows that modules are called with at most; None where batches are taken whole."""
        return self.hp.batch_size_per_gpu if self.num_parts > 1 else None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `preempted` or `diverged`."""

    status: str
    state: State
    reason: str = ""
    """Why, where that is not max_steps."""

    @property
    def exit_code(self) -> int:
        """0 finished, 70 diverged, 75 preempted."""
        return EXIT_CODES[self.status]
