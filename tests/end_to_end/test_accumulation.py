"""Batches taken in parts by real ranks: the run of whole batches, exact resume, bad parts, stops, less to exchange."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from forked import forked_ranks
from ranks import column, records, status

pytestmark = [pytest.mark.multi, pytest.mark.slow]

REDUCED = Path(__file__).with_name("reduced.py")
# Both modules are clipped at nearly every step, so a wrong norm would show.
ADVERSARIAL = ("--adversarial", "--judge-last", "--set", "gradient_clipping=0.1")
IN_TWO = ("--set", "gradient_accumulation_steps=2")
KINDS = [
    ("accelerate", 1, "ema_decay=0.9"),
    ("accelerate", 2, "optimizer=muon", "adamw_max_lr=0.001"),
    ("deepspeed", 1, "zero_stage=2", "precision=bf16"),
    ("deepspeed", 2, "zero_stage=0", "optimizer=muon"),
    ("deepspeed", 2, "zero_stage=0", "precision=bf16"),
    ("deepspeed", 2, "zero_stage=1", "ema_decay=0.9"),
    ("deepspeed", 2, "zero_stage=2"),
    ("deepspeed", 2, "zero_stage=3"),
    ("deepspeed", 2, "zero_stage=3", "precision=bf16"),
]


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def train(backend: str, num_ranks: int, run: Path, *words: str) -> None:
    for ended in forked_ranks(backend, num_ranks, run, *words):
        assert ended.code == 0, ended.text


def assert_alike(found: Path, expected: Path, limit: float) -> None:
    """The same draws and rates; losses, norms and the last weights of both modules within `limit`."""
    for name in ("draws", "learning_rate"):
        assert column(found, name) == column(expected, name)
    for name in ("loss", "judge_loss", "gradient_norm", "gradient_norm_judge"):
        scale = 10 if name.startswith("gradient_norm") else 1
        np.testing.assert_allclose(
            column(found, name), column(expected, name), atol=scale * limit, rtol=0, err_msg=name
        )
    files = [
        file
        for name in ("generator", "judge", "generator.average")
        if (file := expected / "checkpoints" / "step-0000010" / f"{name}.safetensors").exists()
    ]
    assert len(files) >= 2
    for file in files:
        other = load_file(found / "checkpoints" / "step-0000010" / file.name)
        for key, value in load_file(file).items():
            torch.testing.assert_close(other[key], value, atol=10 * limit, rtol=0, msg=f"{file.name} {key}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_run_in_parts_is_the_run_of_whole_batches_and_resumes_bit_for_bit(tmp_path, kind):
    backend, num_ranks, *values = kind
    whole, parts, again = tmp_path / "whole", tmp_path / "parts", tmp_path / "again"
    words = (*ADVERSARIAL, *settings(*values))
    rows = 8 // num_ranks
    train(backend, num_ranks, whole, *words, "--no-noise", "--set", f"batch_size_per_gpu={rows}")
    in_two = (*words, *IN_TWO, "--set", f"batch_size_per_gpu={rows // 2}")
    train(backend, num_ranks, parts, *in_two, "--no-noise")
    assert_alike(parts, whole, 1e-3 if "precision=bf16" in values else 1e-6)

    shutil.copytree(parts, again)
    shutil.rmtree(again / "checkpoints" / "step-0000010")
    train(backend, num_ranks, again, *in_two, "--no-noise")
    assert [record["name"] for record in records(again, "event")].count("resumed") == 1
    for name in ("step", "evaluation"):
        assert records(again, name) == records(parts, name)
    assert_alike(again, parts, 0)


def test_dropout_in_parts_resumes_bit_for_bit(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    words = (*ADVERSARIAL, *IN_TWO, "--set", "batch_size_per_gpu=2")
    train("accelerate", 2, whole, *words)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "step-0000010")
    train("accelerate", 2, again, *words)
    assert records(again, "step") == records(whole, "step")
    assert_alike(again, whole, 0)


@pytest.mark.parametrize("values", [(), ("zero_stage=2", "precision=bf16"), ("zero_stage=3",)])
def test_a_nan_in_one_part_of_one_rank_skips_the_whole_step_on_both(tmp_path, values):
    """Gradients that stayed behind of other parts or ranks would make the steps after it other ones."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    backend = "deepspeed" if values else "accelerate"
    words = (*ADVERSARIAL, *settings(*values), "--no-noise", "--fault", "once:4:1")
    train(backend, 2, whole, *words, "--set", "batch_size_per_gpu=4")
    train(backend, 2, parts, *words, "--set", "batch_size_per_gpu=2", *IN_TWO)
    assert_alike(parts, whole, 1e-3 if "precision=bf16" in values else 1e-6)
    for run in (whole, parts):
        skipped = [record["step"] for record in records(run, "event") if record["name"] == "skipped"]
        assert skipped == [4, 4]
        assert column(run, "draws")[-1] == 88


@pytest.mark.parametrize(
    ("backend", "values", "fault"),
    [
        ("accelerate", (), "tail"),
        ("deepspeed", ("zero_stage=0",), "once"),
        ("deepspeed", ("zero_stage=0",), "tail"),
        ("deepspeed", ("zero_stage=1",), "once"),
        ("deepspeed", ("zero_stage=1",), "tail"),
    ],
)
def test_a_step_skipped_for_a_nan_in_the_first_or_last_part_of_one_rank_was_never_taken(
    tmp_path, backend, values, fault
):
    """Bit for bit the run whose draws leave that batch out, on both ranks, but for the one step that is counted."""
    skipped, without = tmp_path / "skipped", tmp_path / "without"
    words = (*settings("batch_size_per_gpu=2", *values), *IN_TWO, "--no-noise")
    train(backend, 2, skipped, *words, "--fault", f"{fault}:4:1")
    train(backend, 2, without, *words, "--fault", "gap:4:1")
    assert column(skipped, "skipped") == [0] * 4 + [1] * 6
    assert column(skipped, "draws") == [8, 16, 24, 32, 48, 56, 64, 72, 80, 88]
    for name in ("step", "loss", "gradient_norm", "learning_rate"):
        assert column(skipped, name) == column(without, name), name
    files = [run / "checkpoints" / "step-0000010" / "generator.safetensors" for run in (skipped, without)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [record["step"] for record in records(skipped, "event") if record["name"] == "skipped"] == [4]


@pytest.mark.parametrize("values", [("zero_stage=1",), ("zero_stage=3", "precision=bf16")])
def test_a_nan_in_one_part_of_a_single_rank_skips_the_whole_step(tmp_path, values):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = (*ADVERSARIAL, *settings(*values), "--no-noise", "--fault", "once:4:0")
    train("deepspeed", 1, whole, *words, "--set", "batch_size_per_gpu=8")
    train(
        "deepspeed",
        1,
        parts,
        *words,
        "--set",
        "batch_size_per_gpu=2",
        "--set",
        "gradient_accumulation_steps=4",
    )
    assert_alike(parts, whole, 1e-3 if "precision=bf16" in values else 1e-6)
    assert column(parts, "draws")[-1] == 88


@pytest.mark.parametrize(("backend", "stage"), [("accelerate", 0), ("deepspeed", 2)])
def test_a_stop_and_damage_between_steps_in_parts_lose_nothing(tmp_path, backend, stage):
    words = (*ADVERSARIAL, *IN_TWO, *settings("batch_size_per_gpu=2", f"zero_stage={stage}"))
    whole, stopped, damaged = tmp_path / "whole", tmp_path / "stopped", tmp_path / "damaged"
    train(backend, 2, whole, *words)
    for run, fault, code in ((stopped, "term:3:1", 75), (damaged, "damage:3:1", 2)):
        for ended in forked_ranks(backend, 2, run, *words, "--fault", fault):
            assert ended.code == code, ended.text
        # Damage is found before the step; a stop is agreed on in it, or while its batch is waited for.
        assert status(run)["step"] in ((3,) if code == 2 else (3, 4, 5))
        train(backend, 2, run, *words)
        assert records(run, "step") == records(whole, "step")
        assert_alike(run, whole, 0)


@pytest.mark.parametrize(
    ("backend", "values", "is_late"),
    [
        ("accelerate", (), True),
        ("deepspeed", ("zero_stage=0",), True),
        ("deepspeed", ("zero_stage=0", "precision=bf16"), True),
        ("deepspeed", ("zero_stage=1",), True),
        ("deepspeed", ("zero_stage=2",), False),
    ],
)
def test_gradients_are_exchanged_with_the_last_part_alone_where_they_are_whole(
    tmp_path, backend, values, is_late
):
    words = ("--backend", backend, *settings(*values))
    for ended in forked_ranks(backend, 2, tmp_path, *words, program=REDUCED):
        assert ended.code == 0, ended.text
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["steps"] == 1
        assert found["reduced"][-1] >= found["parameters"]
        assert (found["reduced"][:-1] == [0, 0]) == is_late, found


def test_parts_that_a_task_does_not_take_are_refused_in_words(tmp_path):
    for ended in forked_ranks("accelerate", 1, tmp_path / "run", "--adversarial", *IN_TWO):
        assert ended.code == 2 and "cannot be taken in parts" in ended.text and "Traceback" not in ended.text
