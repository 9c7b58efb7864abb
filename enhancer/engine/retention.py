"""Which checkpoints of a run are kept: the newest, and one of every so many steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from enhancer.engine.clock import crossed


@dataclass(frozen=True)
class Retention:
    """Keep the `newest` checkpoints, and for good the first at or after every multiple of `every` steps (0: none)."""

    newest: int
    every: int = 0

    def kept(self, steps: Collection[int]) -> set[int]:
        """Those of `steps` that are kept. The same again when the others are gone."""
        ordered = sorted(steps)
        marks = {
            now for before, now in pairwise([0, *ordered]) if self.every and crossed(before, now, self.every)
        }
        return marks | set(ordered[-self.newest :])
