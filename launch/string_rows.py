"""What `evaluate.py` tells of strings: failures by name, the distribution of the error, and the hardest notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from enhancer.string_metrics import (
    BAND_LIMIT,
    FAILURES,
    JUDGED,
    is_within_bands,
    judged_prefixes,
    named_failures,
)

Row = Mapping[str, float]
SHOWN_HARDEST = 8
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def print_string_rows(rows: Sequence[Row], names: Sequence[str], metric: str) -> None:
    """The failures with the notes they happen on, the distribution of `metric`, and the notes hardest by it."""
    for text in FAILURES.values():
        hit = [name for row, name in zip(rows, names, strict=True) if text in named_failures(row)]
        if hit:
            more = f" and {len(hit) - SHOWN_HARDEST} more" if len(hit) > SHOWN_HARDEST else ""
            print(f"failure: {text}: {len(hit)} of {len(rows)} notes: {', '.join(hit[:SHOWN_HARDEST])}{more}")
    if not any(named_failures(row) for row in rows):
        print(f"no failure on {len(rows)} notes")
    for prefix in judged_prefixes(rows):
        within = sum(is_within_bands(row, prefix) for row in rows)
        limit = f"T60 of every octave band within {100 * BAND_LIMIT:.0f} %, no failure"
        print(f"{limit}: {within} of {len(rows)} notes by {JUDGED[prefix]}")
    known = np.array([row[metric] for row in rows if row[metric] == row[metric]])
    if len(known):
        shown = ", ".join(f"{value:.3g}" for value in np.quantile(known, QUANTILES))
        print(f"{metric} from the least to the most, quartiles and 95 %: {shown}")
    for row, name in hardest(rows, names, metric)[:SHOWN_HARDEST]:
        said = "; ".join(named_failures(row))
        print(f"{name}: {metric} {row[metric]:.3g}{f', {said}' if said else ''}")


def hardest(rows: Sequence[Row], names: Sequence[str], metric: str) -> list[tuple[Row, str]]:
    """Rows with their names: those with a failure first, then by `metric` from the worst on; NaN counts as worst."""

    def badness(pair: tuple[Row, str]) -> tuple[int, float]:
        value = pair[0][metric]
        return len(named_failures(pair[0])), value if value == value else math.inf

    return sorted(zip(rows, names, strict=True), key=badness, reverse=True)
