"""What a run tells about itself: `metrics.jsonl`, TensorBoard, samples, and the console.

`metrics.jsonl` has one record a line, of three kinds: `step` (a logged step), `evaluation` and `event`. Every
step occurs once, also after a resume. Values that depend on the clock end in `_seconds` or `_per_second`; all
others are the same each time the run is repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from enhancer.engine import distributed, records
from enhancer.engine.console import Console, NoConsole, open_console
from enhancer.engine.manifest import folder_name
from enhancer.engine.media import MediaFolder, NoMedia
from enhancer.engine.run import METRICS
from enhancer.engine.task import Media

TENSORBOARD = "tensorboard"
SAMPLES = "samples"


def _is_evaluation_at(record: Mapping[str, Any], step: int) -> bool:
    return record.get("kind") == "evaluation" and record.get("step") == step


class Monitor:
    """Writes on rank 0; on other ranks every method does nothing."""

    def __init__(self, folder: Path, console: Console, from_step: int, is_writing: bool) -> None:
        self._folder, self._console = folder, console
        self._from_step, self._is_writing = from_step, is_writing
        self._board: Any = None

    @classmethod
    def open(cls, folder: Path, max_steps: int, from_step: int) -> Monitor:
        """Go on after `from_step` in the run `folder`: records of later steps are dropped first."""
        if not distributed.is_main():
            return cls(folder, NoConsole(), from_step, is_writing=False)
        records.drop(folder / METRICS, lambda record: record.get("step", 0) > from_step)
        return cls(folder, open_console(max_steps, from_step), from_step, is_writing=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One `step` record: draws, losses, gradient_norm, learning_rate, timings and counts by name."""
        if self._is_writing:
            self._append("step", step, values)
            self._scalars("train", values, step)
            self._console.values(step, values)

    def event(self, step: int, name: str, text: str, **values: float) -> None:
        """One `event` record with `values`, such as `resumed` or `saved`, and a line that says `text`."""
        if self._is_writing:
            self._append("event", step, {"name": name, "text": text, **values})
            self._console.line(text)

    def evaluation(
        self,
        step: int,
        summary: Mapping[str, tuple[float, float, float]],
        rows: Sequence[Mapping[str, float]],
        seconds: float,
    ) -> None:
        """One `evaluation` record: mean and 95 % interval (low, high) by metric, and all metrics by item."""
        if not self._is_writing:
            return
        if step == self._from_step:
            # The checkpoint gone on from was saved before its evaluation, which is done once more.
            records.drop(self._folder / METRICS, lambda record: _is_evaluation_at(record, step))
        named = {
            name: dict(zip(("mean", "low", "high"), value, strict=True)) for name, value in summary.items()
        }
        record = {"evaluation_seconds": seconds, "summary": named, "rows": [dict(row) for row in rows]}
        self._append("evaluation", step, record)
        self._scalars("valid", {name: mean for name, (mean, _, _) in summary.items()}, step)
        words = [
            f"{name} {mean:.4g} ({low:.4g} .. {high:.4g})" for name, (mean, low, high) in summary.items()
        ]
        self._console.line(f"evaluation at step {step} in {seconds:.1f} s: {', '.join(words)}")

    def media(self, step: int, is_stopping: Callable[[], bool] = lambda: False) -> Media:
        """Where the sounds and pictures of the evaluation at `step` go, until `is_stopping`."""
        if not self._is_writing:
            return NoMedia()
        return MediaFolder(self._folder / SAMPLES / folder_name(step), self._writer(), step, is_stopping)

    def say(self, text: str) -> None:
        """A line on the console only: what is going on."""
        self._console.line(text)

    def progress(self, step: int) -> None:
        """`step` is done. Cheap enough to be called after every step."""
        self._console.progress(step)

    def close(self) -> None:
        """Write out what is buffered and give the terminal back."""
        if self._board is not None:
            self._board.close()
            self._board = None
        self._console.close()

    def _append(self, kind: str, step: int, content: Mapping[str, Any]) -> None:
        record = {"kind": kind, "step": step, "unix_seconds": round(time.time(), 3), **content}
        records.append(self._folder / METRICS, record)

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            if math.isfinite(
                value
            ):  # there is no place for others on a curve; metrics.jsonl has them as null
                self._writer().add_scalar(f"{group}/{name}", value, step)

    def _writer(self) -> Any:
        """TensorBoard's writer. Its import takes a second, which the first step need not wait for."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step makes TensorBoard forget what a killed run wrote after the resumed step.
            self._board = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=self._from_step + 1)
        return self._board
