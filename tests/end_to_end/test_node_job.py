"""launch/node.py around real ranks: told to stop, killed, given values that cannot be."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.clusters.runs import (
    REPOSITORY,
    alive,
    build_corpora,
    environment,
    status,
    submit_words,
    wait_until,
)
from tests.engine.ranks import free_port

pytestmark = [pytest.mark.multi, pytest.mark.slow]

START_SECONDS, SAVE_SECONDS = 180, 60


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fg, bg and rir corpora, as values for `--set`."""
    return build_corpora(tmp_path_factory.mktemp("corpora"))


@contextmanager
def training(run: Path, corpora: dict[str, Path]) -> Iterator[subprocess.Popen[bytes]]:
    """node.py with two ranks, after the first step; `submit.py local` becomes it."""
    words = submit_words(
        "local",
        run,
        {**corpora, "max_steps": 10_000},
        "--ranks-per-node",
        "2",
        "--port",
        str(free_port()),
    )
    log = run.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=REPOSITORY, env=environment(), stdout=out, stderr=out)
    try:
        wait_until(lambda: status(run).get("step", 0) >= 1, START_SECONDS, log.read_text)
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in alive(run):
            psutil.Process(pid).kill()


def test_sigterm_to_it_is_a_saved_run_and_exit_75(tmp_path: Path, corpora: dict[str, Path]) -> None:
    run = tmp_path / "run"
    with training(run, corpora) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(SAVE_SECONDS) == 75
        assert not alive(run)
    assert (status(run)["state"], status(run)["reason"]) == ("preempted", "SIGTERM")
    assert (run / f"checkpoints/step-{status(run)['step']:07d}/manifest.json").exists()


def test_killed_it_leaves_a_saved_run_and_no_orphans(tmp_path: Path, corpora: dict[str, Path]) -> None:
    run = tmp_path / "run"
    with training(run, corpora) as process:
        process.kill()
        wait_until(lambda: not alive(run), SAVE_SECONDS, lambda: str(alive(run)))
    assert (status(run)["state"], status(run)["reason"]) == ("preempted", "the launcher is gone")


def test_it_ends_with_the_runs_code_where_deepspeeds_own_process_is_killed(
    tmp_path: Path, corpora: dict[str, Path]
) -> None:
    run = tmp_path / "run"
    with training(run, corpora) as process:
        (launcher,) = [
            each
            for each in psutil.Process(process.pid).children(recursive=True)
            if "deepspeed.launcher.launch" in each.cmdline()
        ]
        launcher.kill()
        assert process.wait(SAVE_SECONDS) == 75
        assert not alive(run)
    assert status(run)["state"] == "preempted"


def test_what_train_py_refuses_is_exit_2(tmp_path: Path, corpora: dict[str, Path]) -> None:
    words = submit_words("local", tmp_path / "run", {**corpora, "fg_dir": tmp_path / "nowhere"})
    done = subprocess.run(
        [*words, "--port", str(free_port())],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 2 and "nowhere" in done.stderr
