"""Which ends of a run are followed by another start, and after how long."""

from __future__ import annotations

import pytest

from launch.restarts import End, Restarts


def restarts() -> Restarts:
    made = Restarts(max_restarts=3, backoff_seconds=5, max_backoff_seconds=12)
    made.start(-1)
    return made


@pytest.mark.parametrize(
    ("state", "code"),
    [("finished", 0), ("failed", 2), ("diverged", 70)],
    ids=["finished", "input", "diverged"],
)
def test_what_another_start_would_not_change_is_the_end(state, code):
    assert restarts().decide(End(state, 5, "because", code, 5)).is_over


@pytest.mark.parametrize("reason", ["STOP file in the run folder", "SIGINT"])
def test_what_a_person_stopped_stays_stopped(reason):
    assert restarts().decide(End("preempted", 5, reason, 75, 5)).is_over


def test_waits_double_up_to_the_longest_and_begin_again_after_a_new_checkpoint():
    made = restarts()
    waits = [made.decide(End("preempted", 5, "SIGTERM", 75, 5)).wait_seconds for _ in range(3)]
    assert waits == [5, 10, 12]
    assert made.decide(End("preempted", 9, "SIGTERM", 75, 9)).wait_seconds == 5


def test_the_number_of_restarts_without_a_new_checkpoint_is_bounded():
    made = restarts()
    decisions = [made.decide(End("failed", step, "gone", 71, 5)) for step in (9, 8, 7, 6)]
    assert [each.is_over for each in decisions] == [False, False, False, True]
    assert "3 restarts without a new checkpoint" in decisions[-1].text


def test_failing_twice_at_one_step_is_the_end_and_says_so():
    made = restarts()
    assert not made.decide(End("failed", 7, "boom", 1, 5)).is_over
    again = made.decide(End("failed", 7, "boom", 1, 5))
    assert again.is_over and "failed twice at step 7" in again.text and "boom" in again.text


def test_failing_at_one_step_again_after_a_new_checkpoint_is_not_the_same_failure():
    made = restarts()
    assert not made.decide(End("failed", 7, "boom", 1, 5)).is_over
    assert not made.decide(End("failed", 7, "boom", 1, 6)).is_over


def test_a_preemption_between_two_failures_at_one_step_does_not_hide_them():
    made = restarts()
    assert not made.decide(End("failed", 7, "boom", 1, 5)).is_over
    assert not made.decide(End("preempted", 6, "SIGTERM", 75, 5)).is_over
    assert made.decide(End("failed", 7, "boom", 1, 5)).is_over
