"""Means, intervals and tests of a sweep against tables, enumeration and the definitions in numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from launch.sweep_statistics import compare_all, holm, mean_interval, paired_p

A = [0.031, 0.042, 0.029, 0.035, 0.051]
B = [0.022, 0.040, 0.031, 0.024, 0.037]


def test_the_interval_is_that_of_the_t_table() -> None:
    # Mean 3, standard deviation sqrt(2.5), and 2.776445 for 4 degrees of freedom in every t table.
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.count, found.mean) == (5, 3.0)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = mean_interval([0.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    assert mean_interval([]).count == 0 and math.isnan(mean_interval([]).mean)


def test_students_p_is_the_area_under_the_tails_of_its_density() -> None:
    differences = np.subtract(A, B)
    count = len(differences)
    statistic = differences.mean() / (differences.std(ddof=1) / math.sqrt(count))
    free = count - 1
    scale = math.gamma((free + 1) / 2) / (math.sqrt(free * math.pi) * math.gamma(free / 2))
    at = np.linspace(-abs(statistic), abs(statistic), 200_001)
    density = scale * (1 + at**2 / free) ** (-(free + 1) / 2)
    middle = np.sum((density[1:] + density[:-1]) / 2) * (at[1] - at[0])
    assert paired_p(A, B, "t") == pytest.approx(1 - middle, abs=1e-8)


def test_wilcoxons_p_counts_the_sign_patterns_that_are_as_extreme() -> None:
    differences = np.array([0.9, -0.2, 1.1, 0.4, 1.3, 0.6])
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    found = ranks[differences > 0].sum()
    sums = [
        sum(rank for rank, positive in zip(ranks, signs, strict=True) if positive)
        for signs in itertools.product([False, True], repeat=len(ranks))
    ]
    middle = ranks.sum() / 2
    wanted = np.mean([abs(total - middle) >= abs(found - middle) for total in sums])
    assert paired_p(differences.tolist(), [0.0] * 6, "wilcoxon") == pytest.approx(wanted)


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_what_cannot_be_tested_says_so_and_warns_of_nothing(test: str) -> None:
    assert math.isnan(paired_p([1.0], [2.0], test))
    assert math.isnan(paired_p([], [], test))
    assert paired_p([1.0, 2.0], [1.0, 2.0], test) == 1.0
    assert paired_p([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], "t") != paired_p([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], "t")


def test_holms_correction_of_a_worked_example() -> None:
    # 4 x .005, 3 x .01, 2 x .03, and .04 lifted to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    corrected = holm([0.02, math.nan, 0.04])
    assert math.isnan(corrected[1]) and [corrected[0], corrected[2]] == pytest.approx([0.04, 0.04])


def test_settings_are_compared_on_what_both_have() -> None:
    values = {
        "a": dict(enumerate(A)),
        "b": dict(enumerate(B)),
        "c": {1: 0.5, 3: 0.7, 9: 0.1},
        "d": {9: 0.2},
    }
    found = {(each.a, each.b): each for each in compare_all(values, "t")}
    assert list(found) == list(itertools.combinations("abcd", 2))
    assert found["a", "b"].count == 5
    assert found["a", "b"].difference == pytest.approx(np.mean(A) - np.mean(B))
    assert found["a", "b"].p == paired_p(A, B, "t")
    assert found["a", "c"].count == 2
    assert found["a", "c"].difference == pytest.approx((0.042 - 0.5 + 0.035 - 0.7) / 2)
    assert found["c", "d"].count == 1 and math.isnan(found["c", "d"].p)
    assert found["a", "d"].count == 0 and math.isnan(found["a", "d"].difference)
    # Three tests can be made, and are what the correction counts.
    p_values = sorted(each.p for each in found.values() if not math.isnan(each.p))
    assert len(p_values) == 3
    assert min(each.p_holm for each in found.values() if not math.isnan(each.p)) == pytest.approx(
        min(1.0, 3 * p_values[0])
    )


def test_with_a_base_only_the_comparisons_with_it_are_made_and_corrected_for() -> None:
    values = {"base": dict(enumerate(A)), "b": dict(enumerate(B)), "c": {1: 0.5, 3: 0.7}}
    found = compare_all(values, "t", "base")
    assert [(each.a, each.b) for each in found] == [("b", "base"), ("c", "base")]
    assert found[0].difference == pytest.approx(np.mean(B) - np.mean(A))
    assert [each.p_holm for each in found] == holm([each.p for each in found])
