"""Where a run stands: all that resuming needs beside weights, optimisers and random generators."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class State:
    """Counters of a run, the same on every rank.

    A skipped step consumes its draws and is no step: neither `step` nor the learning rate moves on.
    """

    step: int = 0
    """Updates of the main module."""
    draws: int = 0
    """Training examples consumed by all ranks together."""
    skipped: int = 0
    """Steps skipped by the guard in the whole run."""
    bad_in_a_row: int = 0
    """Steps skipped since the last good one."""
    evaluated: int = 0
    """Step of the last finished evaluation, 0 before the first."""
    best: float | None = None
    """Best value of the task's `best_metric` so far."""
    best_step: int = 0
    """Step of that value."""
    stale: int = 0
    """Evaluations since then."""
    lr_decays: int = 0
    """How often the learning rate was lowered on a plateau."""

    def evaluated_as(self, other: State) -> State:
        """This state with what evaluations have come to in `other`, of the same step."""
        return replace(
            self,
            evaluated=other.evaluated,
            best=other.best,
            best_step=other.best_step,
            stale=other.stale,
            lr_decays=other.lr_decays,
        )
