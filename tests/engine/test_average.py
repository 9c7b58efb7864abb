"""The moving average of the weights against its definition, and what training sees of it: nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from enhancer.engine.average import AVERAGE, WeightAverage
from enhancer.engine.snapshot import HostMemory
from enhancer.engine.weights import read_weights_file, write_file
from hparams.errors import UserError


def net() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    module.register_buffer("taps", torch.randn(4))
    return module


def shaken(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight))


def save(average: WeightAverage, folder: Path) -> None:
    for name, content in average.capture(HostMemory(torch.device("cpu"))).items():
        write_file(folder / name, content)


def flat(module: nn.Module) -> np.ndarray:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).double().numpy()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_it_is_the_recursion_of_its_definition(decay):
    module = net()
    average = WeightAverage("net", module, decay)
    expected = flat(module)
    for step in range(1, 40):
        shaken(module)
        average.update()
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * flat(module)
    with average.in_place():
        np.testing.assert_allclose(flat(module), expected, rtol=1e-5, atol=1e-6)


def test_the_own_weights_come_back_bit_for_bit_also_after_an_error():
    module = net()
    average = WeightAverage("net", module, 0.9)
    shaken(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(KeyError), average.in_place():
        assert not torch.equal(module.get_parameter("0.weight"), before["0.weight"])
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_it_goes_on_from_a_file_as_if_it_had_not_been_stopped(tmp_path):
    module = net()
    average = WeightAverage("net", module, 0.99)
    for _ in range(7):
        shaken(module)
        average.update()
    save(average, tmp_path)

    other = net()
    other.load_state_dict(module.state_dict())
    resumed = WeightAverage("net", other, 0.99)
    resumed.load(tmp_path, 7)
    shaken(module)
    other.load_state_dict(module.state_dict())
    average.update()
    resumed.update()
    with average.in_place(), resumed.in_place():
        assert np.array_equal(flat(module), flat(other))


def test_the_file_is_a_state_dict_with_the_average_and_the_buffers(tmp_path):
    module = net()
    average = WeightAverage("net", module, 0.9)
    shaken(module)
    average.update()
    save(average, tmp_path)
    other = net()
    other.load_state_dict(read_weights_file(tmp_path / AVERAGE.format(name="net")))
    with average.in_place():
        assert all(
            torch.equal(value, module.state_dict()[name]) for name, value in other.state_dict().items()
        )


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / AVERAGE.format(name="net")).write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        WeightAverage("net", net(), 0.9).load(tmp_path, 1)
