"""Losses of the adversarial game against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enhancer.losses.adversarial import adversarial_loss, feature_loss, hinge_loss


@pytest.fixture
def judgements():
    generator = torch.Generator().manual_seed(4)

    def some():
        return [
            (
                torch.randn(2, count, generator=generator),
                [
                    torch.randn(2, 3, count, generator=generator),
                    torch.randn(2, 5, 4, 2, generator=generator),
                ],
            )
            for count in (7, 11, 3)
        ]

    return some(), some()


def test_the_hinge_loss_is_its_formula(judgements):
    targets, estimates = judgements
    expected = np.mean(
        [
            np.maximum(0, 1 - target.numpy()).mean() + np.maximum(0, 1 + estimate.numpy()).mean()
            for (target, _), (estimate, _) in zip(targets, estimates, strict=True)
        ]
    )
    assert float(hinge_loss(targets, estimates)) == pytest.approx(expected, rel=1e-6)


def test_the_hinge_loss_has_its_bounds():
    def scores(value):
        return [(torch.full((2, 5), value), [])]

    assert float(hinge_loss(scores(1.5), scores(-1.5))) == 0
    assert float(hinge_loss(scores(0.0), scores(0.0))) == 2


def test_the_generator_descends_minus_the_mean_score(judgements):
    expected = -np.mean([scores.numpy().mean() for scores, _ in judgements[0]])
    assert float(adversarial_loss(judgements[0])) == pytest.approx(expected, rel=1e-5)


def test_the_feature_loss_is_its_formula_and_goes_to_the_estimate_alone(judgements):
    targets, estimates = judgements
    shares = []
    for (_, wanteds), (_, founds) in zip(targets, estimates, strict=True):
        for wanted, found in zip(wanteds, founds, strict=True):
            wanted.requires_grad_()
            found.requires_grad_()
            a, b = wanted.detach().numpy().reshape(2, -1), found.detach().numpy().reshape(2, -1)
            shares.append((np.abs(a - b).mean(1) / np.abs(a).mean(1)).mean())
    loss = feature_loss(targets, estimates)
    assert float(loss.detach()) == pytest.approx(np.mean(shares), rel=1e-5)
    loss.backward()
    assert all(wanted.grad is None for _, wanteds in targets for wanted in wanteds)
    assert all(bool(found.grad.any()) for _, founds in estimates for found in founds)


def test_features_of_silence_divide_by_no_zero():
    targets = [(torch.zeros(1, 2), [torch.zeros(1, 4)])]
    estimates = [(torch.zeros(1, 2), [torch.full((1, 4), 1e-3)])]
    assert float(feature_loss(targets, estimates)) == pytest.approx(1.0)
