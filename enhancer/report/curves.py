"""Training and validation curves of one run or several."""

from __future__ import annotations

import numpy as np

from enhancer.charts import Array, Chart, Line
from enhancer.report import words
from enhancer.report.record import RunRecord, curve_names, metric_names
from enhancer.string_metrics import is_of_another

MOST_POINTS = 150
_LOG_FROM_RATIO = 30.0
_FIRST = ("loss",)


def validation_charts(runs: list[RunRecord]) -> list[Chart]:
    """One chart for each metric of the model: means with their 95 % intervals; of one evaluation there is no curve."""
    lines = {
        name: [_metric_line(run, name) for run in runs]
        for name in metric_names(runs)
        if not is_of_another(name)
    }
    return [_chart(name, own) for name, own in lines.items() if any(len(line.x) > 1 for line in own)]


def training_charts(runs: list[RunRecord]) -> list[Chart]:
    """One chart for each value that steps log, the loss first."""
    names = sorted(curve_names(runs), key=lambda name: name not in _FIRST)
    return [_chart(name, [_step_line(run, name) for run in runs]) for name in names]


def thinned(x: Array, y: Array, most: int = MOST_POINTS) -> tuple[Array, Array, Array, Array]:
    """Mean x and mean, lowest and highest y of at most `most` groups of neighbouring points; NaN in y does not count.

    A group without a value is left out.
    """
    is_there = np.isfinite(x) & np.isfinite(y)
    x, y = x[is_there], y[is_there]
    if len(x) == 0:
        return x, y, y, y
    starts = np.unique(np.arange(min(most, len(x))) * len(x) // min(most, len(x)))
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def _step_line(run: RunRecord, name: str) -> Line:
    steps, values = run.curve(name)
    x, mean, low, high = thinned(steps, values)
    is_thinned = len(x) < len(steps)
    return Line(run.name, run.tone, x, mean, low if is_thinned else None, high if is_thinned else None)


def _metric_line(run: RunRecord, name: str) -> Line:
    steps, mean = run.metric_curve(name)
    low, high = (run.metric_curve(name, part)[1] for part in ("low", "high"))
    texts = [
        f"{run.name}, step {step:.0f}: {words.interval(*values)}"
        for step, *values in zip(steps, mean, low, high, strict=True)
    ]
    return Line(run.name, run.tone, steps, mean, low, high, texts)


def _chart(name: str, lines: list[Line]) -> Chart:
    values = np.concatenate([line.y for line in lines])
    values = values[np.isfinite(values)]
    is_wide = len(values) > 0 and values.min() > 0 and values.max() > _LOG_FROM_RATIO * values.min()
    return Chart(
        words.label(name), "step", "" if not is_wide else "logarithmic", lines, is_log_y=bool(is_wide),
        y_range=None if is_wide else _without_outliers(lines, values),
    )  # fmt: skip


def _without_outliers(lines: list[Line], values: Array) -> tuple[float, float] | None:
    """A range that a few wild points do not squeeze; None, for all of it, where points are marked or few."""
    if len(values) < 30 or any(len(line.texts) for line in lines):
        return None
    low, high = np.percentile(values, [1, 99])
    room = 0.12 * (high - low) or max(abs(float(high)) * 0.1, 1e-9)
    return float(low - room), float(high + room)
