"""What a target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

Read = Callable[[Random], object]
"""Makes one input and reads it as the product does."""


@dataclass(frozen=True)
class Target:
    """`prepare` makes valid content in an empty folder and gives what spoils and reads it.

    `errors` are right for spoiled content; a `weight` below 1 is for what takes longer.
    """

    prepare: Callable[[Path], Read]
    errors: tuple[type[Exception], ...]
    weight: float = 1.0
