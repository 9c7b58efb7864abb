"""Muon against its definition and against torch's own, on matrices, convolutions and stacks of them."""

from __future__ import annotations

import math

import pytest
import torch

from enhancer.engine.muon import NEWTON_SCHULZ, NUM_ITERATIONS, Muon, orthogonalised


def polynomial(values: torch.Tensor) -> torch.Tensor:
    """What five Newton-Schulz steps make of singular values."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return values


def by_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """`matrix` with its singular values replaced, in float64."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ torch.diag(polynomial(s / s.norm())) @ vh


SHAPES = [(8, 8), (16, 48), (48, 16), (2, 100), (384, 96)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_update_keeps_the_singular_vectors_and_makes_the_values_nearly_one(random, shape):
    matrix = torch.randn(shape, generator=random)
    found = orthogonalised(matrix[None])[0]
    torch.testing.assert_close(found.double(), by_singular_values(matrix), atol=2e-4, rtol=0)
    given = torch.linalg.svdvals(matrix)
    # One of a square random matrix may be nearly 0, and stays so.
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.21
    assert int((values > 0.68).sum()) >= int((given > 0.002 * given.norm()).sum())


def test_the_range_of_the_iteration_is_the_known_one():
    values = polynomial(torch.linspace(0.002, 1, 100_000, dtype=torch.float64))
    assert 0.68 < values.min() < 0.69 and 1.20 < values.max() < 1.21


def test_each_matrix_of_a_batch_is_treated_alone(random):
    matrices = torch.randn(3, 5, 7, generator=random) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = orthogonalised(matrices)
    for matrix, update in zip(matrices, found, strict=True):
        torch.testing.assert_close(update, orthogonalised(matrix[None])[0])


def test_no_gradient_is_no_update():
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def train(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], num_steps: int = 6) -> None:
    """Steps with gradients that are a function of the number of the step and of the weight's place."""
    for step in range(num_steps):
        for index, weight in enumerate(weights):
            generator = torch.Generator().manual_seed(100 * step + index)
            weight.grad = torch.randn(weight.numel(), generator=generator).view(weight.shape)
        optimizer.step()


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def matrices_of(weights: list[torch.nn.Parameter], **options: object) -> Muon:
    return Muon([{"params": weights, "is_matrix": True, **options}], lr=0.03)


def test_matrices_move_as_with_torchs_muon(monkeypatch):
    """Whose Newton-Schulz steps are in bfloat16; with the same ones in its place the two agree to rounding."""
    shapes = ((8, 8), (16, 48), (48, 16), (8, 8))
    own, theirs, exact = parameters(*shapes), parameters(*shapes), parameters(*shapes)
    train(matrices_of(own, weight_decay=0.1), own)
    options = {"lr": 0.03, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True}
    train(torch.optim.Muon(theirs, **options), theirs)
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz",
        lambda gradient, *_: by_singular_values(gradient).float(),
    )
    train(torch.optim.Muon(exact, **options), exact)
    for start, weight, near, same in zip(parameters(*shapes), own, theirs, exact, strict=True):
        torch.testing.assert_close(weight, same, atol=2e-5, rtol=0)
        assert (weight - near).norm() < 0.03 * (weight - start).norm()


def test_all_else_moves_as_with_torchs_adamw_bit_for_bit():
    own, theirs = parameters((5,), (3, 4), (1, 7)), parameters((5,), (3, 4), (1, 7))
    options = {"lr": 0.01, "weight_decay": 0.1}
    train(Muon([{"params": own, **options}], lr=1.0), own)
    train(torch.optim.AdamW(theirs, **options), theirs)
    assert all(torch.equal(weight, other) for weight, other in zip(own, theirs, strict=True))


def test_a_convolution_is_the_matrix_of_its_first_axis_by_the_others():
    kernels, matrices = parameters((8, 4, 3), (6, 5, 2, 2)), parameters((8, 4, 3), (6, 5, 2, 2))
    flat = [torch.nn.Parameter(weight.detach().reshape(len(weight), -1)) for weight in matrices]
    train(matrices_of(kernels), kernels)
    train(matrices_of(flat), flat)
    for kernel, matrix in zip(kernels, flat, strict=True):
        torch.testing.assert_close(kernel.reshape(matrix.shape), matrix)


def test_of_a_stack_each_layer_is_a_matrix_of_its_own():
    (stack,) = parameters((4, 8, 6, 3))
    start = stack.detach().clone()
    train(matrices_of([stack], num_stacked=1), [stack], num_steps=1)
    for layer in range(4):
        direction = (start[layer] - stack[layer]).reshape(8, 18) / 0.03
        values = torch.linalg.svdvals(direction)
        assert values.min() > 0.68 and values.max() < 1.21


@pytest.mark.parametrize(("rows", "columns"), [(64, 4), (4, 64), (8, 8)])
def test_a_tall_matrix_moves_by_the_root_of_its_shape_more(rows, columns):
    (weight,) = parameters((rows, columns))
    start = weight.detach().clone()
    train(matrices_of([weight]), [weight], num_steps=1)
    longest = torch.linalg.matrix_norm((weight - start).detach(), ord=2).item()
    assert 0.68 < longest / (0.03 * math.sqrt(max(1, rows / columns))) < 1.21


def test_weights_without_a_gradient_stay():
    moving, still = parameters((4, 4), (4, 4))
    vector = torch.nn.Parameter(torch.ones(3))
    optimizer = Muon([{"params": [moving, still], "is_matrix": True}, {"params": [vector]}], lr=0.1)
    before = still.detach().clone()
    train(optimizer, [moving])
    assert torch.equal(still, before) and torch.equal(vector, torch.ones(3))
