"""Which checkpoints stay, against keeping house by hand after every save."""

from __future__ import annotations

import pytest

from enhancer.engine.retention import Retention


@pytest.mark.parametrize(
    ("steps", "retention", "kept"),
    [
        (range(100, 1001, 100), Retention(3), {800, 900, 1000}),
        (range(100, 1001, 100), Retention(2, every=400), {400, 800, 900, 1000}),
        (
            [96, 192, 288, 384, 480],
            Retention(1, every=200),
            {288, 480},
        ),  # 288 is the first at or after 200, 480 after 400
        ([5], Retention(3, every=10), {5}),
        ([], Retention(3, every=10), set()),
    ],
)
def test_the_newest_and_the_first_after_every_mark_are_kept(steps, retention, kept):
    assert retention.kept(steps) == kept


@pytest.mark.parametrize("stride", [1, 7, 13, 30])
@pytest.mark.parametrize("newest", [1, 3])
def test_removing_after_each_save_keeps_the_same_as_removing_once(stride, newest):
    retention = Retention(newest, every=20)
    there: set[int] = set()
    for step in range(stride, 400, stride):
        there = retention.kept(there | {step})
    assert there == retention.kept(range(stride, 400, stride))
