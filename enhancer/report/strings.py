"""What a report says of strings in the large: how many notes decay as they should, and by what."""

from __future__ import annotations

import math

from enhancer.report import words
from enhancer.report.markup import Markup, element, joined
from enhancer.report.record import RunRecord, number, summary_of
from enhancer.report.tables import table
from enhancer.string_metrics import BAND_LIMIT, JUDGED, is_within_bands, judged_prefixes

_COLUMNS = {"t60_error": "T60, mean over bands (%)", "t60_worst_error": "T60, worst band (%)"}
_LEVELS = "level_error_db"


def verdict(run: RunRecord) -> Markup | None:
    """Of each thing that was judged the notes and bands within the limit, and its errors; None for other tasks."""
    prefixes = judged_prefixes(run.rows)
    if not prefixes or run.hp.task.name != "string":
        return None
    limit = f"{100 * BAND_LIMIT:.0f} %"
    lines = [_line(run, prefix) for prefix in prefixes]
    head = ["by", f"notes with every band within {limit} and no failure", f"bands within {limit}"]
    head += [*_COLUMNS.values(), words.label(_LEVELS)]
    below = summary_of(run.best, f"{_LEVELS}_below_linear")
    said = None
    if math.isfinite(number(below["mean"])):
        span = words.interval(*(number(below[part]) for part in ("mean", "low", "high")))
        said = element("p", f"Levels: the model is nearer than the plain filter by {span} dB, note by note.")
    return joined(table(head, lines), said)


def _line(run: RunRecord, prefix: str) -> Markup:
    names = {name: f"{prefix}{name}" for name in ("t60_worst_error", "num_failures", "t60_bands_within")}
    rows = [{name: number(row.get(name)) for name in (*names.values(), "t60_bands")} for row in run.rows]
    within = sum(is_within_bands(row, prefix) for row in rows)
    known = [row for row in rows if math.isfinite(row[names["t60_bands_within"]] + row["t60_bands"])]
    bands, total = (sum(row[name] for row in known) for name in (names["t60_bands_within"], "t60_bands"))
    cells = [f"{within} of {len(rows)}", f"{bands:.0f} of {total:.0f}" if known else "—"]
    for name, scale in (*((name, 100.0) for name in _COLUMNS), (_LEVELS, 1.0)):
        found = summary_of(run.best, prefix + name)
        cells.append(words.interval(*(scale * number(found[part]) for part in ("mean", "low", "high"))))
    numbers = [element("td", cell, class_="number") for cell in cells]
    return element("tr", element("th", JUDGED[prefix], scope="row"), numbers)
