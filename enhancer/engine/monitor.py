"""What a run tells about itself: `metrics.jsonl`, TensorBoard, samples, and the console.

`metrics.jsonl` has one record a line, of three kinds: `step` (a logged step), `evaluation` and `event`. Every
step occurs once, also after a resume. Values that depend on the clock end in `_seconds` or `_per_second`; all
others are the same each time the run is repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from enhancer.engine import distributed, records
from enhancer.engine.board import Board
from enhancer.engine.console import Console, NoConsole, open_console
from enhancer.engine.manifest import folder_name
from enhancer.engine.media import MediaFolder, NoMedia
from enhancer.engine.own_files import OwnFiles
from enhancer.engine.run import METRICS
from enhancer.engine.task import Media
from hparams.errors import UserError

SAMPLES = "samples"


def _is_evaluation_at(record: Mapping[str, Any], step: int) -> bool:
    return record.get("kind") == "evaluation" and record.get("step") == step


class Monitor:
    """Writes on rank 0; on other ranks every method does nothing. What cannot be written is kept in `files`."""

    def __init__(
        self, folder: Path, console: Console, from_step: int, files: OwnFiles, is_writing: bool
    ) -> None:
        self._folder, self._console = folder, console
        self._from_step, self._is_writing = from_step, is_writing
        self.files = files
        """Where failures to write are kept, and agreed on."""
        self._unwritten: list[str] = []
        # purge_step makes TensorBoard forget what a killed run wrote after the resumed step.
        self._board = Board(folder, from_step + 1, files)

    @classmethod
    def open(
        cls,
        folder: Path,
        max_steps: int,
        from_step: int,
        on_failure: Callable[[str], None] = lambda text: None,
    ) -> Monitor:
        """Go on after `from_step` in the run `folder`: records of later steps are dropped first.

        `on_failure` is called with the first failure to write. Raises UserError where records cannot be dropped.
        """
        files = OwnFiles(on_failure)
        if not distributed.is_main():
            return cls(folder, NoConsole(), from_step, files, is_writing=False)
        try:
            records.drop(folder / METRICS, lambda record: record.get("step", 0) > from_step)
        except OSError as error:
            raise UserError(
                f"{folder / METRICS} cannot be written ({error.strerror}); make room or mend the disk, then run again"
            ) from error
        return cls(folder, open_console(max_steps, from_step), from_step, files, is_writing=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One `step` record: draws, losses, gradient_norm, learning_rate, timings and counts by name."""
        if self._is_writing:
            self._append("step", step, values)
            self._scalars("train", values, step)
            with self._shown():
                self._console.values(step, values)

    def event(self, step: int, name: str, text: str, **values: float) -> None:
        """One `event` record with `values`, such as `resumed` or `saved`, and a line that says `text`."""
        if self._is_writing:
            self._append("event", step, {"name": name, "text": text, **values})
            self.say(text)

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
            with self.files.kept(self._folder / METRICS):
                records.drop(self._folder / METRICS, lambda record: _is_evaluation_at(record, step))
        if self.files.failure:
            return  # It is done again when the run goes on.
        named = {
            name: dict(zip(("mean", "low", "high"), value, strict=True)) for name, value in summary.items()
        }
        record = {"evaluation_seconds": seconds, "summary": named, "rows": [dict(row) for row in rows]}
        self._append("evaluation", step, record)
        self._scalars("valid", {name: mean for name, (mean, _, _) in summary.items()}, step)
        words = [
            f"{name} {mean:.4g} ({low:.4g} .. {high:.4g})" for name, (mean, low, high) in summary.items()
        ]
        self.say(f"evaluation at step {step} in {seconds:.1f} s: {', '.join(words)}")

    def media(self, step: int, is_stopping: Callable[[], bool] = lambda: False) -> Media:
        """Where the sounds and pictures of the evaluation at `step` go, until `is_stopping`."""
        if not self._is_writing:
            return NoMedia()
        folder = self._folder / SAMPLES / folder_name(step)
        return MediaFolder(folder, self._board, step, self.files, is_stopping)

    def say(self, text: str) -> None:
        """A line on the console only: what is going on."""
        with self._shown():
            self._console.line(text)

    def progress(self, step: int) -> None:
        """`step` is done. Cheap enough to be called after every step."""
        with self._shown():
            self._console.progress(step)

    def catch_up(self) -> None:
        """Try again to write the records that could not be written; those of a step belong to its checkpoint."""
        if self._unwritten:
            with self.files.kept(self._folder / METRICS):
                records.append(self._folder / METRICS, self._unwritten)
                self._unwritten = []

    def write_out(self) -> None:
        """Everything that is buffered is on its way to the disk, or `files` has the failure."""
        self.catch_up()
        self._board.close()

    def close(self) -> None:
        """`write_out`, and give the terminal back."""
        self.write_out()
        with self._shown():
            self._console.close()

    def _append(self, kind: str, step: int, content: Mapping[str, Any]) -> None:
        record = {"kind": kind, "step": step, "unix_seconds": round(time.time(), 3), **content}
        self._unwritten.append(records.encode(record))
        self.catch_up()

    def _shown(self) -> AbstractContextManager[None]:
        return self.files.kept("standard output")

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        # There is no place for others on a curve; metrics.jsonl has them as null.
        finite = {f"{group}/{name}": value for name, value in values.items() if math.isfinite(value)}

        def add(writer: Any) -> None:
            for name, value in finite.items():
                writer.add_scalar(name, value, step)

        self._board.write(add)
