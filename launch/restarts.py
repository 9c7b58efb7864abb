"""Whether a run that has ended is started again: what its end says, and what the ends before it were."""

from __future__ import annotations

from dataclasses import dataclass

from enhancer.engine.status import EXIT_CODES, EXIT_LOST, STOP

EXIT_USER = 2


@dataclass(frozen=True)
class End:
    """How one start of a run ended."""

    state: str
    """`finished`, `diverged`, `failed` or `preempted`."""
    step: int
    reason: str
    exit_code: int
    checkpoint: int
    """Step of the newest checkpoint, -1 where there is none."""


@dataclass(frozen=True)
class Decision:
    """What comes now: another start after `wait_seconds`, or the end for the reason `text`."""

    is_over: bool
    text: str
    wait_seconds: float = 0.0


@dataclass
class Restarts:
    """Decides after each end.

    A new checkpoint is progress: it gives the whole number of restarts and the shortest wait again.
    """

    max_restarts: int
    backoff_seconds: float
    max_backoff_seconds: float
    used: int = 0
    """Restarts since the last progress."""
    _checkpoint: int = -1
    _failed_at: tuple[int, int] | None = None

    def start(self, checkpoint: int) -> None:
        """The newest checkpoint before the first start."""
        self._checkpoint = checkpoint

    def decide(self, end: End) -> Decision:
        """What to do after `end`."""
        if end.exit_code in (EXIT_CODES["finished"], EXIT_CODES["diverged"], EXIT_USER):
            return Decision(True, f"{end.state} at step {end.step}: {end.reason}".removesuffix(": "))
        if end.state == "preempted" and end.reason.startswith((STOP, "SIGINT")):
            return Decision(True, f"stopped at step {end.step} as asked ({end.reason})")
        if end.checkpoint > self._checkpoint:
            self._checkpoint, self.used = end.checkpoint, 0
        if end.state == "failed":
            place = (end.step, end.checkpoint)
            if place == self._failed_at:
                return Decision(
                    True,
                    f"failed twice at step {end.step} with no checkpoint in between, so another start would fail there "
                    f"too: {end.reason}",
                )
            self._failed_at = place
        if self.used >= self.max_restarts:
            return Decision(
                True, f"{self.used} restarts without a new checkpoint are enough; last: {end.reason}"
            )
        wait_seconds = min(self.max_backoff_seconds, self.backoff_seconds * 2**self.used)
        self.used += 1
        text = f"{end.state} at step {end.step} ({end.reason}); restart {self.used} of {self.max_restarts}"
        return Decision(False, f"{text} in {wait_seconds:g} s", wait_seconds)


def lost(step: int, checkpoint: int, reason: str) -> End:
    """The end of a start whose every process went without a word."""
    return End("failed", step, reason, EXIT_LOST, checkpoint)
