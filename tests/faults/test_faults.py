"""The short form of `python -m tests.faults`: the same faults in each run of the tests; `make faults` takes others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import table
from tests.faults.kinds import FAULTS
from tests.faults.rounds import Report, kind_of
from tests.faults.runs import is_whole, newest_whole

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 6


@pytest.mark.slow
@pytest.mark.multi
def test_runs_that_are_broken_at_random_moments_end_as_unbroken_ones():
    seed = "7"
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "--seed", seed, "--rounds", str(ROUNDS)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-20_000:]}{done.stderr[-4000:]}"
    assert re.search(rf"^seed {seed}: {ROUNDS} of {ROUNDS} rounds survived", done.stdout, re.MULTILINE), (
        done.stdout
    )


def test_every_kind_has_its_turn_before_any_comes_again():
    count = len(FAULTS)
    for turn in range(3):
        kinds = {kind_of(turn * count + place, "7", list(FAULTS)) for place in range(count)}
        assert kinds == set(FAULTS)


def test_a_round_with_a_problem_is_counted_for_all_of_its_faults():
    bad = Report(
        0, ["kill all", "STOP file"], "toy", endings=["running", "preempted"], problems=["it differs"]
    )
    good = Report(1, ["kill all"], "toy", endings=["running"])
    lines = table([bad, good]).splitlines()
    assert [line.split()[-5:] for line in lines[1:]] == [
        ["all", "2", "1", "running", "2"],
        ["file", "1", "1", "preempted", "1"],
    ]


def test_wholeness_is_judged_by_every_byte(tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "engine"))
    from tiny_backend import TinyBackend, checkpoints_in, state_at

    for step in (1, 2):
        checkpoints_in(tmp_path, 3).save(state_at(step), TinyBackend())
    folder = tmp_path / "checkpoints" / "step-0000002"
    assert newest_whole(tmp_path) == 2
    for path in sorted(each for each in folder.iterdir() if each.is_file()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert not is_whole(folder) and newest_whole(tmp_path) == 1, (path.name, place)
        path.write_bytes(whole[:-1])
        assert not is_whole(folder), path.name
        path.write_bytes(whole)
    assert is_whole(folder)
