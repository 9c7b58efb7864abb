"""What may be gone on from, and weights of another run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_backend import RECORD, state_at

from enhancer.engine.checkpoint import Checkpoint
from enhancer.engine.manifest import write_manifest
from enhancer.engine.resume import batch_per_rank, check_resume, read_weights
from enhancer.engine.weights import write_weights
from hparams.errors import UserError

NOW = {"backend": "accelerate", "zero_stage": 0, "precision": "fp32", "world_size": 1}


def checkpoint_of(**facts: object) -> Checkpoint:
    return Checkpoint(Path("run/checkpoints/step-0002000"), state_at(2000), {**RECORD, **NOW, **facts})


def test_the_same_run_may_go_on():
    check_resume(checkpoint_of(), NOW, "corpora-1")


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_another_world_size_may_go_on_where_weights_are_whole(zero_stage):
    recorded = checkpoint_of(zero_stage=zero_stage, world_size=2)
    check_resume(recorded, {**NOW, "zero_stage": zero_stage, "world_size": 4}, "corpora-1")


def test_other_data_may_be_allowed():
    check_resume(checkpoint_of(), NOW, "corpora-2", allow_data_change=True)


@pytest.mark.parametrize(
    ("recorded", "now", "fingerprint", "text"),
    [
        (
            {"backend": "deepspeed"},
            {},
            "corpora-1",
            "saved by the deepspeed backend.*`deepspeed launch/train.py`",
        ),
        ({}, {"zero_stage": 1}, "corpora-1", "zero_stage 0, this run has 1; set zero_stage to 0"),
        ({}, {"precision": "bf16"}, "corpora-1", "set precision to fp32"),
        ({"zero_stage": 3, "world_size": 2}, {"zero_stage": 3}, "corpora-1", "on 2 ranks.*Start 2 ranks"),
        ({}, {}, "corpora-2", "fingerprint corpora-1.*corpora-2.*--allow-data-change"),
    ],
)
def test_what_would_not_be_the_same_run_is_refused(recorded, now, fingerprint, text):
    with pytest.raises(UserError, match=text):
        check_resume(checkpoint_of(**recorded), {**NOW, **now}, fingerprint)


def test_other_frozen_modules_are_refused_and_checkpoints_of_before_not():
    check_resume(checkpoint_of(frozen="ab"), NOW, "corpora-1", frozen="ab")
    check_resume(checkpoint_of(), NOW, "corpora-1", frozen="ab")
    for now in ("cd", ""):
        with pytest.raises(UserError, match=r"with other frozen modules than those in frozen/.*was ab"):
            check_resume(checkpoint_of(frozen="ab"), NOW, "corpora-1", frozen=now)


@pytest.mark.parametrize(("world_size", "expected"), [(1, 16), (2, 8), (16, 1)])
def test_the_global_batch_is_kept(world_size, expected):
    assert batch_per_rank(RECORD, world_size) == expected


def test_ranks_that_do_not_divide_the_batch_are_told_which_do():
    with pytest.raises(UserError, match="3 ranks cannot share evenly; start 1, 2, 4, 8 or 16 ranks"):
        batch_per_rank(RECORD, 3)


def test_weights_are_found_in_a_run_a_checkpoint_and_a_file(tmp_path):
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-000000{step}"
        folder.mkdir(parents=True)
        write_weights(folder / "model.safetensors", {"w": torch.full((2,), float(step))})
        write_manifest(folder, state_at(step), RECORD)
    (tmp_path / "checkpoints" / "LATEST").write_text("step-0000002\n")
    assert read_weights(tmp_path, "model")["w"].tolist() == [2, 2]
    (tmp_path / "checkpoints" / "BEST").write_text("step-0000001\n")
    assert read_weights(tmp_path, "model")["w"].tolist() == [1, 1]
    assert read_weights(folder, "model")["w"].tolist() == [2, 2]
    assert read_weights(folder / "model.safetensors", "model")["w"].tolist() == [2, 2]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(UserError, match=r"step-0000002/model\.safetensors is changed.*another checkpoint"):
        read_weights(folder, "model")


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors there; needed a run folder"):
        read_weights(tmp_path, "model")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_weights(path, "model")


@pytest.mark.parametrize("stated", [None, 0, -8, 2.0, "8", 2**80, True])
def test_a_global_batch_that_is_none_is_refused(stated):
    with pytest.raises(UserError, match="states a global batch"):
        batch_per_rank({"global_batch": stated}, 2)
