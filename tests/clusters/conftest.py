"""Clusters simulated on this machine: only when asked for, since they start daemons, add networks and take minutes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.clusters.runs import REPOSITORY, build_corpora, environment, status, submit_words

ASKED = "WAVEWRIGHT_CLUSTERS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is slow, of several processes, and skipped unless asked for."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.multi)
            if not os.environ.get(ASKED):
                item.add_marker(pytest.mark.skip(reason="starts daemons and networks: make clusters"))


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fg, bg and rir corpora, as values for `--set`."""
    return build_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def unbroken(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks on this machine that nothing interrupts."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    words = submit_words("local", run, corpora, "--ranks-per-node", "2", "--port", "29871")
    done = subprocess.run(
        words, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(run)["state"] == "finished"
    return run
