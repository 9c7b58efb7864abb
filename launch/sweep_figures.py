"""The pictures of a sweep: a metric and the time against what was swept, curves of training, waveforms."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from hparams.sweep_settings import short_names
from launch.sweep_results import Result, by_setting
from launch.sweep_statistics import Mean, mean_interval

Points = Mapping[str, Mapping[float, Sequence[float]]]
"""Values by x, for each line by its name."""
Waves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""(target, estimate), each float [T], by the setting that made the estimate."""

SHOWN_SECONDS = 0.01
COLUMNS = 4
NAMED_LINES = 10
"""More lines than that have no colours of their own."""
DODGE_POINTS = 4.0
DPI = 160


def png(figure: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def metric_points(results: Sequence[Result], key: str, name: str) -> dict[str, dict[float, list[float]]]:
    """Attribute `name` of finished members against the swept `key`, a line for each choice of the other keys."""
    lines: dict[str, dict[float, list[float]]] = {}
    for result in results:
        value = getattr(result, name)
        if result.is_finished and value is not None:
            x, others = _split(result, key)
            lines.setdefault(others, {}).setdefault(x, []).append(value)
    return lines


def file_points(results: Sequence[Result], key: str) -> dict[str, dict[str, dict[float, list[float]]]]:
    """ESR of the test files against the swept `key`: a panel a choice of the other keys, a line a file."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for result in results:
        if result.is_finished:
            x, others = _split(result, key)
            for name, value in result.files.items():
                panels.setdefault(others, {}).setdefault(name, {}).setdefault(x, []).append(value)
    return panels


def against_figure(panels: Mapping[str, Points], x_name: str, y_name: str) -> Any:
    """Means over seeds with bars of their 95 % interval, and every member as a dot; one pair of axes a panel."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(7.0, 4.2 * columns), 4.2 * rows), layout="constrained")
    axes = _axes(figure, rows, columns, len(panels))
    groups = [group for lines in panels.values() for points in lines.values() for group in points.values()]
    places = sorted({x for lines in panels.values() for points in lines.values() for x in points})
    is_named = all(len(lines) <= NAMED_LINES for lines in panels.values())
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (label, points) in enumerate(lines.items()):
            shift = (number - (len(lines) - 1) / 2) * DODGE_POINTS if is_named else 0.0
            _draw_line(axis, points, f"C{number}" if is_named else "0.6", label if is_named else "", shift)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(x_name)
        _scale_x(axis, places)
        _scale_y(
            axis, [value for group in groups for value in group], [mean_interval(group) for group in groups]
        )
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(y_name)
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)), frameon=False)
    return figure


def curves_figure(results: Sequence[Result], metric: str) -> Any:
    """Training (pale) and validation (strong) over the steps: a panel a setting, a colour a seed."""
    groups = {
        label: drawn
        for label, group in by_setting(results).items()
        if (drawn := [result for result in group if result.train_curve or result.valid_curve])
    }
    figure, axes = _grid_of_panels(len(groups))
    scaled: list[float] = []
    seeds = list(dict.fromkeys(result.planned.member.seed for result in results))
    for axis, (label, group) in zip(axes, groups.items(), strict=True):
        for result in group:
            color = f"C{seeds.index(result.planned.member.seed) % 10}"
            # What training comes from, before it is judged for the first time, may be ten times as high as all else.
            first = result.valid_curve[0][0] if result.valid_curve else 0
            for curve, style in ((result.train_curve, (0.35, 0.8)), (result.valid_curve, (1.0, 1.8))):
                if curve:
                    steps, values = zip(*curve, strict=True)
                    axis.plot(steps, values, color=color, alpha=style[0], linewidth=style[1])
                    scaled += [value for step, value in curve if step >= first]
        axis.set_title(label, fontsize="small")
        axis.grid(alpha=0.25)
    for axis in axes:
        _scale_y(axis, scaled)
    train_name = next((result.train_name for group in groups.values() for result in group), metric)
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(metric if train_name == metric else f"{metric}, {train_name}", fontsize="medium")
    handles = [
        *(_handle(f"C{number % 10}", 1.0, 1.8, f"seed {seed}") for number, seed in enumerate(seeds)),
        _handle("0.3", 0.35, 0.8, f"training {train_name}"),
        _handle("0.3", 1.0, 1.8, f"validation {metric}"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False)
    return figure


def waves_figure(waves: Waves, rate_hz: int) -> Any:
    """Target and estimate of each setting on top of each other, where the target is loudest.

    The target is the same for all settings.
    """
    figure, axes = _grid_of_panels(len(waves))
    count = max(2, round(SHOWN_SECONDS * rate_hz))
    first = loudest(next(iter(waves.values()))[0], count)
    for axis, (label, (target, estimate)) in zip(axes, waves.items(), strict=True):
        milliseconds = 1000 * np.arange(len(target[first : first + count])) / rate_hz
        axis.plot(milliseconds, target[first : first + count], linewidth=2.5, alpha=0.45, label="target")
        axis.plot(milliseconds, estimate[first : first + count], linewidth=1.0, label="estimate")
        axis.set_title(label, fontsize="small")
        axis.grid(alpha=0.25)
    figure.supxlabel(f"ms after {first / rate_hz:.3f} s", fontsize="medium")
    figure.supylabel("amplitude", fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def validation_waves(results: Sequence[Result]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """(target, estimate) of the first validation item, by setting, of its first member with sounds; their rate."""
    waves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    rate_hz = 0
    for label, group in by_setting(results).items():
        folder = next((result.samples for result in group if result.is_finished and result.samples), None)
        names = [f"0_{name}.wav" for name in ("target", "estimate")]
        if folder is not None and all((folder / name).is_file() for name in names):
            (target, rate_hz), (estimate, _) = (sf.read(folder / name) for name in names)
            waves[label] = (target, estimate)
    return waves, rate_hz


def file_waves(
    results: Sequence[Result], wet: Path, estimate_name: str
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """(target, estimate) of a test file, by setting, of its first finished member; and their rate."""
    target, rate_hz = sf.read(wet)
    waves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for label, group in by_setting(results).items():
        first = next((result for result in group if result.files), None)
        if first is not None:
            estimate, _ = sf.read(first.planned.folder / estimate_name)
            waves[label] = (target, estimate)
    return waves, rate_hz


def loudest(wave: np.ndarray, count: int) -> int:
    """Where the `count` samples of the most energy begin in `wave` [T]."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    count = min(count, len(wave))
    return int(np.argmax(energy[count:] - energy[:-count]))


def _split(result: Result, key: str) -> tuple[float, str]:
    """The value of `key`, and the other swept values in words."""
    values = dict(result.planned.member.setting.values)
    names = short_names(list(values))
    x = values.pop(key)
    return x, ", ".join(f"{names[other]}={value}" for other, value in values.items())


def _draw_line(
    axis: Any, points: Mapping[float, Sequence[float]], color: str, label: str, shift_points: float
) -> None:
    """One line; moved sideways by so many points, so that the bars of several lines do not cover each other."""
    from matplotlib.transforms import ScaledTranslation

    moved = axis.transData + ScaledTranslation(shift_points / 72, 0, axis.figure.dpi_scale_trans)
    places = sorted(points)
    means = [mean_interval(points[x]) for x in places]
    axis.plot(places, [mean.mean for mean in means], color=color, linewidth=1.6, label=label, transform=moved)
    for x, mean in zip(places, means, strict=True):
        axis.plot([x, x], [mean.low, mean.high], color=color, linewidth=1.0, alpha=0.6, transform=moved)
        dots = {"color": color, "markersize": 5, "alpha": 0.7, "transform": moved}
        axis.plot([x] * len(points[x]), points[x], ".", **dots)


def _scale_x(axis: Any, places: Sequence[float]) -> None:
    """The swept values as ticks; a logarithmic axis where they were chosen by factors."""
    from matplotlib.ticker import NullLocator

    first, last = places[0], places[-1]
    factors = [after / before for before, after in pairwise(places)] if first > 0 else []
    if len(factors) > 1 and max(factors) < 1.3 * min(factors) and last > 3 * first:
        axis.set_xscale("log")
        room = (last / first) ** 0.06
        axis.set_xlim(first / room, last * room)
    else:
        room = 0.06 * (last - first) or 1.0
        axis.set_xlim(first - room, last + room)
    axis.set_xticks(places, [f"{x:g}" for x in places])
    axis.xaxis.set_minor_locator(NullLocator())


def _scale_y(axis: Any, values: Sequence[float], means: Sequence[Mean] = ()) -> None:
    """An axis as far as the members and most intervals reach; logarithmic where the members differ by factors."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not values:
        return
    low, high = min(values), max(values)
    is_log = low > 0 and high > 5 * low
    if is_log:
        axis.set_yscale("log")
        # Powers of ten alone would leave an axis of a decade with one number.
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        low, high = math.log10(low), math.log10(high)
    # Intervals of two seeds are so wide that they would squeeze everything else.
    most = (high - low) or 0.1 * abs(high) or 1.0
    ends = [end for mean in means for end in (mean.low, mean.high) if math.isfinite(end)]
    reached = [math.log10(end) if is_log else end for end in ends if end > 0 or not is_log]
    bottom = max(min([low, *reached]), low - 0.7 * most) - 0.08 * most
    top = min(max([high, *reached]), high + 0.7 * most) + 0.08 * most
    axis.set_ylim(*((10**bottom, 10**top) if is_log else (bottom, top)))


def _grid_of_panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.0, 3.0 * columns), 2.3 * rows + 0.9), layout="constrained")
    return figure, _axes(figure, rows, columns, count)


def _axes(figure: Any, rows: int, columns: int, count: int) -> list[Any]:
    """`count` pairs of axes on common scales, row by row; the lowest of each column has its numbers."""
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[max(0, count - columns) : count]:
        axis.tick_params(labelbottom=True)
    return axes[:count]


def _handle(color: str, alpha: float, width: float, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, alpha=alpha, linewidth=width, label=label)
