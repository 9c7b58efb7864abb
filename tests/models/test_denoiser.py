"""The mask U-Net against what it promises: size, identity at the start, locality, gradients."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from enhancer.models.denoiser import MaskUNet


def perturbed(width: int = 2, seed: int = 0) -> MaskUNet:
    """A small network away from its identity start."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = MaskUNet(width).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def noise(num_samples: int, rows: int = 1, seed: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(rows, num_samples, generator=torch.Generator().manual_seed(seed))


def parameters_by_hand(width: int) -> int:
    """Convolutions of k*k*in*out + out, norms of 2*channels, as the description counts them."""

    def conv(a: int, b: int, k: int = 3) -> int:
        return k * k * a * b + b

    def block(a: int, b: int) -> int:
        return conv(a, b) + 2 * (2 * conv(b, b) + 2 * 2 * b)

    widths = [width * 2**level for level in range(5)]
    levels = sum(block(a, b) + block(b, a) for a, b in pairwise(widths))
    return (
        conv(4, width) + levels + 2 * block(widths[-1], widths[-1]) + conv(width, width) + conv(width, 2, 1)
    )


def test_full_width_has_10_6_million_parameters_and_a_quarter_of_it_a_sixteenth() -> None:
    full = sum(parameter.numel() for parameter in MaskUNet(16).parameters())
    small = sum(parameter.numel() for parameter in MaskUNet(4).parameters())
    assert full == parameters_by_hand(16)
    assert small == parameters_by_hand(4)
    assert round(full / 1e6, 1) == 10.6
    assert 15 < full / small < 17


@pytest.mark.parametrize("num_samples", [1, 419, 6720, 44_100])
def test_a_fresh_model_is_the_identity_at_any_length(num_samples: int) -> None:
    mixture = noise(num_samples, rows=2)
    torch.testing.assert_close(MaskUNet(2)(mixture), mixture, atol=1e-5, rtol=1e-4)


def test_silence_stays_silence_and_keeps_finite_gradients() -> None:
    model = perturbed().train()
    estimate = model(torch.zeros(1, 20_000))
    assert estimate.abs().max() == 0
    (model(noise(20_000)) + estimate).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_rows_do_not_hear_each_other() -> None:
    model = perturbed()
    mixture = noise(30_000, rows=3)
    with torch.no_grad():
        torch.testing.assert_close(model(mixture)[1:2], model(mixture[1:2]), atol=1e-5, rtol=0)


def test_nothing_beyond_the_stated_context_changes_the_output() -> None:
    model = perturbed()
    total = 2 * model.context_samples + 3 * model.stride_samples
    mixture = noise(total)
    changed = mixture.clone()
    changed[:, -model.stride_samples :] = noise(model.stride_samples, seed=7)
    with torch.no_grad():
        before, after = model(mixture), model(changed)
    safe = total - model.stride_samples - model.context_samples
    assert torch.equal(before[:, :safe], after[:, :safe])
    # The context is not idly large: what changed is heard well before it, too.
    assert not torch.equal(before[:, safe : -model.stride_samples], after[:, safe : -model.stride_samples])


def test_the_output_does_not_depend_on_where_a_recording_is_cut() -> None:
    model = perturbed()
    shift = model.stride_samples
    mixture = noise(2 * model.context_samples + 4 * shift)
    with torch.no_grad():
        whole, cut = model(mixture), model(mixture[:, shift:])
    start = shift + model.context_samples
    torch.testing.assert_close(whole[:, start:], cut[:, start - shift :], atol=1e-5, rtol=0)


def test_every_parameter_learns_within_four_steps() -> None:
    torch.manual_seed(0)
    model = MaskUNet(2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    # Zero-initialised branches pass no gradient to what lies before them until they have moved themselves.
    for _ in range(4):
        optimiser.zero_grad()
        (model(noise(20_000)) - 0.5 * noise(20_000)).square().mean().backward()
        optimiser.step()
    names = [name for name, _ in model.named_parameters()]
    still = [
        n for n, old, new in zip(names, before, model.parameters(), strict=True) if torch.equal(old, new)
    ]
    assert not still
