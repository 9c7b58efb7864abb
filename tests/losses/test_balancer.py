"""The balancer against EnCodec's formula in numpy, and what it promises of scales, ranks and resumed runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enhancer.losses.balancer import Balancer
from enhancer.losses.waveform import waveform_l1, waveform_mse
from enhancer.losses.weighted import WeightedLoss

TERMS = {"l1": (3.0, waveform_l1), "mse": (1.0, waveform_mse)}


def test_scales_are_encodecs(random: torch.Generator) -> None:
    """Norms per row, averaged over rows; over time with the weights 0.9 ** age; weights over their sum."""
    weights, decay, total_norm = [3.0, 1.0], 0.9, 2.0
    balancer = Balancer(weights, decay, total_norm)
    history = []
    for _ in range(4):
        gradients = [torch.randn(5, 40, generator=random), 100 * torch.randn(5, 40, generator=random)]
        # Of a term that is a mean over 5 rows, a row's own loss has 5 times the gradient.
        history.append([np.linalg.norm(5 * gradient.numpy(), axis=1).mean() for gradient in gradients])
        ages = decay ** np.arange(len(history))[::-1]
        average = (ages[:, None] * np.array(history)).sum(0) / ages.sum()
        expected = np.array(weights) / sum(weights) * total_norm / average
        np.testing.assert_allclose(balancer.scales(gradients).numpy(), expected, rtol=1e-5)
        balancer.settle()


def waves(random: torch.Generator, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    estimate, target = torch.randn(2, rows, 100, generator=random)
    return estimate.requires_grad_(), target


def test_the_gradient_of_the_total_is_the_sum_of_the_balanced_ones(random: torch.Generator) -> None:
    """At the first step every term has the norm of its share, whatever its scale."""
    estimate, target = waves(random)
    total, values = WeightedLoss(TERMS, is_balanced=True)(estimate, target)
    total.backward()
    expected = torch.zeros(4, 100)
    for weight, loss in TERMS.values():
        wave = estimate.detach().requires_grad_()
        loss(wave, target).backward()
        expected += weight / 4 * wave.grad / (4 * wave.grad.norm(dim=1).mean())
    torch.testing.assert_close(estimate.grad, expected)
    torch.testing.assert_close(total.detach(), values["l1_weighted"] + values["mse_weighted"])
    torch.testing.assert_close(values["mse"], waveform_mse(estimate, target).detach())


def test_the_scale_of_a_term_changes_nothing(random: torch.Generator) -> None:
    estimate, target = waves(random)
    louder = {"l1": (3.0, lambda e, t: 1000 * waveform_l1(e, t)), "mse": (1.0, waveform_mse)}
    gradients = []
    for terms in (TERMS, louder):
        total, _ = WeightedLoss(terms, is_balanced=True)(estimate, target)
        gradients += torch.autograd.grad(total, estimate)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_two_ranks_that_agree_see_what_one_sees(random: torch.Generator) -> None:
    """Each of half the rows; a backend averages their gradients, so each row counts twice on its rank."""
    estimate, target = waves(random)
    total, _ = WeightedLoss(TERMS, is_balanced=True)(estimate, target)
    (alone,) = torch.autograd.grad(total, estimate)
    norms: list[torch.Tensor] = []
    halves = list(zip(estimate.detach().split(2), target.split(2), strict=True))
    for half in halves:
        WeightedLoss(TERMS, is_balanced=True)(
            half[0].requires_grad_(), half[1], mean=lambda norm: norms.append(norm) or norm
        )
    shared = torch.stack(norms).mean(0)
    together = []
    for wave, wanted in halves:
        total, _ = WeightedLoss(TERMS, is_balanced=True)(wave, wanted, mean=lambda _: shared)
        together += torch.autograd.grad(total, wave)
    torch.testing.assert_close(torch.cat(together) / 2, alone)


def test_it_goes_on_from_its_state_and_a_step_not_taken_leaves_none(random: torch.Generator) -> None:
    batches = [waves(random) for _ in range(4)]

    def gradient(loss: WeightedLoss, number: int) -> torch.Tensor:
        total, _ = loss(*batches[number])
        return torch.autograd.grad(total, batches[number][0])[0]

    straight = WeightedLoss(TERMS, is_balanced=True)
    for number in range(3):
        gradient(straight, number)
        straight.settle()
    resumed = WeightedLoss(TERMS, is_balanced=True)
    resumed.state()["balancer"].copy_(straight.state()["balancer"])
    gradient(resumed, 0)  # Not settled: the run was stopped in this step.
    assert torch.equal(gradient(resumed, 3), gradient(straight, 3))
    assert not torch.equal(gradient(WeightedLoss(TERMS, is_balanced=True), 3), gradient(straight, 3))


def test_a_gradient_that_is_not_finite_leaves_the_averages_alone() -> None:
    balancer = Balancer([1.0, 1.0])
    balancer.scales([torch.ones(1, 4), torch.ones(1, 4)])
    balancer.settle()
    before = balancer.state.clone()
    scales = balancer.scales([torch.full((1, 4), torch.nan), torch.ones(1, 4)])
    balancer.settle()
    assert torch.equal(balancer.state, before)
    torch.testing.assert_close(scales, torch.tensor([0.25, 0.25]).double())


def test_a_term_without_a_gradient_pulls_not_at_all() -> None:
    scales = Balancer([1.0, 1.0]).scales([torch.zeros(2, 8), torch.ones(2, 8)])
    assert scales[0] == 0 and torch.isfinite(scales).all()


def test_without_gradients_it_is_the_fixed_sum(random: torch.Generator) -> None:
    estimate, target = waves(random)
    with torch.no_grad():
        balanced, fixed = (WeightedLoss(TERMS, is_balanced=on)(estimate, target)[0] for on in (True, False))
    assert torch.equal(balanced, fixed)


def test_an_impossible_decay_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="decay is 1"):
        Balancer([1.0], decay=1.0)
