"""A snapshot is equal to what it was taken of, shares nothing with it, and costs its memory once."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from enhancer.engine.snapshot import HostMemory
from enhancer.engine.weights import read_state, write_file

CPU = torch.device("cpu")


def state(random: torch.Generator) -> dict:
    image = torch.randn(2, 3, 4, 5, generator=random).to(memory_format=torch.channels_last)
    base = torch.randn(50, generator=random)
    return {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "mean": image}, 1: {"mean": base[10:20]}}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "fused": None, "params": [0, 1]}],
        "half": base.bfloat16(),
        "strided": base[::2],
        "counts": torch.arange(5),
        "none": torch.empty(0, 3),
    }


def assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def tensors_of(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def test_a_state_is_kept_as_it_was_also_through_a_file(tmp_path, random):
    live = state(random)
    expected = copy.deepcopy(live)
    memory = HostMemory(CPU)
    kept = memory.state(live)
    for tensor in tensors_of(live):
        tensor.zero_()
    live["groups"][0]["params"].clear()
    assert_equal(kept, expected)
    mean = kept["optimizer"]["state"][0]["mean"]
    assert mean.is_contiguous(memory_format=torch.channels_last)
    write_file(tmp_path / "a.state", kept)
    assert_equal(read_state(tmp_path / "a.state"), expected)
    # Every tensor has a storage of its own, or torch.save would write the whole block for each.
    assert (tmp_path / "a.state").stat().st_size < 20_000


def test_weights_are_rows_of_float32_and_other_types_stay(tmp_path, random):
    live = {
        "image": torch.randn(2, 3, 4, 5, generator=random).to(memory_format=torch.channels_last),
        "half": torch.randn(7, generator=random).bfloat16(),
        "count": torch.tensor(5),
    }
    live["tied"] = live["image"]
    write_file(tmp_path / "a.safetensors", HostMemory(CPU).weights(live))
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == live.keys()
    for name, value in live.items():
        assert torch.equal(found[name], value.float() if value.is_floating_point() else value), name
        assert found[name].dtype == (torch.float32 if value.is_floating_point() else torch.int64)


def test_tensors_that_lie_in_one_storage_are_written_too(tmp_path, random):
    base = torch.randn(4, 6, generator=random)
    live = {"rows": base[:2], "others": base[2:], "same": base[:2], "columns": base[:, 1:3]}
    write_file(tmp_path / "a.safetensors", live)
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], value) for name, value in live.items())


def test_what_is_neither_tensor_nor_plain_value_is_left_out_of_dicts():
    kept = HostMemory(CPU).state({"hook": print, "inner": {"a": 1, "scaler": object()}, "list": [1, print]})
    assert kept == {"inner": {"a": 1}}
    with pytest.raises(TypeError, match="builtin_function_or_method is no state"):
        HostMemory(CPU).state(print)


def test_the_next_snapshot_takes_the_same_memory(random):
    live, memory = state(random), HostMemory(CPU)
    first = [tensor.data_ptr() for tensor in tensors_of(memory.state(live))]
    size = memory.num_bytes
    memory.begin()
    assert [tensor.data_ptr() for tensor in tensors_of(memory.state(live))] == first
    assert memory.num_bytes == size == sum(tensor.nbytes for tensor in tensors_of(live))


def test_tensors_larger_than_a_block_and_many_of_them_do_not_overlap():
    memory = HostMemory(CPU)
    sizes = [1, 3, 20_000_000, 7, 15_000_000, 5, 2]
    kept = [memory.weight(torch.full((size,), float(place))) for place, size in enumerate(sizes)]
    for place, (size, tensor) in enumerate(zip(sizes, kept, strict=True)):
        assert tensor.numel() == size and bool((tensor == place).all()), place


def test_memory_that_cannot_be_had_is_told_and_not_raised(monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    memory = HostMemory(CPU)
    monkeypatch.setattr("enhancer.engine.snapshot.mmap.mmap", refuse)
    assert memory.weight(torch.ones(3)).shape == (3,)
    assert "Cannot allocate memory" in memory.problem
    memory.begin()
    assert not memory.problem


@pytest.mark.gpu
def test_a_snapshot_of_a_gpu_is_pinned_and_of_the_moment():
    device = torch.device("cuda")
    live = torch.randn(30_000_000, device=device)
    expected = live.cpu()
    memory = HostMemory(device)
    kept = memory.weight(live)
    assert kept.is_pinned()
    live.zero_()  # On the same stream: after the copy.
    memory.wait()
    assert torch.equal(kept, expected)
