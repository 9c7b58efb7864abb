"""Judging heartbeats by a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace

from enhancer.engine.peers import Peers, Process
from enhancer.engine.pulse import COPYING, ENDED, Beat

HANG, STALL = 15.0, 100.0


class Ranks:
    """Beats of two ranks on one host and one elsewhere, a second at a time."""

    def __init__(self) -> None:
        self.beats = [
            Beat("one", rank, host, 100 + rank, 0.0, HANG)
            for rank, host in enumerate(("here", "here", "there"))
        ]
        self.processes = {100: Process("sleeping", 1.0), 101: Process("sleeping", 1.0)}
        self.peers = Peers(HANG, STALL, "here", lambda beat: self.processes[beat.pid], 0.0)
        self.now = 0.0

    def run(self, seconds, beating=(0, 1, 2), marking=(0, 1, 2)):
        """The first verdict within `seconds`."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.beats = [
                replace(
                    beat,
                    count=beat.count + (beat.rank in beating),
                    marks=beat.marks + (beat.rank in marking),
                )
                for beat in self.beats
            ]
            verdict = self.peers.look(self.beats, self.now)
            if verdict is not None:
                return verdict
        return None


def test_ranks_that_beat_and_come_further_are_left_alone():
    assert Ranks().run(1000) is None


def test_a_rank_elsewhere_that_falls_silent_is_found_after_the_time_out_and_not_before():
    ranks = Ranks()
    assert ranks.run(20) is None
    assert ranks.run(15, beating=(0, 1)) is None
    verdict = ranks.run(2, beating=(0, 1))
    assert verdict is not None and [beat.rank for beat in verdict.hung] == [2]
    assert verdict.exit_code == 71
    assert "rank 2 (process 102 on there) has given no sign of life for 15 s" in verdict.reason


def test_a_frozen_rank_here_is_named_with_what_the_system_says():
    ranks = Ranks()
    ranks.run(5)
    ranks.processes[101] = Process("stopped", 1.0)
    verdict = ranks.run(20, beating=(0, 2))
    assert verdict is not None and "the system says that it is stopped" in verdict.reason


def test_a_rank_here_that_computes_without_beating_is_alive():
    ranks = Ranks()
    for second in range(60):
        ranks.processes[101] = Process("running", 1.0 + second)
        assert ranks.run(1, beating=(0, 2)) is None


def test_a_killed_rank_here_is_found_at_once():
    ranks = Ranks()
    ranks.run(5)
    ranks.processes[101] = Process("gone", 0.0)
    verdict = ranks.run(1)
    assert verdict is not None and "rank 1 (process 101 on here) is gone" in verdict.reason
    assert (verdict.exit_code, verdict.hung) == (71, ())


def test_a_rank_that_is_gone_comes_before_the_error_that_it_caused_elsewhere():
    ranks = Ranks()
    ranks.run(5)
    ranks.beats[0] = replace(ranks.beats[0], end="RuntimeError: Connection closed by peer")
    ranks.processes[101] = Process("gone", 0.0)
    verdict = ranks.run(1)
    assert verdict is not None and "rank 1" in verdict.reason


def test_the_error_of_a_rank_is_the_reason():
    ranks = Ranks()
    ranks.run(5)
    ranks.beats[2] = replace(ranks.beats[2], end="OutOfMemoryError: too much")
    verdict = ranks.run(1)
    assert verdict is not None and verdict.exit_code == 1
    assert verdict.reason == "rank 2 (process 102 on there) failed: OutOfMemoryError: too much"


def test_a_rank_that_has_ended_need_not_beat():
    ranks = Ranks()
    ranks.beats[1] = replace(ranks.beats[1], end=ENDED)
    ranks.processes[101] = Process("gone", 0.0)
    assert ranks.run(90, beating=(0, 2)) is None


def test_one_slow_rank_is_no_standstill_while_another_comes_further():
    assert Ranks().run(1000, marking=(2,)) is None


def test_a_standstill_of_all_ends_the_run_with_what_each_is_at():
    ranks = Ranks()
    ranks.run(5)
    ranks.beats = [
        replace(beat, phase=phase, step=7)
        for beat, phase in zip(ranks.beats, ("a step", "an evaluation", "a step"), strict=True)
    ]
    assert ranks.run(99, marking=()) is None
    verdict = ranks.run(3, marking=())
    assert verdict is not None and verdict.exit_code == 71
    assert "rank 0 in a step at step 7, rank 1 in an evaluation at step 7" in verdict.reason


def test_sending_copies_may_take_as_long_as_it_takes():
    ranks = Ranks()
    ranks.beats[0] = replace(ranks.beats[0], phase=COPYING)
    assert ranks.run(1000, marking=()) is None


def test_after_a_sleep_of_the_machine_everybody_gets_the_whole_time_again():
    ranks = Ranks()
    ranks.run(20)
    ranks.now += 3600
    assert ranks.run(15, beating=(0, 1)) is None
    assert ranks.run(2, beating=(0, 1)) is not None
