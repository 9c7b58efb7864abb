"""Curves of long runs, axes and the elements they are drawn with."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from enhancer.charts import Chart, Line
from enhancer.report import svg, words
from enhancer.report.curves import thinned
from enhancer.report.markup import Markup, element, joined


@pytest.mark.parametrize(("length", "most"), [(0, 10), (1, 10), (7, 10), (10, 10), (11, 10), (1003, 150)])
def test_a_long_curve_is_thinned_to_means_and_extremes(length: int, most: int) -> None:
    x, y = np.arange(float(length)), np.random.default_rng(0).standard_normal(length)
    mean_x, mean, low, high = thinned(x, y, most)
    groups = np.array_split(y, most) if length > most else [[value] for value in y]
    assert len(mean_x) == min(length, most)
    assert sum(len(group) for group in groups) == length
    if length:
        assert (low.min(), high.max()) == (y.min(), y.max())
        assert np.all(low <= mean) and np.all(mean <= high)
        assert mean_x[0] >= 0 and mean_x[-1] <= length - 1 and np.all(np.diff(mean_x) > 0)
    if length == 10 or length == 7:
        np.testing.assert_array_equal(mean, y)


def test_values_that_are_not_known_do_not_count() -> None:
    x, mean, low, high = thinned(np.arange(6.0), np.array([1, np.nan, 3, np.nan, np.nan, 7]), 2)
    assert (x.tolist(), mean.tolist()) == ([0.0, 3.5], [1.0, 5.0])
    assert (low.tolist(), high.tolist()) == ([1.0, 3.0], [1.0, 7.0])


@pytest.mark.parametrize(
    ("values", "is_log", "texts"),
    [
        ((0.0, 10.0), False, ["0", "2", "4", "6", "8", "10"]),
        ((-0.031, 0.029), False, ["-0.02", "0", "0.02"]),
        ((0.0, 6700.0), False, ["0", "2k", "4k", "6k"]),
        ((20.0, 22_050.0), True, ["20", "50", "100", "200", "500", "1k", "2k", "5k", "10k", "20k"]),
        ((1e-4, 1e-3), True, ["1e-4", "2e-4", "5e-4", "0.001"]),
    ],
)
def test_axes_have_round_values(values: tuple[float, float], is_log: bool, texts: list[str]) -> None:
    assert [text for _, text in svg.ticks(values, is_log)] == texts


def test_a_curve_lies_where_its_axes_say() -> None:
    chart = Chart(
        "t", "x", "y", [Line("a", "0", np.array([0.0, 10]), np.array([0.0, 4.0]))], y_range=(0.0, 4.0)
    )
    (path,) = re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg.drawing(chart))
    (frame,) = re.findall(
        r'<rect class="frame" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', svg.drawing(chart)
    )
    left, top, width, height = map(float, frame)
    assert [float(value) for value in path] == [left, top + height, left + width, top]


def test_a_gap_breaks_the_curve_and_marked_points_have_their_text() -> None:
    line = Line("a", "1", np.arange(4.0), np.array([1, 2, np.nan, 1]), texts=["one", "two", "none", "<four>"])
    text = svg.drawing(Chart("t", "x", "y", [line]))
    (path,) = re.findall(r'<path d="([^"]+)"', text)
    assert path.count("M") == 2
    assert re.findall(r"<circle[^>]*><title>([^<]*)</title>", text) == ["one", "two", "&lt;four&gt;"]


def test_an_empty_chart_can_be_drawn() -> None:
    empty = np.zeros(0)
    assert "<svg" in svg.figure(Chart("t", "x", "y", [Line("a", "0", empty, empty)]))
    unknown = Line("a", "0", np.arange(3.0), np.full(3, math.nan))
    assert "nan" not in svg.drawing(Chart("", "x", "y", [unknown]))


def test_elements_escape_what_is_no_markup() -> None:
    made = element(
        "p", "<b>&\"'", Markup("<i>it</i>"), [None, "x"], class_='"><script>', hidden=True, id=None
    )
    assert made == '<p class="&quot;&gt;&lt;script&gt;" hidden>&lt;b&gt;&amp;"\'<i>it</i>x</p>'
    assert joined("a", ["<", [">"]]) == "a&lt;&gt;"


def test_names_and_values_in_words() -> None:
    assert words.label("si_sdr_improvement_db") == "SI-SDR improvement (dB)"
    assert words.label("excess_above_10k_db") == "Excess above 10 kHz (dB)"
    assert words.label("bandwidth_of_input_hz") == "Bandwidth of input (Hz)"
    assert (words.label("esr"), words.label("learning_rate")) == ("ESR", "Learning rate")
    assert (
        words.duration(3725) == "1 h 02 min"
        and words.duration(65) == "1 min 05 s"
        and words.duration(9) == "9 s"
    )
    assert words.interval(1.23456, math.nan, math.nan) == "1.235" and words.figure(math.nan) == "—"
