"""The short form of `python -m tests.fuzz`: the same inputs of each target in each run; `make fuzz` takes others."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import Result, report, run, shares
from tests.fuzz.targets import TARGETS

COUNT = 300


@pytest.mark.slow
@pytest.mark.multi
def test_spoiled_files_end_in_typed_errors(capsys):
    seed = "324592"
    result = run([(name, 0, count) for name, count in shares(list(TARGETS), COUNT).items()], seed)
    code = report(result, seed)
    text = capsys.readouterr().out
    assert code == 0, text
    assert result.total >= COUNT and set(result.outcomes) == set(TARGETS), text


def test_a_wrong_outcome_is_told_with_the_command_that_reads_the_input_again(capsys):
    result = Result()
    result.add("tar", 7, "DataError")
    result.add("tar", 8, 'WRONG "Traceback ...\\nKeyError: 3"')
    assert report(result, "5") == 1
    text = capsys.readouterr().out
    assert "--seed 5 --target tar --first 8 --count 1" in text and "KeyError: 3" in text
    assert "2 inputs, 1 without a typed error" in text


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize(
    ("defect", "told"),
    [("crash", "SIGABRT"), ("hang", "a hang"), ("memory", "MemoryError"), ("error", "KeyError: 'missing'")],
)
def test_crashes_hangs_memory_and_other_errors_are_caught_and_the_rest_is_read(monkeypatch, defect, told):
    monkeypatch.setenv("FUZZ_DEFECT", defect)
    monkeypatch.setenv("FUZZ_SECONDS", "2")
    result = run([("pairs", 0, 6)], "0")
    assert result.total == 6
    ((target, number, text),) = result.wrong
    assert (target, number) == ("pairs", 3) and told in text
