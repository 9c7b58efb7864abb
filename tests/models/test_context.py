"""The context device against an LSTM written out in numpy, and what a sample may and may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enhancer.models import context
from enhancer.models.context import ContextDevice
from tests.models.test_recurrent import BLOCKS, in_blocks, riff, sigmoid


def device(context_samples: int = 30, seed: int = 0, **options) -> ContextDevice:
    """Weights twice as large as at the start of training, so that its memory and its bends matter."""
    torch.manual_seed(seed)
    model = ContextDevice(context_samples, **{"hidden_size": 12, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def wet_at_end(model: ContextDevice, window: np.ndarray, knobs: np.ndarray) -> float:
    """One window by the equations of torch's documentation of LSTM, in float64, from zero state."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    h = c = np.zeros(model.hidden_size)
    for sample in window:
        gates = (
            weights["recurrent.weight_ih_l0"] @ np.concatenate([[sample], knobs])
            + weights["recurrent.bias_ih_l0"]
            + weights["recurrent.weight_hh_l0"] @ h
            + weights["recurrent.bias_hh_l0"]
        )
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return (weights["head.weight"] @ h + weights["head.bias"]).item()


@pytest.mark.parametrize("num_knobs", [0, 2])
def test_each_sample_is_an_lstm_over_the_window_that_ends_there_and_zeros_come_before_the_file(num_knobs):
    model, dry = device(num_knobs=num_knobs), riff(50)
    knobs = torch.rand(2, num_knobs, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found, _ = model(dry, knobs)
    for row in range(2):
        heard = np.concatenate([np.zeros(29), dry[row].double().numpy()])
        expected = [
            wet_at_end(model, heard[end : end + 30], knobs[row].double().numpy()) for end in range(50)
        ]
        assert found[row].numpy() == pytest.approx(expected, abs=1e-6)
    assert found.std() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("sizes", BLOCKS)
def test_any_blocks_give_what_the_whole_gives(sizes, monkeypatch):
    monkeypatch.setattr(context, "WINDOWS_ON_CPU", 100)
    model, dry = device(num_knobs=1), riff(700)
    knobs = torch.tensor([[0.1], [0.9]])
    whole, (past,) = model(dry, knobs)
    assert (in_blocks(model, dry, knobs, sizes) - whole).abs().max() <= 1e-6
    assert torch.equal(past, dry[:, -29:])


@torch.no_grad()
def test_nothing_before_the_window_and_nothing_after_the_sample_is_heard():
    model, dry = device(), riff(200, rows=1)
    changed = dry.clone()
    changed[:, 100] += 0.5
    difference = (model(changed)[0] - model(dry)[0])[0].abs()
    assert difference[:100].max() == 0 and difference[130:].max() == 0
    assert difference[100:130].min() > 0


def test_the_gradient_of_the_last_window_is_that_of_plain_layers():
    model, window = device(), riff(30, rows=4)
    estimate, _ = model(window[:, -1:], None, (window[:, :-1],))
    estimate.square().mean().backward()
    lstm, linear = torch.nn.LSTM(1, 12, batch_first=True), torch.nn.Linear(12, 1)
    for ours, theirs in zip(model.parameters(), [*lstm.parameters(), *linear.parameters()], strict=True):
        theirs.data.copy_(ours.data)
    linear(lstm(window[..., None])[0][:, -1]).square().mean().backward()
    for ours, theirs in zip(model.parameters(), [*lstm.parameters(), *linear.parameters()], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_a_long_signal_is_never_a_table_of_windows(monkeypatch):
    """What the LSTM is given are a few windows at a time; those of one row share the memory of the signal."""
    monkeypatch.setattr(context, "WINDOWS_ON_CPU", 64)
    model, dry = device(), riff(1000, rows=1)
    heard = []
    model.recurrent.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    with torch.no_grad():
        model(dry)
    assert sum(part.shape[1] for part in heard) == 1000 and max(part.shape[1] for part in heard) == 64
    # One storage for all parts, no larger than the signal and what came before it.
    assert len({part.untyped_storage().data_ptr() for part in heard}) == 1
    assert heard[0].untyped_storage().nbytes() == 4 * (1000 + 29)


def test_other_knobs_or_no_context_are_refused():
    with pytest.raises(ValueError, match="one value per row and knob"):
        device(num_knobs=2)(riff(10), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one value per row and knob"):
        device()(riff(10), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="context_samples is 1; needed 2"):
        ContextDevice(1)
