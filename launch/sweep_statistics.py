"""What repeated runs tell: means with intervals, and which settings differ beyond chance. Needs scipy ([sweep])."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hparams.errors import UserError

TESTS = ("t", "wilcoxon")


@dataclass(frozen=True)
class Mean:
    """Mean of `count` values with the ends of its 95 % interval, which are NaN for fewer than two."""

    count: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two settings on the same seeds or files: a minus b."""

    a: str
    b: str
    count: int
    """Pairs of values."""
    difference: float
    """Mean of a minus b."""
    p: float
    """Two-sided; NaN where the test cannot be made."""
    p_holm: float
    """The same, corrected for all comparisons made together."""


def require_scipy() -> Any:
    """scipy.stats. Raises UserError where it is not installed."""
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError(
            "sweeps need scipy for intervals and tests, and it is not installed; run: pip install 'wavewright[sweep]'"
        ) from error
    return stats


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of independent values and its 95 % interval by Student's t distribution with n - 1 degrees of freedom."""
    count = len(values)
    if not count:
        return Mean(0, math.nan, math.nan, math.nan)
    mean = float(np.mean(values))
    if count < 2:
        return Mean(count, mean, math.nan, math.nan)
    half = require_scipy().t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Mean(count, mean, mean - float(half), mean + float(half))


def paired_p(a: Sequence[float], b: Sequence[float], test: str) -> float:
    """Two-sided p value that paired samples have the same centre; `test` is `t` or `wilcoxon` (signed ranks).

    NaN for fewer than two pairs, and for Student's test where all differences are the same, which leaves it no spread
    to measure by. 1 where all are zero.
    """
    differences = np.subtract(a, b)
    if len(differences) < 2:
        return math.nan
    if not differences.any():
        return 1.0
    stats = require_scipy()
    if test == "wilcoxon":
        return float(stats.wilcoxon(differences).pvalue)
    # Equal up to rounding counts as equal: scipy would divide by what rounding left over.
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return math.nan
    return float(stats.ttest_rel(a, b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being many, by the step-down method of S. Holm (1979). NaNs do not count and stay."""
    order = sorted(
        (index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index]
    )
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def compare_all(
    values: Mapping[str, Mapping[Any, float]], test: str, base: str | None = None
) -> list[Comparison]:
    """Every pair of settings on what both have a value for; `values` are by setting, then by seed or file.

    With `base` only the other settings against that one, so that fewer comparisons are corrected for.
    """
    found = []
    pairs = [(name, base) for name in values if name != base] if base else itertools.combinations(values, 2)
    for a, b in pairs:
        ours, theirs = values[a], values[b]
        common = [unit for unit in ours if unit in theirs]
        left, right = [ours[unit] for unit in common], [theirs[unit] for unit in common]
        difference = float(np.mean(np.subtract(left, right))) if common else math.nan
        found.append(Comparison(a, b, len(common), difference, paired_p(left, right, test), math.nan))
    corrected = holm([each.p for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]
