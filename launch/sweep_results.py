"""What the members of a sweep came to: their metric, their speed and their curves, read from their run folders."""

from __future__ import annotations

import difflib
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from enhancer.engine import records
from enhancer.engine.manifest import folder_name
from enhancer.engine.monitor import SAMPLES
from enhancer.engine.run import METRICS
from enhancer.tasks import TASKS
from hparams.errors import UserError
from hparams.schema import HParams
from launch.common import open_data
from launch.sweep_members import DIVERGED, FAILED, FINISHED, Planned, progress_of

Curve = list[tuple[int, float]]
"""(step, value) in the order of steps."""


@dataclass(frozen=True)
class Result:
    """One member. Values are those of the evaluation that was best by the task's own metric."""

    planned: Planned
    state: str
    step: int
    reason: str
    value: float | None
    """The metric of the sweep; None where nothing was evaluated."""
    best_step: int | None
    seconds_per_draw: float | None
    """Of training alone, without evaluations, for one example."""
    seconds_per_step: float | None
    seconds_per_epoch: float | None
    """None where the data have no epochs."""
    train_name: str
    """What `train_curve` shows: the metric where training logs it, else the loss."""
    train_curve: Curve
    valid_curve: Curve
    files: dict[str, float] = field(default_factory=dict)
    """ESR by the name of a test file."""

    @property
    def is_finished(self) -> bool:
        """Whether it counts in tables."""
        return self.state == FINISHED

    @property
    def samples(self) -> Path | None:
        """The folder of sounds of the best evaluation, where it has one."""
        if self.best_step is None:
            return None
        folder = self.planned.folder / SAMPLES / folder_name(self.best_step)
        return folder if folder.is_dir() else None


def metric_of(hp: HParams, wanted: str | None) -> str:
    """The metric that a sweep compares by: `wanted`, or the one that picks the task's best checkpoint."""
    return wanted or str(TASKS[hp.task.name].best_metric)


def read_results(
    members: Sequence[Planned], metric: str, failures: Mapping[str, str] | None = None
) -> list[Result]:
    """What became of every member; `failures` are reasons of this start that no status may hold, by folder name.

    Raises UserError where evaluations have no such metric, or a file of a run is damaged.
    """
    results = [_read(each, metric) for each in members]
    for number, result in enumerate(results):
        reason = (failures or {}).get(result.planned.member.folder_name)
        if reason and result.state not in (FAILED, DIVERGED):
            results[number] = replace(result, state=FAILED, reason=reason)
    return results


def by_setting(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The members of each setting, by its label, in the order of the sweep."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.planned.member.setting.label, []).append(result)
    return groups


def with_epochs(results: Sequence[Result]) -> list[Result]:
    """`results` with the time of an epoch, for tasks whose data have epochs."""
    draws: dict[str, int | None] = {}
    timed = []
    for result in results:
        if result.seconds_per_draw is not None:
            label = result.planned.member.setting.label
            if label not in draws:
                draws[label] = _epoch_draws(result.planned.hp)
            epoch = draws[label]
            if epoch is not None:
                result = replace(result, seconds_per_epoch=result.seconds_per_draw * epoch)
        timed.append(result)
    return timed


def _epoch_draws(hp: HParams) -> int | None:
    """Training examples of an epoch; None where the data have none (mixes drawn without end) or are gone."""
    try:
        stream = open_data(hp, num_workers=0)
    except (UserError, DataError) as error:
        # The runs are done, and all else that there is to tell of them lies in their folders.
        print(f"note: the length of an epoch is not known: {error}", file=sys.stderr)
        return None
    return getattr(stream, "epoch_draws", None)


def _read(planned: Planned, metric: str) -> Result:
    progress = progress_of(planned)
    lines = records.read(planned.folder / METRICS)
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    steps = [line for line in lines if line["kind"] == "step"]
    best = _best(evaluations, planned.hp)
    if best is not None and metric not in best["summary"]:
        names = list(best["summary"])
        near = difflib.get_close_matches(metric, names, n=1)
        raise UserError(
            f"the evaluations of {planned.folder} have no metric {metric}"
            f"{f'; did you mean {near[0]}?' if near else '.'} They have {', '.join(names)}; mend `metric` of the sweep"
        )
    per_draw, per_step = _seconds(steps)
    train_name = metric if any(metric in line for line in steps) else "loss"
    return Result(
        planned=planned,
        state=progress.state,
        step=progress.step,
        reason=progress.reason,
        value=best["summary"][metric]["mean"] if best else None,
        best_step=best["step"] if best else None,
        seconds_per_draw=per_draw,
        seconds_per_step=per_step,
        seconds_per_epoch=None,
        train_name=train_name,
        train_curve=[(line["step"], line[train_name]) for line in steps if line.get(train_name) is not None],
        valid_curve=[
            (line["step"], line["summary"][metric]["mean"])
            for line in evaluations
            if line["summary"].get(metric, {}).get("mean") is not None
        ],
    )


def _best(evaluations: Sequence[Mapping[str, Any]], hp: HParams) -> Mapping[str, Any] | None:
    """The evaluation whose weights are kept as the best; the first of equals, as in training."""
    task = TASKS[hp.task.name]
    sign = -1 if task.best_is_higher else 1
    judged = [line for line in evaluations if line["summary"][task.best_metric]["mean"] is not None]
    return min(judged, key=lambda line: sign * line["summary"][task.best_metric]["mean"], default=None)


def _seconds(steps: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """Seconds of training for an example and for a step; medians, so that a pause of the machine does not count."""
    # The first line has the time of building everything in it.
    later = steps[1:] or steps
    speeds = [line["examples_per_second"] for line in later if line.get("examples_per_second")]
    if not speeds or not steps[-1]["step"]:
        return None, None
    per_draw = statistics.median(1 / speed for speed in speeds)
    return per_draw, per_draw * steps[-1]["draws"] / steps[-1]["step"]
