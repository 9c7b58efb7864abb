"""The recurrent device against recursions written out in numpy, and streaming against the whole."""

from __future__ import annotations

from itertools import chain, repeat

import numpy as np
import pytest
import torch

from enhancer.models import recurrent
from enhancer.models.recurrent import RecurrentDevice, detach_state
from enhancer.models.wavenet import WaveNetDevice

BLOCKS = [[1], [7], [64], [512], [4096], [1, 500, 3, 64, 2000, 17]]


def device(seed: int = 0, **options) -> RecurrentDevice:
    torch.manual_seed(seed)
    return RecurrentDevice(**options).eval()


def riff(num_samples: int, rows: int = 2, seed: int = 1) -> torch.Tensor:
    return 0.3 * torch.randn(rows, num_samples, generator=torch.Generator().manual_seed(seed))


def in_blocks(model, dry: torch.Tensor, knobs, sizes: list[int]) -> torch.Tensor:
    """The model's output when it hears the signal in blocks of these sizes, over and over."""
    state, start, blocks = None, 0, []
    for size in chain.from_iterable(repeat(sizes)):
        if start >= dry.shape[1]:
            return torch.cat(blocks, dim=1)
        estimate, state = model(dry[:, start : start + size], knobs, state)
        blocks.append(estimate)
        start += size
    raise AssertionError


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def recursion(model: RecurrentDevice, dry: np.ndarray, knobs: np.ndarray) -> np.ndarray:
    """One row, sample by sample: the equations of torch's documentation of LSTM and GRU, in float64."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    size = model.hidden_size
    h = [np.zeros(size) for _ in range(model.num_layers)]
    c = [np.zeros(size) for _ in range(model.num_layers)]
    output = []
    for sample in dry:
        x = np.concatenate([[sample], knobs])
        for layer in range(model.num_layers):
            w_ih, w_hh, b_ih, b_hh = (
                weights[f"recurrent.{name}_l{layer}"]
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            a, b = w_ih @ x + b_ih, w_hh @ h[layer] + b_hh
            if model.unit == "lstm":
                i, f, g, o = np.split(a + b, 4)
                c[layer] = sigmoid(f) * c[layer] + sigmoid(i) * np.tanh(g)
                h[layer] = sigmoid(o) * np.tanh(c[layer])
            else:
                r, z = sigmoid(a[: 2 * size] + b[: 2 * size]).reshape(2, size)
                n = np.tanh(a[2 * size :] + r * b[2 * size :])
                h[layer] = (1 - z) * n + z * h[layer]
            x = h[layer]
        output.append(float(weights["head.weight"][0] @ x + weights["head.bias"][0]))
    return np.array(output) + (dry if model.has_skip else 0)


@pytest.mark.parametrize("unit", ["lstm", "gru"])
@pytest.mark.parametrize(("num_layers", "num_knobs", "has_skip"), [(1, 0, False), (2, 3, True)])
def test_it_is_the_recursion_of_the_textbook(unit, num_layers, num_knobs, has_skip):
    model = device(num_knobs=num_knobs, hidden_size=5, num_layers=num_layers, unit=unit, has_skip=has_skip)
    dry, knobs = riff(50), torch.rand(2, num_knobs, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        estimate, _ = model(dry, knobs)
    for row in range(2):
        expected = recursion(model, dry[row].double().numpy(), knobs[row].double().numpy())
        np.testing.assert_allclose(estimate[row].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("hidden_size", "published"), [(32, 4513), (64, 17_217), (96, 38_113)])
def test_it_has_the_published_number_of_parameters(hidden_size, published):
    count = sum(parameter.numel() for parameter in RecurrentDevice(hidden_size=hidden_size).parameters())
    h = hidden_size
    assert count == published == 4 * h * (1 + h) + 8 * h + h + 1


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"unit": "gru", "num_layers": 2, "has_skip": True, "num_knobs": 1}], ids=str
)
def test_in_blocks_it_says_what_it_says_of_the_whole(options, sizes):
    model = device(hidden_size=16, **options)
    dry, knobs = riff(6000 if sizes != [1] else 1500), torch.rand(2, model.num_knobs)
    with torch.no_grad():
        whole, _ = model(dry, knobs)
        assert (in_blocks(model, dry, knobs, sizes) - whole).abs().max() <= 1e-6


def test_long_signals_reach_the_recurrent_layer_in_pieces_that_cudnn_can_do(monkeypatch):
    monkeypatch.setattr(recurrent, "MAX_STEPS", 100)
    model = device(hidden_size=4)
    lengths: list[int] = []
    model.recurrent.register_forward_pre_hook(lambda _, inputs: lengths.append(len(inputs[0])))
    dry = riff(250)
    with torch.no_grad():
        pieces, _ = model(dry)
        monkeypatch.undo()
        whole, _ = model(dry)
    assert lengths == [100, 100, 50, 250]
    assert (pieces - whole).abs().max() <= 1e-6
    assert recurrent.MAX_STEPS == 65_535


def test_gradients_end_where_the_state_was_detached():
    model = device(hidden_size=8)
    first = riff(20).requires_grad_()
    _, state = model(first)
    estimate, _ = model(riff(20, seed=5), None, detach_state(state))
    assert torch.autograd.grad(estimate.sum(), first, allow_unused=True) == (None,)
    estimate, _ = model(riff(20, seed=5), None, state)
    assert torch.autograd.grad(estimate.sum(), first)[0].abs().max() > 0


@pytest.mark.parametrize("model", [RecurrentDevice(num_knobs=2, hidden_size=4), WaveNetDevice(num_knobs=2)])
@pytest.mark.parametrize("knobs", [None, torch.zeros(2, 1), torch.zeros(3, 2)], ids=["none", "one", "rows"])
def test_other_knobs_than_the_model_has_are_refused(model, knobs):
    with pytest.raises(ValueError, match=r"needed one value per row and knob, \(2, 2\)"):
        model(riff(10), knobs)


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="needed 'lstm' or 'gru'"):
        RecurrentDevice(unit="rnn")


@pytest.mark.parametrize("unit", ["lstm", "gru"])
def test_units_of_a_fresh_model_forget_over_one_to_two_thousand_samples(unit: str) -> None:
    model = device(unit=unit, hidden_size=5, num_layers=2).double()
    with torch.no_grad():
        for name, value in model.recurrent.named_parameters():
            if name.startswith("weight"):
                value.zero_()
        # With nothing coming in, each unit's value falls by what its gate keeps: u samples to 1/u of it lost.
        ones = torch.ones(2, 1, 5, dtype=torch.float64)
        start = (ones, ones) if unit == "lstm" else ones
        _, end = model.recurrent(torch.zeros(1, 1, 1, dtype=torch.float64), start)
    kept = end[1] if unit == "lstm" else end
    memory = 1 / (1 - kept)
    expected = 1 + torch.logspace(-1, np.log10(1999), 5, dtype=torch.float64)
    torch.testing.assert_close(memory, expected.expand(2, 1, 5), rtol=1e-4, atol=0)
