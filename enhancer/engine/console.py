"""What a person sees of a run: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

PLAIN_INTERVAL_SECONDS = 10.0
_SHOWN = 6


class Console(Protocol):
    """One of the two ways to show a run."""

    def line(self, text: str) -> None:
        """Show `text` for good."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """The newest logged values."""

    def progress(self, step: int) -> None:
        """`step` is done; called after every step."""

    def close(self) -> None:
        """Nothing more will come."""


class PlainConsole:
    """Lines for a log file: each `line`, and where the run is at least every ten seconds."""

    def __init__(
        self,
        max_steps: int,
        from_step: int,
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_steps, self._from_step = max_steps, from_step
        self._write = write or _print
        self._clock = clock
        self._begun = clock()
        self._shown = -PLAIN_INTERVAL_SECONDS + self._begun
        self._text = ""

    def line(self, text: str) -> None:
        """Print `text` with the seconds since the start."""
        self._write(f"[{self._clock() - self._begun:7.1f} s] {text}")

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` for the next line of progress."""
        self._text = values_text(values)
        self.progress(step)

    def progress(self, step: int) -> None:
        """Print where the run is when ten seconds went by without it."""
        now = self._clock()
        if now - self._shown >= PLAIN_INTERVAL_SECONDS:
            self._shown = now
            left = left_text(step, self._from_step, self._max_steps, now - self._begun)
            self.line(f"step {step}/{self._max_steps}  {self._text}{left}")

    def close(self) -> None:
        """Nothing is open."""


class BarConsole:
    """A rich progress bar at the bottom, lines above it."""

    def __init__(self, max_steps: int, from_step: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns)
        self._task = self._bar.add_task("starting", total=max_steps, completed=from_step)
        self._bar.start()

    def line(self, text: str) -> None:
        """Print `text` above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Put `values` beside the bar."""
        self._bar.update(self._task, completed=step, description=values_text(values))

    def progress(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._bar.stop()


class NoConsole:
    """Of ranks other than 0: nothing is shown."""

    def line(self, text: str) -> None:
        """Nothing."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def progress(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_console(max_steps: int, from_step: int, stream: Any = None) -> Console:
    """The bar where `stream` (standard output) is a terminal, plain lines elsewhere."""
    if (stream or sys.stdout).isatty():
        return BarConsole(max_steps, from_step)
    return PlainConsole(max_steps, from_step)


def values_text(values: Mapping[str, float]) -> str:
    """The first few of `values`, and the examples per second, on one line."""
    shown = [name for name in values if _is_telling(name)][:_SHOWN]
    words = [f"{name} {values[name]:.4g}" for name in shown]
    if "examples_per_second" in values:
        words.append(f"{values['examples_per_second']:.3g} examples/s")
    if values.get("skipped"):
        words.append(f"{values['skipped']:.0f} skipped")
    return "  ".join(words)


def left_text(step: int, from_step: int, max_steps: int, seconds: float) -> str:
    """Time that the remaining steps will take at the pace so far; nothing before the first step.

    A batch of several updates may end beyond `max_steps`: then nothing remains either.
    """
    if step <= from_step or step >= max_steps:
        return ""
    left = round((max_steps - step) * seconds / (step - from_step))
    return f"  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def _is_telling(name: str) -> bool:
    return name not in ("draws", "skipped") and not name.endswith(("_seconds", "_per_second", "_weighted"))


def _print(text: str) -> None:
    print(text, flush=True)
