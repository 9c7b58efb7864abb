"""The tables of a sweep as rows, and as CSV files for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enhancer.engine.atomic import write_text
from launch.sweep_results import Result, by_setting
from launch.sweep_statistics import Comparison, Mean, compare_all, mean_interval

Row = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """The rows of each table; None stands for what there is no value for."""

    settings: list[Row]
    members: list[Row]
    pairs: list[Row]
    files: list[Row]

    def write(self, output: Path) -> None:
        """results.csv (a row a setting), members.csv, pairs.csv and files.csv in `output`."""
        for name, rows in {"results": self.settings, **self._others()}.items():
            write_text(output / f"{name}.csv", _csv(rows))

    def _others(self) -> dict[str, list[Row]]:
        tables = {"members": self.members, "pairs": self.pairs, "files": self.files}
        return {name: rows for name, rows in tables.items() if rows}


def make_tables(results: Sequence[Result], metric: str, test: str) -> Tables:
    """All tables of finished members; `test` is `t` or `wilcoxon`. Failed and unfinished ones stand in `members`.

    Points of a grid are compared each with each, variants with the first one only.
    """
    first = results[0].planned.member.setting
    groups = by_setting(results)
    return Tables(
        settings=[setting_row(group, metric) for group in groups.values()],
        members=[_member_row(result, metric) for result in results],
        pairs=_pair_rows(groups, metric, test, first.label if first.name else None),
        files=_file_rows(groups),
    )


def setting_row(group: Sequence[Result], metric: str) -> Row:
    """A setting in one row: means over its finished members, `group` being all of them."""
    done = [result for result in group if result.is_finished]
    mean = mean_interval([result.value for result in done if result.value is not None])
    timed = {
        name: mean_interval([value for result in done if (value := getattr(result, name)) is not None]).mean
        for name in ("seconds_per_step", "seconds_per_epoch")
    }
    row = {
        **dict(group[0].planned.member.setting.named()),
        **_mean_cells(mean, metric),
    }
    heard = [value for result in done for value in result.files.values()]
    if heard:
        row["files_esr_mean"] = sum(heard) / len(heard)
    row |= {name: _or_none(value) for name, value in timed.items()}
    return {**row, "runs": len(group), "finished": len(done)}


def _member_row(result: Result, metric: str) -> Row:
    member = result.planned.member
    return {
        **dict(member.setting.named()),
        "seed": member.seed,
        "state": result.state,
        "step": result.step,
        metric: result.value,
        "best_step": result.best_step,
        "seconds_per_step": result.seconds_per_step,
        "seconds_per_epoch": result.seconds_per_epoch,
        "reason": result.reason,
        "run": result.planned.folder.name,
    }


def _pair_rows(groups: Mapping[str, Sequence[Result]], metric: str, test: str, base: str | None) -> list[Row]:
    done = {label: [result for result in group if result.is_finished] for label, group in groups.items()}
    over_seeds = {
        label: {result.planned.member.seed: result.value for result in group if result.value is not None}
        for label, group in done.items()
    }
    over_files = {
        label: {name: mean_interval(values).mean for name, values in _by_file(group).items()}
        for label, group in done.items()
    }
    return [
        _pair_row(each, over, name, test)
        for over, name, values in (("seeds", metric, over_seeds), ("files", "esr", over_files))
        for each in compare_all(values, test, base)
        if each.count
    ]


def _pair_row(each: Comparison, over: str, metric: str, test: str) -> Row:
    return {
        "a": each.a,
        "b": each.b,
        "over": over,
        "pairs": each.count,
        "metric": metric,
        "a_minus_b": _or_none(each.difference),
        "test": "paired t" if test == "t" else "Wilcoxon signed ranks",
        "p": _or_none(each.p),
        "p_holm": _or_none(each.p_holm),
    }


def _file_rows(groups: Mapping[str, Sequence[Result]]) -> list[Row]:
    return [
        {
            **dict(group[0].planned.member.setting.named()),
            "file": name,
            "runs": len(values),
            **_mean_cells(mean_interval(values), "esr"),
        }
        for group in groups.values()
        for name, values in _by_file([result for result in group if result.is_finished]).items()
    ]


def _by_file(group: Sequence[Result]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for result in group:
        for name, value in result.files.items():
            found.setdefault(name, []).append(value)
    return found


def _mean_cells(mean: Mean, name: str) -> Row:
    cells = {f"{name}_mean": mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}
    return {key: _or_none(value) for key, value in cells.items()}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
