"""States of optimisers on files: what comes back is what was written, and nothing else is taken."""

from __future__ import annotations

import json
import math
import pickle
import struct
from typing import Any

import pytest
import torch

from enhancer.engine.weights import read_state, write_state
from hparams.errors import UserError


def is_equal(one: Any, other: Any) -> bool:
    """The same types and values at every depth, NaN like NaN, tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return one == other or (one != one and other != other)


def test_a_state_comes_back_as_it_was(tmp_path, random):
    shared = torch.randn(4, 6, generator=random)
    state = {
        "state": {
            0: {"step": torch.tensor(3.0), "mean": shared, "part": shared[1:3], "turned": shared.t()},
            1: {},
        },
        "groups": [
            {"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "fused": None, "amsgrad": False, "params": [0, 1]}
        ],
        "odd": [math.inf, -math.inf, math.nan, -0.0, 5e-324, 2**80, "é\n", (), [], {}],
        "types": [torch.zeros(0, 3), torch.tensor([1.5]).bfloat16(), torch.arange(3), torch.tensor(True)],
    }
    write_state(tmp_path / "a.state", state)
    assert is_equal(read_state(tmp_path / "a.state"), state)


def test_an_optimiser_goes_on_bit_for_bit(tmp_path, random):
    def stepped(
        optimizer: torch.optim.Optimizer, weight: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        weight.grad = gradient.clone()
        optimizer.step()
        return weight.detach().clone()

    gradients = torch.randn(2, 5, generator=random)
    weight = torch.nn.Parameter(torch.randn(5, generator=random))
    optimizer = torch.optim.AdamW([weight], lr=0.01)
    before = stepped(optimizer, weight, gradients[0])
    write_state(tmp_path / "a.state", optimizer.state_dict())
    expected = stepped(optimizer, weight, gradients[1])
    other = torch.nn.Parameter(before)
    restored = torch.optim.AdamW([other], lr=0.5)
    restored.load_state_dict(read_state(tmp_path / "a.state"))
    assert torch.equal(stepped(restored, other, gradients[1]), expected)


@pytest.mark.parametrize("value", [{1.5: 0}, {None: 0}, {"a": object()}, [{1, 2}], {"a": b"bytes"}])
def test_what_is_no_plain_value_is_not_written(tmp_path, value):
    with pytest.raises(TypeError, match="can be written"):
        write_state(tmp_path / "a.state", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "described",
    ['{"tensor":"7"}', '{"code":"x"}', '{"dict":[[1]]}', '{"dict":[[[],1]]}', '{"float":"x"}', '{"a":1,"b":2}', "{",
     "[" * 9999],
)  # fmt: skip
def test_a_state_of_another_form_is_refused(tmp_path, described):
    header = json.dumps({"__metadata__": {"state": described}}).encode()
    (tmp_path / "a.state").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"a\.state is damaged"):
        read_state(tmp_path / "a.state")


def test_a_pickle_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "a.state").write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_state(tmp_path / "a.state")
    with pytest.raises(UserError, match="is missing"):
        read_state(tmp_path / "b.state")
