"""One run of each task, and what they learn from, for the tests of the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.report.run_folders import HOSTILE, Runs, device_corpus, hparams_of, make_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Folders of runs by task; tests copy what they change."""
    base = tmp_path_factory.getbasetemp()
    return Runs((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "report-runs")


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with markup wherever text comes from outside: folder, files, events, metrics and hyper-parameters."""
    root = tmp_path_factory.mktemp("hostile")
    pair = device_corpus(root / HOSTILE, name=HOSTILE)
    run = make_run(root / f"run{HOSTILE}", hparams_of("pedal", {"pair_dir": pair}))
    with (run / "metrics.jsonl").open("a") as file:
        text = "</script><script>window.owned=1</script>\"'" + HOSTILE
        file.write(json.dumps({"kind": "event", "step": 60, "name": text, "text": text}) + "\n")
        file.write(json.dumps({"kind": "step", "step": 61, text: 1.0}) + "\n")
        interval = {"mean": 1.0, "low": 0.5, "high": 2.0}
        evaluation = {"kind": "evaluation", "step": 61, "summary": {text: interval, "esr": interval}}
        file.write(json.dumps({**evaluation, "rows": [{"item": 0, text: 1.0, "esr": 1.0}]}) + "\n")
    (run / "status.json").write_text(json.dumps({"state": HOSTILE, "reason": HOSTILE, "step": 60}))
    return run
