"""Tensors that a task goes on from beside its modules: in every checkpoint, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_backend import TinyBackend, checkpoints_in, state_at

from enhancer.engine.checkpoint import Checkpoints
from hparams.errors import UserError


def checkpoints_with(folder: Path, **tensors: torch.Tensor) -> Checkpoints:
    checkpoints = checkpoints_in(folder)
    checkpoints.task_state = tensors
    return checkpoints


def test_it_comes_back_bit_for_bit_in_the_type_it_had(tmp_path: Path) -> None:
    norms, count = torch.rand(3, dtype=torch.float64), torch.tensor([7])
    before = norms.clone()
    checkpoints_with(tmp_path, norms=norms, count=count).save(state_at(1), TinyBackend())
    other = {"norms": torch.zeros(3, dtype=torch.float64), "count": torch.zeros(1, dtype=torch.int64)}
    resumed = checkpoints_with(tmp_path, **other)
    found = resumed.latest_valid()
    assert found is not None
    resumed.restore(found, TinyBackend())
    assert torch.equal(other["norms"], before) and other["count"].item() == 7


def test_a_task_without_any_leaves_no_file(tmp_path: Path) -> None:
    folder = checkpoints_with(tmp_path).save(state_at(1), TinyBackend())
    assert not (folder / "task.state").exists()


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_that_of_another_task_is_refused_in_words(tmp_path: Path, other: torch.Tensor) -> None:
    checkpoints_with(tmp_path, norms=torch.rand(3, dtype=torch.float64)).save(state_at(1), TinyBackend())
    resumed = checkpoints_with(tmp_path, norms=other)
    found = resumed.latest_valid()
    assert found is not None
    with pytest.raises(UserError, match=r"does not hold what this run's modules need.*norms"):
        resumed.restore(found, TinyBackend())


def test_a_checkpoint_without_it_is_refused_in_words(tmp_path: Path) -> None:
    checkpoints_with(tmp_path).save(state_at(1), TinyBackend())
    resumed = checkpoints_with(tmp_path, norms=torch.zeros(1))
    found = resumed.latest_valid()
    assert found is not None
    with pytest.raises(UserError, match=r"task\.state is missing"):
        resumed.restore(found, TinyBackend())
