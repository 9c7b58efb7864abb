"""The tables of a sweep: CSV files for programs, and one HTML page with the figures in it for people."""

from __future__ import annotations

import base64
import csv
import html
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
SIGNIFICANT = 0.05
LONG_TEXT = 40
"""Longer texts get a wide column."""


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
    """All tables of finished members; `test` is `t` or `wilcoxon`. Failed and unfinished ones stand in `members`."""
    groups = by_setting(results)
    return Tables(
        settings=[setting_row(group, metric) for group in groups.values()],
        members=[_member_row(result, metric) for result in results],
        pairs=_pair_rows(groups, metric, test),
        files=_file_rows(groups),
    )


def page(
    title: str,
    notes: Sequence[str],
    tables: Tables,
    figures: Mapping[str, bytes],
    is_higher_better: bool | None,
) -> str:
    """A self-contained HTML page: `figures` are PNG by caption. The best setting is bold where it is known which."""
    failed = [_without_values(row) for row in tables.members if row["state"] != "finished"]
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(note)}</p>" for note in notes)]
    if failed:
        parts += ["<h2>Members that are not finished</h2>", _table(failed, is_strong=lambda row: False)]
    best = _best(tables.settings, is_higher_better)
    parts += ["<h2>Settings</h2>", _table(tables.settings, is_strong=lambda row: row is best)]
    parts += [_figure(caption, data) for caption, data in figures.items()]
    if tables.pairs:
        parts += [
            "<h2>Differences between settings</h2>",
            f"<p>Bold: below {SIGNIFICANT:g} after Holm's correction for all comparisons of the table.</p>",
            _table(
                tables.pairs,
                is_strong=lambda row: row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT,
            ),
        ]
    if tables.files:
        parts += ["<h2>Test files</h2>", _table(tables.files, is_strong=lambda row: False)]
    parts += ["<h2>Members</h2>", _table(tables.members, is_strong=lambda row: False)]
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def shown(value: Any) -> str:
    """A cell in words: four digits of a number, a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
        "runs": len(group),
        "finished": len(done),
        **_mean_cells(mean, metric),
        **{name: _or_none(value) for name, value in timed.items()},
    }
    heard = [value for result in done for value in result.files.values()]
    return {**row, "files_esr_mean": sum(heard) / len(heard)} if heard else row


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


def _pair_rows(groups: Mapping[str, Sequence[Result]], metric: str, test: str) -> list[Row]:
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
        for each in compare_all(values, test)
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


def _best(rows: Sequence[Row], is_higher_better: bool | None) -> Row | None:
    if is_higher_better is None or not rows:
        return None
    name = next(key for key in rows[0] if key.endswith("_mean"))
    judged = [row for row in rows if row[name] is not None]
    return (max if is_higher_better else min)(judged, key=lambda row: row[name], default=None)


def _without_values(row: Row) -> Row:
    """A member's row as far as its reason matters."""
    last = list(row).index("step")
    return {
        name: value for place, (name, value) in enumerate(row.items()) if place <= last or name == "reason"
    }


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(rows: Sequence[Row], is_strong: Any) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    lines = [
        f"<tr{' class=strong' if is_strong(row) else ''}>"
        + "".join(_cell(row.get(name)) for name in columns)
        + "</tr>"
        for row in rows
    ]
    return f"<div class=wide><table><tr>{head}</tr>\n{chr(10).join(lines)}\n</table></div>"


def _cell(value: Any) -> str:
    kind = " class=number" if isinstance(value, (int, float)) or value is None else ""
    if isinstance(value, str) and len(value) > LONG_TEXT:
        kind = " class=long"
    return f"<td{kind}>{html.escape(shown(value))}</td>"


def _figure(caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; color: #1b1b1b; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
th {{ white-space: nowrap; border-bottom: 2px solid #888; }}
td.number {{ text-align: right; white-space: nowrap; }}
td.long {{ min-width: 16rem; }}
tr.strong td {{ font-weight: 700; }}
figure {{ margin: 2rem 0; break-inside: avoid; }} img {{ max-width: 100%; height: auto; }}
figcaption {{ color: #555; font-size: .85rem; }}
@media print {{ body {{ max-width: none; }} .wide {{ overflow: visible; }} table {{ font-size: .65rem; }} }}
</style></head><body>
{body}
</body></html>
"""
