"""A run over two machines with addresses of their own, started as through ssh: a cut link, and going on after it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import networks
from tests.clusters.runs import (
    REPOSITORY,
    alive,
    assert_same_run,
    environment,
    status,
    submit_words,
    wait_until,
)

LIMIT_SECONDS = 20
# Python and DeepSpeed's launcher take a while to leave, on a machine that does other things too.
LEAVING_SECONDS = 40


@pytest.fixture(scope="module")
def machines() -> Iterator[networks.Machines]:
    if reason := networks.missing():
        pytest.skip(reason)
    made = networks.Machines(2)
    made.stop()
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Submitted:
    """`submit.py hosts` in a process of its own, with its words in a file."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                words, cwd=REPOSITORY, env=environment(), stdout=out, stderr=out, start_new_session=True
            )

    def told(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float) -> int:
        """Exit code; fails with all that was said where it does not come within `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s:\n{self.told()}") from None


def words_for(machines: networks.Machines, run: Path, corpora: dict[str, Path], folder: Path) -> list[str]:
    hostfile = folder / "hosts"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in machines.addresses))
    values = {**corpora, "comm_timeout_seconds": LIMIT_SECONDS, "save_every": 5}
    place = ["--hostfile", str(hostfile), "--ssh", str(machines.shell(folder))]
    return submit_words("hosts", run, values, *place, "--interface", networks.INTERFACE)


def test_a_cut_link_ends_both_sides_in_time_with_the_reason_and_the_same_command_goes_on(
    machines: networks.Machines, corpora: dict[str, Path], unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = words_for(machines, run, corpora, tmp_path)
    submitted = Submitted(words, tmp_path / "first.log")
    # A checkpoint is written beside the steps that follow it, so it may be there later than they are.
    is_saved = (run / "checkpoints" / "step-0000005").is_dir
    wait_until(lambda: is_saved() and status(run).get("step", 0) >= 7, 300, submitted.told)
    machines.set_link(2, "down")
    cut = time.monotonic()
    try:
        assert submitted.end(LIMIT_SECONDS + LEAVING_SECONDS) == 1
        print(f"ended {time.monotonic() - cut:.1f} s after the cut")
        assert not alive(run)
    finally:
        machines.set_link(2, "up")
    ended = status(run)
    assert ended["state"] == "failed" and ended["exit_code"] == 1
    assert "rank 0 has lost another rank" in ended["reason"]
    assert f"comm_timeout_seconds={LIMIT_SECONDS}" in ended["reason"]
    for number, address in enumerate(machines.addresses):
        assert f"{address}: error: rank {number} has lost another rank" in submitted.told()

    again = Submitted(words, tmp_path / "second.log")
    assert again.end(600) == 0, again.told()
    assert "going on from step-" in again.told()
    assert_same_run(run, unbroken)


def test_ctrl_c_has_the_run_on_all_machines_save_and_end(
    machines: networks.Machines, corpora: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submitted = Submitted(words_for(machines, run, corpora, tmp_path), tmp_path / "log")
    wait_until(lambda: status(run).get("step", 0) >= 1, 300, submitted.told)
    submitted.process.send_signal(signal.SIGINT)
    assert submitted.end(90) == 75, submitted.told()
    assert status(run)["state"] == "preempted" and not alive(run)
