"""A sweep as one HTML page for people: what came out, the figures, what differs, and every member."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hparams.sweep import Sweep
from hparams.sweep_settings import SEED
from launch.sweep_figures import DPI
from launch.sweep_members import FINISHED, WAITING
from launch.sweep_results import Result
from launch.sweep_table import Row, Tables

SIGNIFICANT = 0.05
LONG_TEXT = 40
"""Longer texts get a wide column."""
CSS_DPI = 96
SMALLEST = 0.53
"""How far a figure may be shrunk and still be read."""


class _Interval(NamedTuple):
    """A cell with a mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def page(
    title: str,
    texts: Sequence[str],
    tables: Tables,
    figures: Mapping[str, bytes],
    is_higher_better: bool | None,
) -> str:
    """A self-contained HTML page: `figures` are PNG by caption. The best setting is bold where it is known which."""
    failed = [_without_values(row) for row in tables.members if row["state"] not in (FINISHED, WAITING)]
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(text)}</p>" for text in texts)]
    if failed:
        parts += ["<h2>Members that failed or were stopped</h2>", _table(failed, is_strong=lambda row: False)]
    best = _best(tables.settings, is_higher_better)
    parts += ["<h2>Settings</h2>"]
    parts += [f"<p>Bold: the {'highest' if is_higher_better else 'lowest'} mean.</p>"] if best else []
    parts += [_table(tables.settings, is_strong=lambda row: row is best)]
    parts += [_figure(caption, data) for caption, data in figures.items()]
    parts += _differences(tables.pairs)
    if tables.files:
        parts += ["<h2>Test files</h2>", _table(tables.files, is_strong=lambda row: False)]
    members = [{name: value for name, value in row.items() if name != "run"} for row in tables.members]
    parts += ["<h2>Members</h2>", _table(members, is_strong=lambda row: False)]
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def shown(value: Any) -> str:
    """A cell in words: four digits of a number, a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def notes(sweep: Sweep, results: Sequence[Result], metric: str) -> list[str]:
    """What a reader of the page must know about its figures."""
    done = sum(result.is_finished for result in results)
    first = sweep.settings[0]
    swept = [] if first.name else [key for key, _ in first.values]
    shared = {text.partition("=")[0]: text for text in sweep.members[0].set_texts}
    own = {SEED, *swept, *(key for each in sweep.settings for key, _ in each.values)}
    texts = [text for key, text in shared.items() if key not in own]
    over = f"in {len(sweep.settings)} variants" if first.name else f"swept over {', '.join(swept)}"
    changes = "; ".join(f"{each.name}: {each.words or 'as it is'}" for each in sweep.settings if each.name)
    return [
        f"Preset {sweep.preset}, {over} with the seeds {', '.join(map(str, sweep.seeds))}: "
        f"{done} of {len(results)} members are finished, and only these count."
        + (f" All have {', '.join(texts)}." if texts else ""),
        *([f"What differs: {changes}."] if changes else []),
        f"{metric} is that of the best evaluation on the validation list. Intervals are 95 %, by Student's t over the "
        "seeds. Times are medians of training alone, as it ran here: members that ran side by side shared the machine.",
    ]


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


def _differences(pairs: Sequence[Row]) -> list[str]:
    """The comparisons over seeds, and over files, each as a table of settings by settings."""
    parts = ["<h2>Differences between settings</h2>"] if pairs else []
    for over in dict.fromkeys(row["over"] for row in pairs):
        rows = [row for row in pairs if row["over"] == over]
        counts = sorted({row["pairs"] for row in rows})
        parts += [
            f"<p>{html.escape(rows[0]['metric'])} of the row minus that of the column, on the same {over} "
            f"({' to '.join(str(count) for count in (counts[0], counts[-1])[: len(counts)])} of them), and p of "
            f"{html.escape(rows[0]['test'])} after Holm's correction for all of this table. "
            f"Bold: p below {SIGNIFICANT:g}.</p>",
            _matrix(rows),
        ]
    return parts


def _matrix(rows: Sequence[Row]) -> str:
    """A table with a row for each `a` and a column for each `b`."""
    columns, lines = (list(dict.fromkeys(row[side] for row in rows)) for side in ("b", "a"))
    cells = {(row["a"], row["b"]): row for row in rows}
    # Where one thing was swept its name stands once, in the corner.
    keys = {name.partition("=")[0] for name in (*columns, *lines)}
    corner = keys.pop() if len(keys) == 1 and not any(", " in name for name in columns) else ""
    shown_name = {name: html.escape(name.removeprefix(f"{corner}=")) for name in (*columns, *lines)}
    head = "".join(f"<th class=number>{shown_name[name]}</th>" for name in columns)
    body = "\n".join(
        f"<tr><th>{shown_name[a]}</th>{''.join(_difference_cell(cells.get((a, b))) for b in columns)}</tr>"
        for a in lines
    )
    first = f"<th>{html.escape(corner.replace('_', ' '))}</th>"
    return f"<div class=wide><table class=matrix><tr>{first}{head}</tr>\n{body}\n</table></div>"


def _difference_cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    p = row["p_holm"]
    kind = "number strong" if p is not None and p < SIGNIFICANT else "number"
    text = "" if p is None else f"<br><small>p {p:.2g}</small>"
    return f'<td class="{kind}">{row["a_minus_b"]:+.3g}{text}</td>'


def _table(rows: Sequence[Row], is_strong: Any) -> str:
    folded = [_folded(row) for row in rows]
    columns = [
        name
        for name in dict.fromkeys(key for row in folded for key in row)
        if any(row.get(name) not in (None, "") for row in folded)
    ]
    numbers = {name for name in columns if all(_is_number(row.get(name)) for row in folded)}
    head = "".join(
        f"<th{' class=number' if name in numbers else ''}>{html.escape(name.replace('_', ' '))}</th>"
        for name in columns
    )
    lines = [
        f"<tr{' class=strong' if is_strong(row) else ''}>"
        + "".join(_cell(cells.get(name)) for name in columns)
        + "</tr>"
        for row, cells in zip(rows, folded, strict=True)
    ]
    return f"<div class=wide><table><tr>{head}</tr>\n{chr(10).join(lines)}\n</table></div>"


def _folded(row: Row) -> Row:
    """`row` with a mean and the ends of its interval in one cell, as a page that is not wide needs them."""
    cells: Row = {}
    for name, value in row.items():
        stem, _, part = name.rpartition("_")
        low, high = row.get(f"{stem}_low"), row.get(f"{stem}_high")
        if part == "mean" and f"{stem}_low" in row:
            cells[stem] = value if low is None or high is None else _Interval(value, low, high)
        elif part not in ("low", "high") or f"{stem}_mean" not in row:
            cells[name] = value
    return cells


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, _Interval))


def _cell(value: Any) -> str:
    kind = " class=number" if _is_number(value) else ""
    if isinstance(value, _Interval):
        ends = f"({shown(value.low)} … {shown(value.high)})"
        return f"<td{kind}>{shown(value.mean)} <small>{ends}</small></td>"
    if isinstance(value, str) and len(value) > LONG_TEXT:
        kind = " class=long"
    return f"<td{kind}>{html.escape(shown(value))}</td>"


def _figure(caption: str, png: bytes) -> str:
    """A figure in its own size where there is room; where there is not, it shrinks a little, then scrolls."""
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    # Bytes 16 to 20 of a PNG are its width.
    width = round(int.from_bytes(png[16:20], "big") * CSS_DPI / DPI)
    size = f"width: {width}px; min-width: {round(SMALLEST * width)}px"
    return (
        f'<figure><div class=wide><img alt="{text}" style="{size}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


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
.number {{ text-align: right; white-space: nowrap; }}
small {{ color: #555; }}
td {{ white-space: nowrap; }} td.long {{ white-space: normal; min-width: 16rem; }}
tr.strong td, td.strong {{ font-weight: 700; }}
table.matrix th {{ white-space: normal; vertical-align: bottom; }}
table.matrix tr > th:first-child {{ border-bottom: 1px solid #ddd; }}
figure {{ margin: 2rem 0; break-inside: avoid; }} img {{ max-width: 100%; height: auto; display: block; }}
h2, h2 + p {{ break-after: avoid; }} tr {{ break-inside: avoid; }}
figcaption {{ color: #555; font-size: .85rem; }}
@media print {{
  body {{ max-width: none; font-size: 13px; }} .wide {{ overflow: visible; }} table {{ font-size: .7rem; }}
  figure {{ margin: 1rem 0; }} img {{ min-width: 0 !important; }}
}}
</style></head><body>
{body}
</body></html>
"""
