"""The WaveNet device against sums written out in numpy and against nn.Conv1d; its own backward pass; streaming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from enhancer.models.recurrent import detach_state
from enhancer.models.wavenet import WaveNetDevice
from tests.models.test_recurrent import BLOCKS, in_blocks, riff


def device(seed: int = 0, **options) -> WaveNetDevice:
    torch.manual_seed(seed)
    return WaveNetDevice(**options).eval()


def small(**options) -> WaveNetDevice:
    return device(channels=(4, 2), dilations=(1, 2, 8), head_scale=0.5, **options)


def sums(model: WaveNetDevice, dry: np.ndarray, knobs: np.ndarray) -> np.ndarray:
    """One row by the definition, every sum a loop, heard from silence on; float64."""
    silence = np.zeros(model.receptive_field)
    wave = np.concatenate([silence, dry])
    condition = np.stack([wave, *(np.full(len(wave), knob) for knob in knobs)])
    x, head = wave[None], 0.0
    for stack in model.layer_stacks:
        weights = {name: value.detach().double().numpy() for name, value in stack.named_parameters()}
        x = weights["input_weight"] @ x
        for layer, dilation in enumerate(stack.dilations):
            z = weights["condition_weight"][layer] @ condition + weights["conv_bias"][layer][:, None]
            for tap in range(stack.kernel_size):
                delay = (stack.kernel_size - 1 - tap) * dilation
                late = np.concatenate([np.zeros((len(x), delay)), x], axis=1)[:, : x.shape[1]]
                z = z + weights["conv_weight"][layer][:, :, tap] @ late
            z = np.tanh(z)
            head = head + z
            x = x + weights["output_weight"][layer] @ z + weights["output_bias"][layer][:, None]
        head = weights["head_weight"] @ head
        head = head + weights["head_bias"][:, None] if "head_bias" in weights else head
    return model.head_scale * head[0, len(silence) :]


def by_conv1d(model: WaveNetDevice, dry: torch.Tensor, knobs: torch.Tensor) -> torch.Tensor:
    """The same with torch's own convolutions, for gradients."""
    x = F.pad(dry, (model.receptive_field - 1, 0)).unsqueeze(1)
    condition = torch.cat([x, knobs.unsqueeze(-1).expand(-1, -1, x.shape[-1])], dim=1)
    head = None
    for stack in model.layer_stacks:
        x = F.conv1d(x, stack.input_weight.unsqueeze(-1))
        for layer, dilation in enumerate(stack.dilations):
            z = F.conv1d(x, stack.conv_weight[layer], stack.conv_bias[layer], dilation=dilation)
            mixed = F.conv1d(condition, stack.condition_weight[layer].unsqueeze(-1))
            z = torch.tanh(z + mixed[..., -z.shape[-1] :])
            head = z if head is None else head[..., -z.shape[-1] :] + z
            outer = F.conv1d(z, stack.output_weight[layer].unsqueeze(-1), stack.output_bias[layer])
            x = x[..., -z.shape[-1] :] + outer
        head = F.conv1d(head, stack.head_weight.unsqueeze(-1), stack.head_bias)
    return model.head_scale * head[:, 0]


def knobs_for(model: WaveNetDevice, rows: int) -> torch.Tensor:
    return torch.rand(rows, model.num_knobs, generator=torch.Generator().manual_seed(3))


def test_its_size_is_that_of_the_standard_network():
    """Counted by hand: 16 channels, then 8; ten layers each of kernel 3; head bias in the second only."""

    def layer(c: int) -> int:
        return (3 * c * c + c) + c + (c * c + c)

    first = 16 + 10 * layer(16) + 16 * 8
    second = 16 * 8 + 10 * layer(8) + 8 + 1
    assert sum(parameter.numel() for parameter in WaveNetDevice().parameters()) == first + second == 13_801
    assert WaveNetDevice().receptive_field == 1 + 2 * 2 * 1023


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("num_knobs", [0, 2])
def test_it_is_its_definition_whether_or_not_rows_are_packed(rows, num_knobs):
    model = small(num_knobs=num_knobs)
    dry, knobs = riff(60, rows), knobs_for(model, rows)
    with torch.no_grad():
        estimate, _ = model(dry, knobs)
    for row in range(rows):
        expected = sums(model, dry[row].double().numpy(), knobs[row].double().numpy())
        np.testing.assert_allclose(estimate[row].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_standard_network_is_its_definition(rows):
    model = device()
    dry = riff(5000, rows)
    with torch.no_grad():
        estimate, _ = model(dry)
    np.testing.assert_allclose(
        estimate[-1].numpy(), sums(model, dry[-1].double().numpy(), np.zeros(0)), atol=1e-6
    )


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_in_blocks_it_says_what_it_says_of_the_whole(sizes):
    model = device() if sizes != [1] else small()
    dry = riff(9000 if sizes != [1] else 600)
    with torch.no_grad():
        whole, _ = model(dry)
        assert (in_blocks(model, dry, None, sizes) - whole).abs().max() <= 1e-6


def test_long_signals_are_computed_in_pieces_where_no_gradient_is_wanted(monkeypatch):
    model = small()
    dry = riff(1000)
    whole, _ = model(dry)
    monkeypatch.setattr("enhancer.models.wavenet.PIECE_VALUES", 300)
    with torch.no_grad():
        pieces, _ = model(dry)
    assert (pieces - whole).abs().max() <= 1e-6


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_its_gradients_are_those_of_finite_differences(rows):
    """Of the signal, the knobs and the past, and through the state that is handed on."""
    model = small(num_knobs=2).double()
    dry, knobs = riff(9, rows).double().requires_grad_(), knobs_for(model, rows).double().requires_grad_()
    past = [value.detach().clone().requires_grad_() for value in model.silence(rows, knobs.detach())]

    def call(dry, knobs, *past):
        estimate, state = model(dry, knobs, past)
        return estimate, *state

    assert torch.autograd.gradcheck(call, (dry, knobs, *past), fast_mode=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_its_gradients_are_those_of_torchs_own_convolutions(rows):
    model = device(num_knobs=1)
    dry, knobs = riff(3000, rows), knobs_for(model, rows)
    direction = riff(3000, rows, seed=9)
    parameters = dict(model.named_parameters())
    ours, _ = model(dry, knobs)
    theirs = by_conv1d(model, dry, knobs)
    found = torch.autograd.grad((ours * direction).sum(), list(parameters.values()))
    wanted = torch.autograd.grad((theirs * direction).sum(), list(parameters.values()))
    for name, a, b in zip(parameters, found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), name


def test_the_state_of_no_state_is_that_after_long_silence():
    model = device(num_knobs=1)
    knobs = knobs_for(model, 1)
    with torch.no_grad():
        _, after = model(
            torch.zeros(1, model.receptive_field),
            knobs,
            tuple(map(torch.zeros_like, model.silence(1, knobs))),
        )
    for found, expected in zip(model.silence(1, knobs), after, strict=True):
        torch.testing.assert_close(found.detach(), expected, atol=1e-6, rtol=0)


def test_gradients_end_where_the_state_was_detached():
    model = small()
    first = riff(20).requires_grad_()
    _, state = model(first)
    estimate, _ = model(riff(20, seed=5), None, detach_state(state))
    assert torch.autograd.grad(estimate.sum(), first, allow_unused=True) == (None,)
    estimate, _ = model(riff(20, seed=5), None, state)
    assert torch.autograd.grad(estimate.sum(), first)[0].abs().max() > 0


def test_autocast_does_not_round_it():
    model = small()
    dry = riff(100)
    with torch.no_grad():
        outside, _ = model(dry)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, _ = model(dry)
    assert torch.equal(inside, outside)
