"""What a run folder says about itself, read for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from enhancer.charts import Array
from enhancer.engine import records
from enhancer.engine.monitor import SAMPLES
from enhancer.engine.run import HPARAMS, METRICS
from enhancer.engine.status import read_status
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.load import load_resolved
from hparams.schema import HParams

_NOT_CURVES = ("kind", "step", "unix_seconds", "draws", "skipped")
_NOT_CURVES_ENDINGS = ("_seconds", "_per_second", "_weighted")
_BEGINNINGS = ("start", "resumed")
MOST_VALUE = 1e100
MOST_STEPS = 1 << 53
"""More is no number of steps or items: a float would round it."""

Record = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run: its hyper-parameters, its status and every line of its metrics.

    `tone` is its colour in the charts: the place of the run in the report.
    """

    folder: Path
    name: str
    tone: str
    hp: HParams
    status: Record
    records: tuple[Record, ...]

    @property
    def steps(self) -> list[Record]:
        """Logged steps."""
        return [record for record in self.records if record.get("kind") == "step"]

    @property
    def evaluations(self) -> list[Record]:
        """Evaluations in their order; one at least."""
        return [record for record in self.records if record.get("kind") == "evaluation"]

    @property
    def events(self) -> list[Record]:
        """What happened, but for the saving of checkpoints."""
        found = [record for record in self.records if record.get("kind") == "event"]
        return [record for record in found if record.get("name") != "saved"]

    @property
    def best_metric(self) -> str:
        """The metric that the best checkpoint is chosen by."""
        return TASKS[self.hp.task.name].best_metric

    @property
    def best_is_higher(self) -> bool:
        """Whether more of it is better."""
        return TASKS[self.hp.task.name].best_is_higher

    @cached_property
    def best(self) -> Record:
        """The evaluation with the best mean of the best metric; the last where none has one."""
        sign = 1 if self.best_is_higher else -1
        means = [sign * number(summary_of(each, self.best_metric)["mean"]) for each in self.evaluations]
        known = [place for place, mean in enumerate(means) if not math.isnan(mean)]
        return self.evaluations[max(known, key=means.__getitem__) if known else -1]

    @property
    def rows(self) -> list[Record]:
        """Metrics of each item of the validation list at the best evaluation."""
        return [row for row in self.best.get("rows", ()) if isinstance(row, dict)]

    @property
    def training_seconds(self) -> float:
        """Time from first to last line, without what lies between a stop and going on."""
        total = 0.0
        for before, after in zip(self.records, self.records[1:], strict=False):
            if not (after.get("kind") == "event" and after.get("name") in _BEGINNINGS):
                total += max(0.0, number(after.get("unix_seconds")) - number(before.get("unix_seconds")))
        return total

    @property
    def samples(self) -> Path | None:
        """The folder of sounds kept at the best evaluation, or else at the latest; None where there is none."""
        folders = sorted((self.folder / SAMPLES).glob("step-*"), key=lambda path: (len(path.name), path.name))
        best = [
            path for path in folders if path.name.rpartition("-")[2].lstrip("0") == str(self.best["step"])
        ]
        if not folders:
            return None
        return (best or folders)[-1]

    def curve(self, name: str) -> tuple[Array, Array]:
        """Steps and logged values of `name`, NaN where there is none: float64 [N] both."""
        return _columns(self.steps, lambda record: record.get(name))

    def metric_curve(self, name: str, part: str = "mean") -> tuple[Array, Array]:
        """Steps of the evaluations and `part` (mean, low, high) of a metric."""
        return _columns(self.evaluations, lambda record: summary_of(record, name)[part])


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """The runs in `folders`, with names that tell them apart. Raises UserError as `read_run` does."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("the same run folder is given twice; give each once")
    return [
        read_run(folder, name, str(place))
        for place, (folder, name) in enumerate(zip(folders, names, strict=True))
    ]


def read_run(folder: Path, name: str, tone: str) -> RunRecord:
    """The run in `folder`. Raises UserError where it is no run, or has never been judged."""
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; give the --run-dir of a training run")
    if not (folder / HPARAMS).is_file():
        raise UserError(
            f"{folder} holds no {HPARAMS}, so it is not a run folder; give the --run-dir of a training run"
        )
    run = RunRecord(
        folder,
        name,
        tone,
        load_resolved(folder / HPARAMS),
        read_status(folder) or {},
        tuple(_records(folder / METRICS)),
    )
    if not run.evaluations:
        raise UserError(
            f"{folder} has no evaluation in {METRICS} yet, so there is nothing to report. Train until the first one "
            f"(eval_every is {run.hp.eval_every} steps, max_steps {run.hp.max_steps}), then ask again"
        )
    return run


def _records(path: Path) -> list[dict[str, Any]]:
    """All records of `path`. Raises UserError naming the first one that training does not write."""
    found = records.read(path)
    for number, record in enumerate(found, start=1):
        problem = _problem(record)
        if problem:
            raise UserError(f"{path}:{number} is damaged: {problem}; remove that line")
    return found


def _problem(record: Record) -> str:
    """What is wrong with a record, or nothing."""
    step = record.get("step")
    if type(step) is not int or not 0 <= step <= MOST_STEPS:
        return f"its step is {step!r:.40}"
    if record.get("kind") != "evaluation":
        return ""
    summary, rows = record.get("summary"), record.get("rows", [])
    if not isinstance(summary, dict) or not all(
        isinstance(part, dict) and {"mean", "low", "high"} <= part.keys() for part in summary.values()
    ):
        return "its summary is none of mean, low and high by metric"
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and type(row.get("item")) in (int, float) and 0 <= row["item"] <= MOST_STEPS
        for row in rows
    ):
        return "its rows are none of values by item"
    return ""


def curve_names(runs: list[RunRecord]) -> list[str]:
    """What the steps of any run log: losses, gradient norm, learning rate."""
    names = dict.fromkeys(name for run in runs for record in run.steps for name in record)
    return [name for name in names if name not in _NOT_CURVES and not name.endswith(_NOT_CURVES_ENDINGS)]


def metric_names(runs: list[RunRecord]) -> list[str]:
    """The metrics of the evaluations of any run, the best metric of the first one first."""
    names = dict.fromkeys(
        name for run in runs for record in run.evaluations for name in record.get("summary", {})
    )
    return sorted(names, key=lambda name: name != runs[0].best_metric)


def summary_of(evaluation: Record, metric: str) -> Record:
    """mean, low and high of a metric; None for what is not known."""
    found = evaluation.get("summary", {}).get(metric)
    return found if isinstance(found, dict) else {"mean": None, "low": None, "high": None}


def number(value: Any) -> float:
    """A value of a record as a number; NaN for null, for what is no number, and for what no chart could show."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST_VALUE:
        return math.nan
    return float(value) if abs(value) >= 1 / MOST_VALUE else 0.0


def _columns(lines: list[Record], value_of: Any) -> tuple[Array, Array]:
    steps = np.array([number(record.get("step")) for record in lines], np.float64)
    return steps, np.array([number(value_of(record)) for record in lines], np.float64)
