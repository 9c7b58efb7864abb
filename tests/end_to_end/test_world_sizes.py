"""A run that goes on with other numbers of ranks: the same draws, losses of an unbroken run, nothing lost."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from forked import forked_ranks
from ranks import column, records, status

pytestmark = [pytest.mark.multi, pytest.mark.slow]

STEPS = 12
CADENCE = ("max_steps=12", "save_every=3", "eval_every=6", "keep_checkpoints=10")
# What a world size changes is the order of sums: 3e-8 was measured in fp32, 1.7e-4 in bf16 (docs/LOG.md).
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3}
KINDS = [
    ("accelerate", 0, "fp32"),
    ("accelerate", 0, "bf16"),
    *(("deepspeed", stage, precision) for stage in (0, 1, 2) for precision in ("fp32", "bf16")),
]


def words(*values: str) -> list[str]:
    """Arguments of every start of a run with a batch of 8 that began on two ranks: one takes it in two parts of 4."""
    settings = (*CADENCE, "batch_size_per_gpu=4", *values)
    return [*(word for value in settings for word in ("--set", value)), "--no-noise"]


def go_on(backend: str, num_ranks: int, run: Path, *values: str, step: int) -> None:
    """Drop what came after `step` and finish the run with `num_ranks`."""
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    for ended in forked_ranks(backend, num_ranks, run, *words(*values)):
        assert ended.code == 0, ended.text
    resumed = [record for record in records(run, "event") if record["name"] == "resumed"]
    assert resumed[-1]["step"] == step


@pytest.mark.parametrize(("backend", "stage", "precision"), KINDS)
def test_two_ranks_go_on_as_one_and_four_and_as_two_again(tmp_path, backend, stage, precision):
    values = (f"zero_stage={stage}", f"precision={precision}")
    whole, run = tmp_path / "whole", tmp_path / "run"
    for ended in forked_ranks(backend, 2, whole, *words(*values)):
        assert ended.code == 0, ended.text
    shutil.copytree(whole, run)
    for num_ranks, step in ((1, 3), (4, 6), (2, 9)):
        go_on(backend, num_ranks, run, *values, step=step)
    limit = TOLERANCE[precision]
    assert column(run, "draws") == column(whole, "draws") == [8.0 * step for step in range(1, STEPS + 1)]
    assert column(run, "learning_rate") == column(whole, "learning_rate")
    np.testing.assert_allclose(column(run, "loss"), column(whole, "loss"), atol=limit, rtol=0)
    np.testing.assert_allclose(
        column(run, "gradient_norm"), column(whole, "gradient_norm"), atol=10 * limit, rtol=0
    )
    found, expected = (
        load_file(each / f"checkpoints/step-{STEPS:07d}/generator.safetensors") for each in (run, whole)
    )
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=10 * limit, rtol=0, err_msg=name)
    assert status(run)["state"] == "finished"


def test_weights_that_zero_3_has_split_are_refused_at_another_number_of_ranks_and_stay(tmp_path):
    run = tmp_path / "run"
    for ended in forked_ranks("deepspeed", 2, run, *words("zero_stage=3")):
        assert ended.code == 0, ended.text
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*") if path.is_file()}
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    (ended,) = forked_ranks("deepspeed", 1, run, *words("zero_stage=3"))
    assert ended.code == 2 and "on 2 ranks, which split every weight" in ended.text, ended.text
    after = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert after == {path: time for path, time in before.items() if "step-0000012" not in str(path)}
