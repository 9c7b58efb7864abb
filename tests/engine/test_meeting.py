"""Which ranks of a machine are counted while they meet."""

from __future__ import annotations

import psutil
import pytest

from enhancer.engine import meeting


class Sibling:
    """A process whose environment cannot be read for `error`."""

    def __init__(self, error: psutil.Error, state: str = psutil.STATUS_RUNNING) -> None:
        self.error, self.state = error, state

    def environ(self) -> dict[str, str]:
        raise self.error

    def is_running(self) -> bool:
        return True

    def status(self) -> str:
        return self.state


@pytest.mark.parametrize(
    ("sibling", "expected"),
    [
        (Sibling(psutil.AccessDenied()), 2),
        (Sibling(psutil.AccessDenied(), psutil.STATUS_ZOMBIE), 1),
        (Sibling(psutil.NoSuchProcess(1)), 1),
    ],
)
def test_a_rank_that_keeps_its_environment_to_itself_is_not_missed(monkeypatch, sibling, expected):
    own = psutil.Process()
    monkeypatch.setattr(meeting, "rank_of", lambda environment: 0)
    monkeypatch.setattr(meeting.psutil, "process_iter", lambda: [own, sibling])
    monkeypatch.setattr(meeting, "_siblings", lambda: [sibling])
    assert meeting._num_ranks() == expected
