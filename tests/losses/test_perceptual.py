"""CDPAM's network against its description, step by step with torch's functions, and the loss around it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from enhancer.losses.perceptual import PerceptualDistance
from enhancer.models.cdpam import RATE_HZ, Cdpam, cdpam_of


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random ones in the place of the published, with statistics of batches that matter."""
    torch.manual_seed(4)
    weights = Cdpam().state_dict()
    for name, value in weights.items():
        if name.endswith(("running_mean", "bias")) or "chan_w" in name:
            value.normal_(std=0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return {**weights, "model_classif.MLP.0.weight": torch.zeros(16, 1)}


def described_vector(weights: dict[str, torch.Tensor], wave: torch.Tensor) -> torch.Tensor:
    """16 convolutions of 15 taps, 64 channels that double at every fourth, after which every second frame stays."""
    hidden = wave[:, None]
    for layer in range(16):
        conv, norm = f"base_encoder.encoder.{layer}", f"base_encoder.ebatch.{layer}"
        hidden = F.conv1d(hidden, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=7)
        centred = hidden - weights[f"{norm}.running_mean"][:, None]
        scaled = centred / (weights[f"{norm}.running_var"][:, None] + 1e-5).sqrt()
        hidden = scaled * weights[f"{norm}.weight"][:, None] + weights[f"{norm}.bias"][:, None]
        hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
        if layer % 4 == 3:
            hidden = hidden[:, :, ::2]
    acoustic = hidden.mean(2)[:, :512]
    return acoustic / acoustic.norm(dim=1, keepdim=True)


def described_distance(
    weights: dict[str, torch.Tensor], one: torch.Tensor, two: torch.Tensor
) -> torch.Tensor:
    one, two = described_vector(weights, one), described_vector(weights, two)
    total = torch.zeros(len(one))
    for layer in range(4):
        linear = f"model_dist.convs.{layer}.0"
        one, two = (side @ weights[f"{linear}.weight"].t() + weights[f"{linear}.bias"] for side in (one, two))
        if layer < 3:
            one, two = (torch.where(side > 0, side, 0.01 * side) for side in (one, two))
        total += ((two - one) * weights[f"model_dist.chan_w.{layer}"]).abs().sum(1)
    return total


def test_the_distance_is_that_of_the_description(weights, random: torch.Generator) -> None:
    waves = 3000 * torch.randn(2, 2, 1201, generator=random)
    found = cdpam_of(weights)(*waves)
    expected = described_distance(weights, *waves)
    assert found.shape == (2,) and bool((expected > 0).all())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert [weights[f"base_encoder.encoder.{layer}.weight"].shape[0] for layer in (0, 3, 7, 11, 15)] == [
        64, 128, 256, 512, 1024,
    ]  # fmt: skip


class Listener(nn.Module):
    """Remembers what it hears."""

    def forward(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        self.heard = (reference, other)
        return (other - reference).square().mean(1)


def test_the_network_hears_its_own_rate_at_the_scale_of_16_bits() -> None:
    """A tone stays that tone: half the samples, 32768 times the amplitude."""
    at = torch.arange(8820) / 44_100
    tone = 0.5 * torch.sin(2 * math.pi * 1000 * at)[None]
    listener = Listener()
    loss = PerceptualDistance(listener, RATE_HZ, 44_100)
    loss(tone, tone)
    expected = 16_384 * torch.sin(2 * math.pi * 1000 * torch.arange(4410) / RATE_HZ)
    for heard in listener.heard:
        inside = slice(50, -50)
        torch.testing.assert_close(heard[0, inside], expected[inside], atol=60, rtol=0)


def test_the_gradient_goes_to_the_estimate_alone(weights, random: torch.Generator) -> None:
    network = cdpam_of(weights)
    estimate = (0.1 * torch.randn(1, 900, generator=random)).requires_grad_()
    PerceptualDistance(network, RATE_HZ, RATE_HZ)(estimate, torch.zeros(1, 900)).backward()
    assert bool(estimate.grad.isfinite().all()) and bool(estimate.grad.any())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_weights_of_another_network_are_refused_by_their_names(weights) -> None:
    fewer = {name: value for name, value in weights.items() if name != "model_dist.chan_w.2"}
    with pytest.raises(ValueError, match=r"missing model_dist\.chan_w\.2"):
        cdpam_of(fewer)
    with pytest.raises(ValueError, match=r"not known projection\.weight"):
        cdpam_of({**weights, "projection.weight": torch.zeros(1)})
