"""What a report says in tables: the runs, how good they are, file by file, and their hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from enhancer.engine.evaluate import groups_of_task
from enhancer.metrics import esr_grade
from enhancer.report import words
from enhancer.report.markup import Markup, element
from enhancer.report.record import RunRecord, curve_names, metric_names, number, summary_of
from enhancer.report.svg import tone_class
from enhancer.string_metrics import is_of_another, named_failures
from enhancer.tasks import TASKS
from hparams.fields import flat_values, rows

MOST_ROWS = 500
NORM_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
_ABSENT = "—"


def run_label(run: RunRecord) -> Markup:
    """The name of a run beside its colour."""
    return element("span", element("i", class_=f"swatch {tone_class(run.tone)}"), run.name, class_="key")


def cards(runs: list[RunRecord]) -> Markup:
    """What each run is and how far it came."""
    return element("div", [_card(run) for run in runs], class_="cards")


def summary_table(runs: list[RunRecord]) -> Markup:
    """Mean and 95 % interval of each metric at the best evaluation of each run."""
    names = [name for name in metric_names(runs) if not is_of_another(name)]
    leader = _leader(runs)
    lines = []
    for run in runs:
        cells = [element("th", run_label(run), scope="row"), _cell(words.figure(number(run.best["step"])))]
        for name in names:
            found = summary_of(run.best, name)
            is_best = run is leader and name == run.best_metric
            cells.append(
                element(
                    "td",
                    element("b", words.figure(number(found["mean"]))),
                    element(
                        "small",
                        f"{words.figure(number(found['low']))} … {words.figure(number(found['high']))}",
                    ),
                    class_="number best" if is_best else "number",
                )
            )
        lines.append(element("tr", cells))
    return table(["run", "step", *(words.label(name) for name in names)], lines)


def items_table(run: RunRecord, names_of_items: Mapping[int, str]) -> Markup:
    """Every item of the validation list at the best evaluation, the worst by the best metric first."""
    names = [name for name in metric_names([run]) if any(name in row for row in run.rows)]
    names = [name for name in names if not is_of_another(name)]
    sign = 1 if run.best_is_higher else -1

    def badness(row: Mapping[str, Any]) -> tuple[bool, float]:
        value = sign * number(row.get(run.best_metric))
        return value == value, value

    has_words = "esr" in names or "num_failures" in names
    lines = []
    for row in sorted(run.rows, key=badness)[:MOST_ROWS]:
        item = int(row["item"])
        cells = [element("th", names_of_items.get(item, f"item {item}"), scope="row")]
        cells += [_cell(words.figure(number(row.get(name)))) for name in names]
        if has_words:
            cells.append(element("td", _in_words(row)))
        lines.append(element("tr", cells))
    foot = [element("th", f"mean of {len(run.rows)}", scope="row")]
    span = [element("th", "95 % interval", scope="row")]
    for name in names:
        found = summary_of(run.best, name)
        foot.append(_cell(words.figure(number(found["mean"]))))
        span.append(_cell(f"{words.figure(number(found['low']))} … {words.figure(number(found['high']))}"))
    blank = [element("td")] if has_words else []
    head = ["file", *(words.label(name) for name in names), *(["in words"] if has_words else [])]
    return table(head, [element("tr", foot + blank), element("tr", span + blank)], lines, is_long=True)


def groups_table(run: RunRecord) -> Markup | None:
    """Improvements by what items have in common, such as the semitones of a shift; None where a task has no groups."""
    task = TASKS[run.hp.task.name]
    labels = getattr(task, "group_labels", ())
    rows = [
        {name: number(value) for name, value in row.items()}
        for row in run.rows
        if all(math.isfinite(number(row.get(name))) for name in labels)
    ]
    groups = groups_of_task(task, rows)
    if not groups or not groups[0].summary:
        return None
    lines = []
    for group in groups:
        cells = [_cell(words.interval(each.mean, each.low, each.high)) for each in group.summary.values()]
        head = [element("th", group.kind, scope="row"), element("td", group.name), _cell(str(group.count))]
        lines.append(element("tr", head, cells))
    return table(["by", "group", "items", *(words.label(name) for name in groups[0].summary)], lines)


def norms_table(runs: list[RunRecord]) -> Markup | None:
    """Quantiles over the run of each module's gradient norm before clipping; None where none was logged."""
    lines = []
    for run in runs:
        for name in [name for name in curve_names([run]) if name.startswith("gradient_norm")]:
            values = run.curve(name)[1]
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            clip = run.hp.gradient_clipping
            share = f"{100 * float((values > clip).mean()):.3g} %" if clip else "not clipped"
            cells = [_cell(words.figure(float(value))) for value in np.quantile(values, NORM_QUANTILES)]
            head = [element("th", run_label(run), scope="row"), element("td", words.label(name))]
            lines.append(element("tr", head, _cell(str(len(values))), cells, _cell(share)))
    if not lines:
        return None
    quantiles = [f"{100 * share:g} %" for share in NORM_QUANTILES[:-1]]
    return table(["run", "of", "logged steps", *quantiles, "largest", "clipped"], lines)


def _in_words(row: Mapping[str, Any]) -> str:
    """The grade of a device, or the failures of a string."""
    return (
        esr_grade(number(row.get("esr"))) if "esr" in row else ", ".join(named_failures(row)) or "no failure"
    )


def differences_table(runs: list[RunRecord]) -> Markup:
    """Hyper-parameters that are not the same in all runs."""
    values = [flat_values(run.hp) for run in runs]
    keys = [key for key in _keys(values) if len({words.value(each.get(key, _ABSENT)) for each in values}) > 1]
    if not keys:
        return element("p", "All hyper-parameters are the same.")
    lines = [
        element("tr", element("th", key, scope="row"), [element("td", _shown(each, key)) for each in values])
        for key in keys
    ]
    return table(["", *(run_label(run) for run in runs)], lines)


def hparams_table(runs: list[RunRecord]) -> Markup:
    """All hyper-parameters of all runs beside their defaults; those that are not the default stand out."""
    values = [flat_values(run.hp) for run in runs]
    defaults: dict[str, Any] = {}
    for run in runs:
        defaults |= {key: row.default for key, row in rows(run.hp.task.name).items()}
    lines = []
    for key in _keys(values):
        default = _shown(defaults, key)
        cells = [
            element("td", shown, class_="changed" if shown not in (default, _ABSENT) else None)
            for shown in (_shown(each, key) for each in values)
        ]
        lines.append(element("tr", element("th", key, scope="row"), element("td", default), cells))
    return table(["", "default", *(run_label(run) for run in runs)], lines, is_long=True)


def events_table(runs: list[RunRecord]) -> Markup:
    """What happened in the runs, but for saved checkpoints."""
    lines = [
        element("tr", element("th", run_label(run), scope="row"), _cell(str(event.get("step", ""))),
                element("td", str(event.get("text") or event.get("name") or "")))
        for run in runs for event in run.events
    ]  # fmt: skip
    return table(["run", "step", "event"], lines, is_long=True)


def table(head: list[Any], *bodies: list[Markup], is_long: bool = False) -> Markup:
    """A table that scrolls within itself where it is wider than the page, and where `is_long` it is high."""
    top = element("thead", element("tr", [element("th", cell, scope="col") for cell in head]))
    inner = element("table", top, [element("tbody", body) for body in bodies])
    # Focusable, so that it can be scrolled by keys.
    return element("div", inner, class_="scroll long" if is_long else "scroll", tabindex=0)


def _card(run: RunRecord) -> Markup:
    best, metric = summary_of(run.best, run.best_metric), run.best_metric
    state = str(run.status.get("state", "unknown"))
    facts = {
        words.label(metric): words.interval(*(number(best[part]) for part in ("mean", "low", "high"))),
        "Best at step": words.figure(number(run.best["step"])),
        "Steps": f"{run.status.get('step', _ABSENT)} of {run.hp.max_steps}",
        "Time": words.duration(run.training_seconds),
        "Task": run.hp.task.name,
        "Rate": f"{run.hp.wav_rate} Hz",
        "Folder": str(run.folder),
    }
    if metric == "esr":
        facts[words.label(metric)] += f", {esr_grade(number(best['mean']))}"
    reason = run.status.get("reason")
    return element(
        "article",
        element("h3", run_label(run), element("span", state, class_="state")),
        element("p", reason, class_="note") if reason else None,
        element("dl", [(element("dt", name), element("dd", text)) for name, text in facts.items()]),
    )


def _leader(runs: list[RunRecord]) -> RunRecord | None:
    """The best of several runs that are judged by one metric."""
    if len(runs) < 2 or not have_same_list(runs):
        return None
    sign = 1 if runs[0].best_is_higher else -1
    means = {run: sign * number(summary_of(run.best, run.best_metric)["mean"]) for run in runs}
    known = [run for run in runs if means[run] == means[run]]
    return max(known, key=means.__getitem__) if known else None


def have_same_list(runs: list[RunRecord]) -> bool:
    """Whether the runs were validated on the same items, as far as their hyper-parameters tell."""
    values = [flat_values(run.hp) for run in runs]
    deciding = [key for key in _keys(values) if key.endswith("_dir") or "valid_" in key]
    deciding += ["task.name", "wav_rate"]
    return all(each.get(key) == values[0].get(key) for each in values for key in deciding)


def _keys(values: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for each in values for key in each))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return words.value(values[key]) if key in values else _ABSENT


def _cell(text: str) -> Markup:
    return element("td", text, class_="number")
