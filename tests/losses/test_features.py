"""Feature matching against the plain computation of the same network, layer by layer from its weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from enhancer.losses.features import FeatureMatching
from enhancer.models.dac import DacEncoder

STRIDES = (2, 4, 8)


@pytest.fixture
def encoder() -> DacEncoder:
    torch.manual_seed(3)
    encoder = DacEncoder(8, STRIDES)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("alpha"):
                weight.uniform_(0.5, 2.0)
    return encoder


@pytest.fixture
def waves(random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    target = 0.2 * torch.randn(2, 1024, generator=random)
    return (target + 0.1 * torch.randn(2, 1024, generator=random)).requires_grad_(), target


def plain_features(encoder: DacEncoder, wave: torch.Tensor, blocks: tuple[int, ...]) -> list[torch.Tensor]:
    """Features after the residual units of `blocks`, by torch's functions and the formula of the snake."""
    weights = dict(encoder.named_parameters())

    def conv(hidden: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv1d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def snake(hidden: torch.Tensor, name: str) -> torch.Tensor:
        alpha = weights[f"{name}.alpha"]
        return hidden + torch.sin(alpha * hidden) ** 2 / (alpha + 1e-9)

    hidden, features = conv(wave[:, None], "conv1", padding=3), []
    for number, stride in enumerate(STRIDES):
        for unit, dilation in ((1, 1), (2, 3), (3, 9)):
            name = f"block.{number}.res_unit{unit}"
            inner = conv(
                snake(hidden, f"{name}.snake1"), f"{name}.conv1", padding=3 * dilation, dilation=dilation
            )
            hidden = hidden + conv(snake(inner, f"{name}.snake2"), f"{name}.conv2")
            if number in blocks:
                features.append(hidden)
        hidden = conv(
            snake(hidden, f"block.{number}.snake1"),
            f"block.{number}.conv1",
            stride=stride,
            padding=stride // 2,
        )
    return features


@pytest.mark.parametrize("blocks", [(0, 1), (1,), (0, 2)])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_value_and_gradient_are_those_of_the_plain_computation(
    encoder: DacEncoder, waves, blocks: tuple[int, ...], is_checkpointed: bool
) -> None:
    estimate, target = waves
    loss = FeatureMatching(encoder.stages(blocks), is_checkpointed)(estimate, target)
    (gradient,) = torch.autograd.grad(loss, estimate)
    pairs = zip(
        plain_features(encoder, estimate, blocks), plain_features(encoder, target, blocks), strict=True
    )
    distances = [
        ((found - wanted).abs().sum((1, 2)) / wanted.abs().sum((1, 2))).mean() for found, wanted in pairs
    ]
    expected = sum(distances) / len(distances)
    (wanted_gradient,) = torch.autograd.grad(expected, estimate)
    assert len(distances) == 3 * len(blocks)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    scale = wanted_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, wanted_gradient / scale, atol=1e-5, rtol=0)


def kept_bytes(loss: FeatureMatching, estimate: torch.Tensor, target: torch.Tensor) -> int:
    """Bytes of the distinct storages that are kept for the way back."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(estimate, target)
    return sum(kept.values())


def test_checkpointing_keeps_less_for_the_way_back(encoder: DacEncoder, waves) -> None:
    stages = encoder.stages((0, 1))
    plain, checkpointed = (kept_bytes(FeatureMatching(stages, on), *waves) for on in (False, True))
    feature_bytes = 2 * 8 * 1024 * 4  # Of each block: half the frames, twice the channels.
    assert plain > 6 * 3 * feature_bytes
    assert checkpointed < plain / 2


def test_what_it_judges_is_trained_and_the_network_is_not(encoder: DacEncoder, waves) -> None:
    FeatureMatching(encoder.stages([0]))(*waves).backward()
    assert waves[0].grad is not None and bool(waves[0].grad.any())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_twice_the_difference_from_a_silent_network_is_finite() -> None:
    """A target whose features are all zero is divided by a floor."""
    encoder = DacEncoder(4, (2,))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    loss = FeatureMatching(encoder.stages([0]))(torch.ones(1, 64), torch.zeros(1, 64))
    assert loss.item() == 0


def test_a_last_stage_without_a_feature_is_refused_in_words(encoder: DacEncoder) -> None:
    with pytest.raises(ValueError, match="the last of 1 stages is no feature"):
        FeatureMatching([(encoder.conv1, False)])
